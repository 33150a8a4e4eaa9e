"""Generating text in the graph: prefill, decoding and re-encoding are the same nodes of one loop body.

In every turn the model reads the tokens of each row's window that are not in its cache yet, up to ``PREFILL_CHUNK``: a
prompt takes the first turns, a token one later, and what is kept after the window has moved some again. Once all rows
are read to their ends, each draws its next token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_model import cache as kv
from tf_model.config import GPT2Config
from tf_model.logits_processors import Constraints, apply_constraints
from tf_model.sampling import Sampling, sample_tokens
from tf_model.window import Window, slide_window

Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""``GPT2.step``, or a function that does the same: (tokens, start, count, cache, capacity) -> (logits, cache)."""


PREFILL_CHUNK = 256
"""Tokens of a row that are read at a time: attention takes memory and time for each pair of a token and a position."""


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
        the end of text included, then padding. A text ends too where the constraints leave no token.
    lengths: int32 ``[B]``, tokens of each row without the padding.
    logprobs: float32 ``[B, N]``, the logarithm of the model's own probability of each new token, before any filter;
        0 behind the end.
    """

    sequences: tf.Tensor
    lengths: tf.Tensor
    logprobs: tf.Tensor


class Context(NamedTuple):
    """What the model has read of each row, so that it need not read it again.

    Attributes:
        cache: keys and values; used up by who takes it, as in ``GPT2.forward``.
        start: int32 ``[B]``, where in the row's text the window begins: the token at position 0 of the cache.
        cached_length: int32 ``[B]``, how many tokens from there are in the cache.
    """

    cache: tf.Tensor
    start: tf.Tensor
    cached_length: tf.Tensor


class _State(NamedTuple):
    """``number``: of new tokens of each row that is running. ``written``: int32 ``[B * W + 1]``, the histories of all
    rows, one after the other, and a place for what is thrown away; ``logprobs`` likewise, ``[B * N + 1]``. ``length``:
    tokens in a row's history, int32 ``[B]``. ``logits``: after the last token that was read, ``[B, V]``."""

    number: tf.Tensor
    written: tf.Tensor
    logprobs: tf.Tensor
    length: tf.Tensor
    running: tf.Tensor
    logits: tf.Tensor
    context: Context


def random_seeds(batch: tf.Tensor) -> tf.Tensor:
    """A seed per row, int64 ``[B]``, new at every call of the graph."""
    # Not tf.random.uniform: that would take over a seed which happened to be set when the graph was built.
    return tf.raw_ops.RandomUniformInt(
        shape=[batch], minval=tf.constant(0, tf.int64), maxval=tf.constant(tf.int64.max, tf.int64), seed=0, seed2=0
    )


def generate(
    step: Step,
    allocate: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    config: GPT2Config,
    request: Request,
    pad_token_id: int,
) -> Generated:
    """Continues every row of a batch, each until its end of text or its number of tokens.

    Args:
        step, allocate: as the model's methods of these names.
        config: the model's sizes.
        request: prompts and parameters.
        pad_token_id: what stands behind the end of a row.
    """
    capacity, context = empty_context(allocate, config.n_positions, request)
    return generate_from(step, capacity, config.vocab_size, request, context, pad_token_id)[0]


def empty_context(
    allocate: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], capacity: tf.Tensor | int, request: Request
) -> tuple[tf.Tensor, Context]:
    """A context in which nothing has been read, for ``generate_from``, and its capacity: little more than needed."""
    batch, size = tf.unstack(tf.shape(request.input_ids))
    enough = kv.capacity_for(size + tf.reduce_max(request.max_new_tokens), capacity)
    zeros = tf.zeros([batch], tf.int32)
    return enough, Context(allocate(batch, enough), zeros, zeros)


def generate_from(
    step: Step, capacity: tf.Tensor, vocab_size: int, request: Request, context: Context, pad_token_id: int
) -> tuple[Generated, Context, tf.Tensor]:
    """As ``generate``, from what was read before; a text made in several calls is the one made in a single call, but
    for rounding: a prompt's last token is read again, by itself.

    Args:
        step: as the model's method of this name.
        capacity: int32 scalar, positions of the cache, and so of the window.
        vocab_size: V.
        request: prompts and parameters; ``input_ids`` are the texts from their beginning, what the cache has included.
        context: of which row, and up to where: at least one token of each row is still to be read. Used up.
        pad_token_id: what stands behind the end of a row.

    Returns:
        what was generated; the context to go on with, which has all tokens but the last one generated; and the logits
        float32 ``[B, V]`` after the last token in it. With no tokens to generate this is a row's next distribution,
        for samplers of the caller's own.
    """
    batch, size = tf.unstack(tf.shape(request.input_ids))
    steps = tf.reduce_max(request.max_new_tokens)
    width = size + steps
    row = tf.range(batch)
    empty = tf.zeros([batch, steps], tf.int32)
    window = request.window._replace(tokens=tf.minimum(request.window.tokens, capacity))

    def histories(written: tf.Tensor) -> tf.Tensor:
        return tf.reshape(written[:-1], [batch, width])

    def advance(old: Context, history: tf.Tensor, length: tf.Tensor, which: tf.Tensor) -> Context:
        """Moves the windows of the rows ``which`` that are full; what such a row keeps is to be read again."""
        moved = slide_window(window, history, length, tf.where(which, old.start, length), capacity)
        start = tf.where(which, moved, old.start)
        return Context(old.cache, start, tf.where(start == old.start, old.cached_length, 0))

    def body(state: _State) -> tuple[_State]:
        number, written, logprobs, length, running, last, (cache, start, cached_length) = state
        unread = tf.where(running | (number == 0), length - start - cached_length, 0)
        # One token is read by other kernels than several. A row that has one waits until no other has more: else its
        # last bits would depend on its neighbours, in a batch with prompts of all lengths or windows that move.
        waits = (unread == 1) & tf.reduce_any(unread > 1)
        count = tf.where(waits, 0, tf.minimum(unread, PREFILL_CHUNK))
        ready = tf.reduce_all(count == unread)
        column = tf.range(tf.maximum(tf.reduce_max(count), 1))[tf.newaxis]
        place = tf.minimum((start + cached_length)[:, tf.newaxis] + column, width - 1)
        tokens = tf.gather(written, row[:, tf.newaxis] * width + place)
        logits, cache = step(tokens, cached_length, count, cache, capacity)
        last = tf.where((count > 0)[:, tf.newaxis], logits, last)
        processed = apply_constraints(
            last, request.constraints, histories(written), length, length - request.input_lengths
        )
        token = sample_tokens(processed, request.sampling, length)
        allowed = tf.gather(processed, token, axis=1, batch_dims=1) > -float("inf")  # else no token is
        draws = running & ready & allowed
        written = _put(written, tf.where(draws, row * width + length, batch * width), token)
        chosen = tf.gather(tf.nn.log_softmax(last), token, axis=1, batch_dims=1)
        logprobs = _put(logprobs, tf.where(draws, row * steps + number, batch * steps), chosen)
        length += tf.cast(draws, tf.int32)
        ended = tf.reduce_any(token[:, tf.newaxis] == request.constraints.eos_token_id, axis=-1)
        goes_on = draws & ~ended & (length - request.input_lengths < request.max_new_tokens)
        running = goes_on | (running & ~ready)
        read = advance(Context(cache, start, cached_length + count), histories(written), length, running)
        return (_State(number + tf.cast(ready, tf.int32), written, logprobs, length, running, last, read),)

    prompt = tf.concat([request.input_ids, empty], axis=1)
    everyone = tf.fill([batch], True)
    state = _State(
        number=tf.constant(0),
        written=_buffer(prompt),
        logprobs=_buffer(tf.cast(empty, tf.float32)),
        length=request.input_lengths,
        running=request.max_new_tokens > 0,
        logits=tf.zeros([batch, vocab_size]),
        context=advance(context, prompt, request.input_lengths, everyone),
    )
    (state,) = tf.while_loop(
        lambda state: tf.reduce_any(state.running) | (state.number == 0),
        body,
        (state,),
        parallel_iterations=1,  # buffers are written in place: turns must not overlap
    )
    sequences = tf.where(tf.range(width) < state.length[:, tf.newaxis], histories(state.written), pad_token_id)
    generated = Generated(sequences, state.length, tf.reshape(state.logprobs[:-1], [batch, steps]))
    return generated, state.context, state.logits


def _buffer(values: tf.Tensor) -> tf.Tensor:
    """A copy of ``values``, flat and with one more element, that may be written in place."""
    size = tf.size(values)
    buffer = tf.raw_ops.Empty(shape=tf.reshape(size + 1, [1]), dtype=values.dtype, init=True)
    return tf.ensure_shape(_put(buffer, tf.range(size), tf.reshape(values, [-1])), [None])


def _put(buffer: tf.Tensor, place: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Writes ``values`` to the elements ``place`` of ``buffer``, in place: only the returned tensor may be used."""
    return tf.raw_ops.InplaceUpdate(x=buffer, i=place, v=values)
