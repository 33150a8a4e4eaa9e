"""From logits to the next token, inside the graph.

The filters and their order are those of transformers' ``generate``: temperature, top_k, top_p, min_p, typical_p, each
on what the one before has left. A row's token depends on its own logits, parameters, seed and step only: never on the
rest of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

CANDIDATES = 1024
"""Most probable tokens that are sorted per step; only a kept set that is larger costs a sort of the vocabulary."""


class Sampling(NamedTuple):
    """How the rows of a batch are sampled: one value per row, ``[B]``.

    Attributes:
        temperature: float32; 0 takes the most probable token, the rest is then without effect.
        top_k: int32, keep the k most probable tokens and their equals; 0 is off.
        top_p: float32, keep the most probable tokens up to and including the one at which their sum reaches top_p, the
            first one always (Holtzman et al. 2019); 1 is off.
        min_p: float32, keep tokens at least min_p times as probable as the most probable one; 0 is off.
        typical_p: float32, keep the tokens whose information is nearest to the entropy, up to the one at which their
            sum reaches typical_p (Meister et al. 2022); 1 is off.
        seed: int64.
    """

    temperature: tf.Tensor
    top_k: tf.Tensor
    top_p: tf.Tensor
    min_p: tf.Tensor
    typical_p: tf.Tensor
    seed: tf.Tensor


def sample_tokens(logits: tf.Tensor, sampling: Sampling, step: tf.Tensor) -> tf.Tensor:
    """Draws the next token of each row, int32 ``[B]``.

    Args:
        logits: float32 ``[B, V]``; -inf for tokens that are forbidden.
        sampling: the parameters.
        step: int32 ``[B]`` or a scalar, how many tokens the row has before this one: with the seed it decides the draw.
    """
    best = tf.argmax(logits, axis=-1, output_type=tf.int32)

    def draw() -> tf.Tensor:
        probabilities = filtered_probabilities(logits, sampling)
        drawn = _inverse_cdf(probabilities, uniform(sampling.seed, step))
        return tf.where(sampling.temperature > 0, drawn, best)

    return tf.cond(tf.reduce_any(sampling.temperature > 0), draw, lambda: best)


def filtered_probabilities(logits: tf.Tensor, sampling: Sampling) -> tf.Tensor:
    """Return the distribution after all filters, float32 ``[B, V]``: 0 for what is not kept, not normalised."""
    divisor = tf.where(sampling.temperature > 0, sampling.temperature, 1.0)[:, tf.newaxis]
    # The largest is subtracted first: a tiny temperature then gives 0 and -inf, not inf - inf.
    scaled = (logits - tf.reduce_max(logits, axis=-1, keepdims=True)) / divisor
    weights = tf.exp(scaled)  # of the most probable token: 1
    kept = tf.where(weights >= _threshold(weights, sampling), weights, 0.0)
    return tf.cond(tf.reduce_any(sampling.typical_p < 1.0), lambda: _typical(kept, sampling.typical_p), lambda: kept)


def _threshold(weights: tf.Tensor, sampling: Sampling) -> tf.Tensor:
    """Return the smallest weight that top_k, top_p and min_p keep, ``[B, 1]``.

    Each of the three keeps the most probable tokens down to some weight, so the largest of their bounds serves all.
    """
    size = weights.shape[-1]
    top_k = tf.where(sampling.top_k > 0, tf.minimum(sampling.top_k, size), size)[:, tf.newaxis]
    top_p = sampling.top_p[:, tf.newaxis]
    # float64: a float32 sum over 30,000 tokens would end a few tokens too early or too late.
    total = tf.reduce_sum(tf.cast(weights, tf.float64), axis=-1, keepdims=True)
    unused = (top_k == size) & (top_p >= 1.0)

    def among(candidates: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the bound, and whether it is certain that no token beyond the candidates belongs to the kept ones."""
        best = tf.math.top_k(weights, candidates).values
        summands = tf.cast(best, tf.float64)
        in_top_k = tf.range(candidates)[tf.newaxis] < top_k
        k_bound = tf.gather(best, tf.minimum(top_k, candidates) - 1, axis=1, batch_dims=1)
        # Tokens equal to the k-th are kept too, so the sum that top_p is a share of has them all; among the
        # candidates they can be told by their weight, beyond them there are none unless top_k is.
        limited = tf.reduce_sum(tf.where(in_top_k | (best == k_bound), summands, 0.0), axis=-1, keepdims=True)
        mass = tf.where(top_k < candidates, limited, total) * tf.cast(top_p, tf.float64)
        before = tf.cumsum(summands, axis=-1, exclusive=True)
        number = tf.reduce_sum(tf.cast(before < mass, tf.int32), axis=-1, keepdims=True)
        p_bound = tf.gather(best, tf.maximum(number, 1) - 1, axis=1, batch_dims=1)
        bound = tf.maximum(tf.where(top_k < size, k_bound, 0.0), tf.where(top_p < 1.0, p_bound, 0.0))
        certain = unused | (top_k < candidates) | ((top_k == size) & (number < candidates))
        return bound, tf.reduce_all(certain)

    def sort() -> tf.Tensor:
        if size <= CANDIDATES:
            return among(size)[0]
        bound, certain = among(CANDIDATES)
        return tf.cond(certain, lambda: bound, lambda: among(size)[0])

    sorted_bound = tf.cond(tf.reduce_all(unused), lambda: tf.zeros_like(top_p), sort)
    return tf.maximum(tf.where(unused, 0.0, sorted_bound), sampling.min_p[:, tf.newaxis])


def _typical(weights: tf.Tensor, typical_p: tf.Tensor) -> tf.Tensor:
    """Locally typical sampling of what is left: ``weights`` with more zeros.

    float64: the information of 30,000 tokens about equally probable differs by less than float32 can tell.
    """
    summands = tf.cast(weights, tf.float64)
    probabilities = summands / tf.reduce_sum(summands, axis=-1, keepdims=True)
    information = -tf.math.log(probabilities)
    entropy = tf.reduce_sum(tf.math.multiply_no_nan(information, probabilities), axis=-1, keepdims=True)
    distance = tf.abs(information - entropy)  # inf for what was dropped before
    order = tf.argsort(distance, axis=-1, stable=True)
    cumulated = tf.cumsum(tf.gather(probabilities, order, axis=1, batch_dims=1), axis=-1)
    mass = tf.cast(typical_p, tf.float64)[:, tf.newaxis]
    below = tf.reduce_sum(tf.cast(cumulated < mass, tf.int32), axis=-1, keepdims=True)
    last = tf.gather(order, tf.minimum(below, weights.shape[-1] - 1), axis=1, batch_dims=1)
    bound = tf.gather(distance, last, axis=1, batch_dims=1)
    return tf.where((distance <= bound) | (typical_p >= 1.0)[:, tf.newaxis], weights, 0.0)


def _inverse_cdf(weights: tf.Tensor, quantile: tf.Tensor) -> tf.Tensor:
    """Return the first index whose cumulated weight exceeds ``quantile`` (float64 ``[B]``, below 1) of the row's sum.

    float64, because a float32 sum over 30,000 tokens loses the rare ones. An index of weight 0 is never chosen.
    """
    groups = -(-weights.shape[-1] // _GROUP)
    padded = tf.pad(weights, [[0, 0], [0, groups * _GROUP - weights.shape[-1]]])
    grouped = tf.cast(tf.reshape(padded, [-1, groups, _GROUP]), tf.float64)
    sums = tf.reduce_sum(grouped, axis=-1)
    # First the group, then the token in it: to cumulate all of the vocabulary takes longer than all else here.
    target = quantile[:, tf.newaxis] * tf.reduce_sum(sums, axis=-1, keepdims=True)
    group, target = _first_beyond(sums, target)
    index, _ = _first_beyond(tf.gather(grouped, group, axis=1, batch_dims=1), target)
    return group * _GROUP + index


_GROUP = 256


def _first_beyond(weights: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Of each row the first index at which the cumulated weights exceed ``target`` ``[B, 1]``, or reach their sum.

    Also what of the target is left at that index.
    """
    cumulated = tf.cumsum(weights, axis=-1)
    before = (cumulated <= target) & (cumulated < cumulated[:, -1:])
    passed = tf.reduce_max(tf.where(before, cumulated, 0.0), axis=-1, keepdims=True)
    return tf.reduce_sum(tf.cast(before, tf.int32), axis=-1), target - passed


def uniform(seed: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Return a number in [0, 1) for each (seed, step), float64 ``[B]``, the same on every run and in every batch.

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
