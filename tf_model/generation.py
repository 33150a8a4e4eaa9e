"""Generating text in the graph: prefill, decoding and re-encoding are the same nodes of one loop body.

Every turn of the loop feeds each row the tokens of its window that are not in its cache yet: the whole prompt in the
first turn, one token later, and all that is kept after the window has moved. Then each row draws its next token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_model.cache import LayerCache
from tf_model.processors import Constraints, process
from tf_model.sampling import Sampling, choose
from tf_model.window import Window, evict

Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, list[LayerCache], tf.Tensor], tuple[tf.Tensor, list[LayerCache]]]
"""``GPT2.step``, or a function that does the same: (tokens, start, count, cache, capacity) -> (logits, cache)."""


class Request(NamedTuple):
    """What is to be generated, for a batch of rows.

    Attributes:
        input_ids: int32 ``[B, S]``, right-padded with any valid id.
        input_lengths: int32 ``[B]``, 1 to S.
        max_new_tokens: int32 ``[B]``, 0 or more.
        sampling, constraints, window: see there.
    """

    input_ids: tf.Tensor
    input_lengths: tf.Tensor
    max_new_tokens: tf.Tensor
    sampling: Sampling
    constraints: Constraints
    window: Window


class Generated(NamedTuple):
    """Attributes:

    sequences: int32 ``[B, S + N]``, N the largest ``max_new_tokens``: prompt and continuation without a gap between,
        the end of text included, then padding.
    lengths: int32 ``[B]``, tokens of each row without the padding.
    logprobs: float32 ``[B, N]``, the logarithm of the model's own probability of each new token, before any filter;
        0 behind the end.
    """

    sequences: tf.Tensor
    lengths: tf.Tensor
    logprobs: tf.Tensor


class _State(NamedTuple):
    """``written``: int32 ``[B * W + 1]``, the histories of all rows, one after the other, and a place for what is
    thrown away; ``logprobs`` likewise, ``[B * N + 1]``. ``length``: tokens in a row's history. ``start``: the first of
    its window. ``fed``: how many of the window are in the cache. These three are int32 ``[B]``."""

    step: tf.Tensor
    written: tf.Tensor
    logprobs: tf.Tensor
    length: tf.Tensor
    start: tf.Tensor
    fed: tf.Tensor
    running: tf.Tensor
    cache: list[LayerCache]


def random_seeds(batch: tf.Tensor) -> tf.Tensor:
    """A seed per row, int64 ``[B]``, new at every call of the graph."""
    # Not tf.random.uniform: that would take over a seed which happened to be set when the graph was built.
    return tf.raw_ops.RandomUniformInt(
        shape=[batch], minval=tf.constant(0, tf.int64), maxval=tf.constant(tf.int64.max, tf.int64), seed=0, seed2=0
    )


def generate(
    step: Step,
    allocate: Callable[[tf.Tensor, tf.Tensor], list[LayerCache]],
    n_positions: int,
    request: Request,
    pad_token_id: int,
) -> Generated:
    """Continues every row of a batch, each until its end of text or its number of tokens.

    Args:
        step, allocate: as the model's methods of these names.
        n_positions: most tokens that the model sees at once.
        request: prompts and parameters.
        pad_token_id: what stands behind the end of a row.
    """
    batch, size = tf.unstack(tf.shape(request.input_ids))
    steps = tf.reduce_max(request.max_new_tokens)
    width = size + steps
    capacity = tf.minimum(width, n_positions)
    row = tf.range(batch)
    empty = tf.zeros([batch, steps], tf.int32)

    def histories(written: tf.Tensor) -> tf.Tensor:
        return tf.reshape(written[:-1], [batch, width])

    def body(
        number: tf.Tensor, written: tf.Tensor, logprobs: tf.Tensor, length: tf.Tensor, start: tf.Tensor, fed: tf.Tensor,
        running: tf.Tensor, cache: list[LayerCache],
    ) -> _State:  # fmt: skip
        count = tf.where(running, length - start - fed, 0)
        column = tf.range(tf.maximum(tf.reduce_max(count), 1))[tf.newaxis]
        place = tf.minimum((start + fed)[:, tf.newaxis] + column, width - 1)
        tokens = tf.gather(written, row[:, tf.newaxis] * width + place)
        logits, cache = step(tokens, fed, count, cache, capacity)
        history = histories(written)
        processed = process(logits, request.constraints, history, length, length - request.input_lengths)
        token = choose(processed, request.sampling, number)
        written = _put(written, tf.where(running, row * width + length, batch * width), token)
        chosen = tf.gather(tf.nn.log_softmax(logits), token, axis=1, batch_dims=1)
        logprobs = _put(logprobs, tf.where(running, row * steps + number, batch * steps), chosen)
        length += tf.cast(running, tf.int32)
        ended = tf.reduce_any(token[:, tf.newaxis] == request.constraints.eos_token_id, axis=-1)
        running = running & ~ended & (length - request.input_lengths < request.max_new_tokens)
        moved = evict(request.window, histories(written), length, tf.where(running, start, length), n_positions)
        moved = tf.where(running, moved, start)
        fed = tf.where(moved == start, fed + count, 0)
        return _State(number + 1, written, logprobs, length, moved, fed, running, cache)

    state = _State(
        step=tf.constant(0),
        written=_buffer(tf.concat([request.input_ids, empty], axis=1)),
        logprobs=_buffer(tf.cast(empty, tf.float32)),
        length=request.input_lengths,
        start=evict(
            request.window,
            tf.concat([request.input_ids, empty], axis=1),
            request.input_lengths,
            tf.zeros_like(request.input_lengths),
            n_positions,
        ),
        fed=tf.zeros_like(request.input_lengths),
        running=request.max_new_tokens > 0,
        cache=allocate(batch, capacity),
    )
    state = _State(
        *tf.while_loop(
            lambda number, written, logprobs, length, start, fed, running, cache: tf.reduce_any(running),
            body,
            state,
            parallel_iterations=1,  # buffers are written in place: turns must not overlap
        )
    )
    sequences = tf.where(tf.range(width) < state.length[:, tf.newaxis], histories(state.written), pad_token_id)
    return Generated(sequences, state.length, tf.reshape(state.logprobs[:-1], [batch, steps]))


def _buffer(values: tf.Tensor) -> tf.Tensor:
    """A copy of ``values``, flat and with one more element, that may be written in place."""
    size = tf.size(values)
    buffer = tf.raw_ops.Empty(shape=tf.reshape(size + 1, [1]), dtype=values.dtype, init=True)
    return tf.ensure_shape(_put(buffer, tf.range(size), tf.reshape(values, [-1])), [None])


def _put(buffer: tf.Tensor, place: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Writes ``values`` to the elements ``place`` of ``buffer``, in place: only the returned tensor may be used."""
    return tf.raw_ops.InplaceUpdate(x=buffer, i=place, v=values)
