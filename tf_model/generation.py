"""Generating text in the graph: prefill and decoding are the same nodes of one loop body."""

from __future__ import annotations

import tensorflow as tf

from tf_model.cache import LayerCache
from tf_model.gpt2 import GPT2
from tf_model.sampling import choose


def random_seeds(batch: tf.Tensor) -> tf.Tensor:
    """A seed per row, int64 ``[B]``, new at every call of the graph."""
    # Not tf.random.uniform: that would take over a seed which happened to be set when the graph was built.
    return tf.raw_ops.RandomUniformInt(
        shape=[batch], minval=tf.constant(0, tf.int64), maxval=tf.constant(tf.int64.max, tf.int64), seed=0, seed2=0
    )


def generate(
    model: GPT2,
    input_ids: tf.Tensor,
    input_lengths: tf.Tensor,
    max_new_tokens: tf.Tensor,
    temperature: tf.Tensor,
    top_p: tf.Tensor,
    seed: tf.Tensor,
    pad_token_id: int,
) -> tf.Tensor:
    """Continues every row of a batch.

    The first turn of the loop feeds the prompt (s = S), every later one a single token per row (s = 1). A row with a
    shorter prompt is padded on the right; its own tokens have positions 0, 1, ... all the same.

    Args:
        model: the weights.
        input_ids: int32 ``[B, S]``, right-padded with any valid id.
        input_lengths: int32 ``[B]``, 1 to S.
        max_new_tokens: int32 ``[B]``, 0 or more; a row with fewer than its neighbours is filled up with padding.
        temperature: float32 ``[B]``, 0 for greedy.
        top_p: float32 ``[B]``.
        seed: int64 ``[B]``.
        pad_token_id: what stands behind the end of a row.

    Returns:
        int32 ``[B, S + max(max_new_tokens)]``: prompt and continuation of each row, without a gap between.
    """
    batch, size = tf.unstack(tf.shape(input_ids))
    steps = tf.reduce_max(max_new_tokens)
    capacity = tf.minimum(size + steps, model.config.n_positions)

    def body(
        step: tf.Tensor,
        feed: tf.Tensor,
        start: tf.Tensor,
        count: tf.Tensor,
        written: tf.Tensor,
        cache: list[LayerCache],
    ) -> tuple[tf.Tensor | list[LayerCache], ...]:
        logits, cache = model.step(feed, start, count, cache, capacity)
        token = choose(logits, temperature, top_p, seed, step)
        written = tf.raw_ops.InplaceUpdate(x=written, i=[step], v=token[tf.newaxis])
        return step + 1, token[:, tf.newaxis], start + count, tf.ones_like(count), written, cache

    invariant = tf.TensorSpec([None, None], tf.int32)
    row = tf.TensorSpec([None], tf.int32)
    cache = model.allocate(batch, capacity)
    _, _, _, _, written, _ = tf.while_loop(
        lambda step, *_: step < steps,
        body,
        (
            tf.constant(0),
            input_ids,
            tf.zeros_like(input_lengths),
            input_lengths,
            tf.raw_ops.Empty(shape=tf.stack([steps, batch]), dtype=tf.int32, init=True),
            cache,
        ),
        shape_invariants=(
            tf.TensorSpec([], tf.int32),
            invariant,
            row,
            row,
            invariant,
            [LayerCache(*(tf.TensorSpec(part.shape, part.dtype) for part in layer)) for layer in cache],
        ),
        parallel_iterations=1,  # the cache is written in place: turns must not overlap
    )
    return _join(input_ids, input_lengths, tf.transpose(written), max_new_tokens, pad_token_id)


def _join(
    prompt: tf.Tensor, lengths: tf.Tensor, new: tf.Tensor, new_lengths: tf.Tensor, pad_token_id: int
) -> tf.Tensor:
    """Prompts ``[B, S]`` and continuations ``[B, N]`` as rows ``[B, S + N]`` without the prompts' padding between."""
    width = tf.shape(prompt)[1]
    both = tf.concat([prompt, new], axis=1)
    column = tf.range(tf.shape(both)[1])[tf.newaxis]
    length = lengths[:, tf.newaxis]
    source = tf.where(column < length, column, column - length + width)
    joined = tf.gather(both, tf.minimum(source, tf.shape(both)[1] - 1), axis=1, batch_dims=1)
    return tf.where(column < length + new_lengths[:, tf.newaxis], joined, pad_token_id)
