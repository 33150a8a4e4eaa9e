"""From logits to the next token, inside the graph.

A row's token depends on its own logits, parameters, seed and step only: never on the rest of the batch.
"""

from __future__ import annotations

import tensorflow as tf

NUCLEUS_CANDIDATES = 1024
"""Most probable tokens that are sorted per step; only a nucleus that is larger costs a sort of the vocabulary."""


def nucleus_threshold(probabilities: tf.Tensor, top_p: tf.Tensor) -> tf.Tensor:
    """The smallest probability that nucleus sampling keeps, ``[B, 1]``.

    Kept are the most probable tokens up to and including the one that crosses ``top_p`` (Holtzman et al. 2019; the
    convention of CPM-1-Generate and transformers), the first one always, and tokens just as probable as the last one:
    which of equals come first would be an accident. With ``top_p`` of 1 everything is kept.

    Args:
        probabilities: float32 ``[B, V]``, each row summing to 1.
        top_p: float32 ``[B]``.
    """
    top_p = top_p[:, tf.newaxis]
    size = probabilities.shape[-1]

    def threshold(candidates: int) -> tf.Tensor:
        best = tf.math.top_k(probabilities, candidates).values
        before = tf.cumsum(best, axis=-1, exclusive=True)
        kept = tf.reduce_sum(tf.cast(before < top_p, tf.int32), axis=-1)
        return tf.gather(best, tf.maximum(kept - 1, 0), axis=1, batch_dims=1)[:, tf.newaxis], before[:, -1:]

    def few() -> tf.Tensor:
        if size <= NUCLEUS_CANDIDATES:
            return threshold(size)[0]
        # `mass` is what lies before the last candidate: below top_p, tokens beyond the candidates may belong too.
        value, mass = threshold(NUCLEUS_CANDIDATES)
        return tf.cond(tf.reduce_all((mass >= top_p) | (top_p >= 1.0)), lambda: value, lambda: threshold(size)[0])

    found = tf.cond(tf.reduce_all(top_p >= 1.0), lambda: tf.zeros_like(top_p), few)
    return tf.where(top_p >= 1.0, 0.0, found)


def choose(logits: tf.Tensor, temperature: tf.Tensor, top_p: tf.Tensor, seed: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Draws the next token of each row: temperature, then the nucleus, then one draw from what is left.

    Args:
        logits: float32 ``[B, V]``.
        temperature: float32 ``[B]``; 0 takes the most probable token.
        top_p: float32 ``[B]``.
        seed: int64 ``[B]``.
        step: int32 scalar, how many tokens were drawn before: with the seed it decides the draw.

    Returns:
        int32 ``[B]``.
    """
    best = tf.argmax(logits, axis=-1, output_type=tf.int32)

    def draw() -> tf.Tensor:
        divisor = tf.where(temperature > 0, temperature, 1.0)[:, tf.newaxis]
        # The largest is subtracted first: a tiny temperature then gives 0 and -inf, not inf - inf.
        scaled = (logits - tf.reduce_max(logits, axis=-1, keepdims=True)) / divisor
        probabilities = tf.nn.softmax(scaled)
        kept = tf.where(probabilities >= nucleus_threshold(probabilities, top_p), probabilities, 0.0)
        drawn = _inverse_cdf(kept, uniform(seed, step))
        return tf.where(temperature > 0, drawn, best)

    return tf.cond(tf.reduce_any(temperature > 0), draw, lambda: best)


def _inverse_cdf(weights: tf.Tensor, quantile: tf.Tensor) -> tf.Tensor:
    """The first index whose cumulated weight exceeds ``quantile`` (float64 ``[B]``, below 1) of the row's sum.

    float64, because a float32 sum over 30,000 tokens loses the rare ones. An index of weight 0 is never chosen.
    """
    cumulated = tf.cumsum(tf.cast(weights, tf.float64), axis=-1)
    target = quantile[:, tf.newaxis] * cumulated[:, -1:]
    index = tf.reduce_sum(tf.cast(cumulated <= target, tf.int32), axis=-1)
    return tf.minimum(index, weights.shape[-1] - 1)


def uniform(seed: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """A number in [0, 1) for each (seed, step), float64 ``[B]``, the same on every run and in every batch.

    TensorFlow's stateless generators take one seed for a whole tensor; this takes one per row. It is SplitMix64
    (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): the hashed seed starts a sequence,
    of which number ``step`` is taken. 40 bits are used, so that a product with a sum never rounds up to the sum.
    """
    start = _mix(tf.bitcast(seed, tf.uint64) + _GAMMA)
    bits = _mix(start + tf.cast(step + 1, tf.uint64) * _GAMMA)
    return tf.cast(tf.bitwise.right_shift(bits, _shift(24)), tf.float64) * 2.0**-40


_GAMMA = 0x9E3779B97F4A7C15


def _shift(bits: int) -> tf.Tensor:
    return tf.constant(bits, tf.uint64)


def _mix(z: tf.Tensor) -> tf.Tensor:
    """SplitMix64's finalizer on uint64."""
    for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, _shift(bits))) * tf.constant(factor, tf.uint64)
    return tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, _shift(31)))
