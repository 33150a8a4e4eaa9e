"""Generate text in the graph: prefill, decoding and re-encoding are the same nodes of one loop body.

In every turn the model reads the tokens of each row's window that are not in its cache yet, at most ``PREFILL_CHUNK``
of them. A prompt takes the first turns. A new token takes one turn. A window that has moved is read again, in one or
more turns. When every row is read to its end, each row draws its next token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_model import cache as kv
from tf_model.config import GPT2Config
from tf_model.logits_processors import ConstraintState, LogitsProcessor, where_rows
from tf_model.sampling import Sampling, sample_tokens
from tf_model.window import Window, slide_window

Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""``GPT2.step``, or a function that does the same: (tokens, start, count, cache, capacity) -> (logits, cache)."""


PREFILL_CHUNK = 256
"""Most tokens of a row that one turn reads: attention takes memory and time for each pair of a token and a position."""


class Request(NamedTuple):
    """A request for text, for a batch of rows.

    Attributes:
        input_ids: int32 ``[B, S]``, right-padded with any valid id.
        input_lengths: int32 ``[B]``, 1 to S.
        max_new_tokens: int32 ``[B]``, 0 or more.
        sampling, window: see there.
        constraints: what changes the logits, ``Constraints`` in a SavedModel.
    """

    input_ids: tf.Tensor
    input_lengths: tf.Tensor
    max_new_tokens: tf.Tensor
    sampling: Sampling
    constraints: LogitsProcessor
    window: Window


class Generated(NamedTuple):
    """The texts of a batch of rows.

    Attributes:
        sequences: int32 ``[B, S + N]``, N the largest ``max_new_tokens``: prompt and continuation without a gap, the
            end of text included, then padding. A text also ends where the constraints leave no token.
        lengths: int32 ``[B]``, tokens of each row without the padding.
        logprobs: float32 ``[B, N]``, the logarithm of the model's own probability of each new token, before any
            filter; 0 after the end.
    """

    sequences: tf.Tensor
    lengths: tf.Tensor
    logprobs: tf.Tensor


class Context(NamedTuple):
    """What the model has read of each row, so that it need not read it again.

    Attributes:
        cache: keys and values. A function that takes the context consumes them, as ``GPT2.forward`` does.
        start: int32 ``[B]``, where in the row's text the window begins: the token at position 0 of the cache.
        cached_length: int32 ``[B]``, how many tokens from there are in the cache.
        constraint_state: what the constraints remember of each row: tensors ``[B, ...]`` by name.
    """

    cache: tf.Tensor
    start: tf.Tensor
    cached_length: tf.Tensor
    constraint_state: ConstraintState


class _State(NamedTuple):
    """What changes from turn to turn.

    Attributes:
        number: int32 scalar, how many tokens each running row has drawn.
        written: int32 ``[B * W + 1]``, the histories of all rows, one after the other, and a place for what is thrown
            away.
        logprobs: float32 ``[B * N + 1]``, laid out as ``written``.
        length: int32 ``[B]``, tokens in a row's history.
        running: bool ``[B]``, whether a row is to draw more tokens.
        logits: float32 ``[B, V]``, after the last token that was read.
        context: what was read.
    """

    number: tf.Tensor
    written: tf.Tensor
    logprobs: tf.Tensor
    length: tf.Tensor
    running: tf.Tensor
    logits: tf.Tensor
    context: Context


def random_seeds(batch: tf.Tensor) -> tf.Tensor:
    """Draw a seed per row, int64 ``[B]``, new at every call of the graph."""
    # Not tf.random.uniform: it would take over a seed that happened to be set when the graph was built.
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
    """Continue every row of a batch until its end of text or its number of tokens.

    Args:
        step, allocate: as the model's methods of these names.
        config: the model's sizes.
        request: prompts and parameters.
        pad_token_id: fills a row after its end.
    """
    capacity, context = empty_context(allocate, config.n_positions, request)
    return generate_from(step, capacity, config.vocab_size, request, context, pad_token_id)[0]


def empty_context(
    allocate: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], limit: tf.Tensor | int, request: Request
) -> tuple[tf.Tensor, Context]:
    """Return the capacity of a cache with room for the request, at most ``limit``, and a context with nothing read."""
    batch, size = tf.unstack(tf.shape(request.input_ids))
    capacity = kv.capacity_for(size + tf.reduce_max(request.max_new_tokens), limit)
    return capacity, new_context(allocate(batch, capacity), request)


def new_context(cache: tf.Tensor, request: Request) -> Context:
    """Return a context with an allocated cache in which nothing has been read."""
    zeros = tf.zeros(tf.shape(request.input_ids)[:1], tf.int32)
    state = request.constraints.initial_state(request.input_ids, request.input_lengths)
    return Context(cache, zeros, zeros, state)


def generate_from(
    step: Step, capacity: tf.Tensor, vocab_size: int, request: Request, context: Context, pad_token_id: int
) -> tuple[Generated, Context, tf.Tensor]:
    """Generate as ``generate`` does, from what was read before.

    A text that is made in several calls equals the text that one call makes, but for rounding: the last token of a
    prompt is read again, by itself.

    Args:
        step: as the model's method of this name.
        capacity: int32 scalar, positions of the cache, and so of the window.
        vocab_size: V.
        request: prompts and parameters; ``input_ids`` are the texts from their beginning, cached tokens included.
        context: which rows were read, and how far: at least one token of each row is still to be read. Consumed.
        pad_token_id: fills a row after its end.

    Returns:
        The generated texts; the context to go on with, which has all tokens but the last one generated; and the logits
        float32 ``[B, V]`` after the last token in it. With no tokens to generate, these logits are a row's next
        distribution, for samplers of the caller's own.
    """
    loop = _Loop(step, capacity, request)
    (state,) = tf.while_loop(
        lambda state: loop.unfinished(state),
        lambda state: (loop.turn(state),),
        (loop.start(context, vocab_size),),
        parallel_iterations=1,  # buffers are written in place: turns must not overlap
    )
    return loop.result(state, pad_token_id), state.context, state.logits


class _Loop:
    """The loop of ``generate_from``: what is the same in all turns, and the steps of a turn.

    A turn is ``read_chunk``, ``draw``, ``advance``. In every turn a row is in one of these states; "unread" are the
    tokens of its window that are not in its cache:

    | row      | ``running`` | unread             | all rows ready | what the turn does                          |
    |----------|-------------|--------------------|----------------|---------------------------------------------|
    | reading  | yes         | more than a chunk  | no             | reads ``PREFILL_CHUNK`` tokens              |
    | waiting  | yes         | any                | no             | reads its rest; one single token waits      |
    | drawing  | yes         | at most a chunk    | yes            | reads its rest, draws a token               |
    | measured | no          | prompt, first turns| either         | reads the prompt for its logits, draws none |
    | finished | no          | of no interest     | either         | reads nothing, draws nothing                |

    A drawing row becomes finished at an end of text, at its number of tokens, and where no token is allowed.
    """

    def __init__(self, step: Step, capacity: tf.Tensor, request: Request) -> None:
        self.step, self.capacity, self.request = step, capacity, request
        self.batch, size = tf.unstack(tf.shape(request.input_ids))
        self.steps = tf.reduce_max(request.max_new_tokens)
        self.width = size + self.steps
        self.row = tf.range(self.batch)
        self.window = request.window._replace(tokens=tf.minimum(request.window.tokens, capacity))

    def start(self, context: Context, vocab_size: int) -> _State:
        """Return the state before the first turn. Consumes ``context``."""
        request = self.request
        empty = tf.zeros([self.batch, self.steps], tf.int32)
        prompt = tf.concat([request.input_ids, empty], axis=1)
        return _State(
            number=tf.constant(0),
            written=_buffer(prompt),
            logprobs=_buffer(tf.cast(empty, tf.float32)),
            length=request.input_lengths,
            running=request.max_new_tokens > 0,
            logits=tf.zeros([self.batch, vocab_size]),
            context=self.slide(context, prompt, request.input_lengths, tf.fill([self.batch], True)),
        )

    def unfinished(self, state: _State) -> tf.Tensor:
        """Whether a row is running, or the prompts are still being read."""
        return tf.reduce_any(state.running) | (state.number == 0)

    def turn(self, state: _State) -> _State:
        """Read, draw, advance."""
        state, ready = self.read_chunk(state)
        state, token, draws = self.draw(state, ready)
        return self.advance(state, ready, token, draws)

    def read_chunk(self, state: _State) -> tuple[_State, tf.Tensor]:
        """Read the next tokens of every row; also return whether every row is now read to its end."""
        context = state.context
        start, cached_length = context.start, context.cached_length
        unread = tf.where(state.running | (state.number == 0), state.length - start - cached_length, 0)
        # Other kernels read one token than several. A row with one unread token waits until no other row has more:
        # otherwise its last bits would depend on its neighbours, in a batch of prompts of all lengths or with windows.
        waits = (unread == 1) & tf.reduce_any(unread > 1)
        count = tf.where(waits, 0, tf.minimum(unread, PREFILL_CHUNK))
        ready = tf.reduce_all(count == unread)
        column = tf.range(tf.maximum(tf.reduce_max(count), 1))[tf.newaxis]
        place = tf.minimum((start + cached_length)[:, tf.newaxis] + column, self.width - 1)
        tokens = tf.gather(state.written, self.row[:, tf.newaxis] * self.width + place)
        logits, cache = self.step(tokens, cached_length, count, context.cache, self.capacity)
        logits = tf.where((count > 0)[:, tf.newaxis], logits, state.logits)
        context = context._replace(cache=cache, cached_length=cached_length + count)
        return state._replace(logits=logits, context=context), ready

    def draw(self, state: _State, ready: tf.Tensor) -> tuple[_State, tf.Tensor, tf.Tensor]:
        """Draw a token of every row that is running, once all are ``ready``; also return tokens and who drew one."""
        request, memory = self.request, state.context.constraint_state
        length, history = state.length, self.histories(state.written)
        processed = request.constraints.apply(memory, state.logits, history, length, length - request.input_lengths)
        token = sample_tokens(processed, request.sampling, length)
        allowed = tf.gather(processed, token, axis=1, batch_dims=1) > -float("inf")  # else no token is
        draws = state.running & ready & allowed
        place = tf.where(draws, self.row * self.width + length, self.batch * self.width)
        chosen = tf.gather(tf.nn.log_softmax(state.logits), token, axis=1, batch_dims=1)
        logprob_place = tf.where(draws, self.row * self.steps + state.number, self.batch * self.steps)
        memory = where_rows(draws, request.constraints.update(memory, token), memory)
        state = state._replace(
            written=_put(state.written, place, token),
            logprobs=_put(state.logprobs, logprob_place, chosen),
            length=length + tf.cast(draws, tf.int32),
            context=state.context._replace(constraint_state=memory),
        )
        return state, token, draws

    def advance(self, state: _State, ready: tf.Tensor, token: tf.Tensor, draws: tf.Tensor) -> _State:
        """Find the rows that go on, and move their windows where they are full."""
        request = self.request
        ended = tf.reduce_any(token[:, tf.newaxis] == request.constraints.eos_token_id, axis=-1)
        goes_on = draws & ~ended & (state.length - request.input_lengths < request.max_new_tokens)
        running = goes_on | (state.running & ~ready)
        context = self.slide(state.context, self.histories(state.written), state.length, running)
        return state._replace(number=state.number + tf.cast(ready, tf.int32), running=running, context=context)

    def slide(self, old: Context, history: tf.Tensor, length: tf.Tensor, which: tf.Tensor) -> Context:
        """Move the windows of the rows ``which`` that are full; what such a row keeps is to be read again."""
        moved = slide_window(self.window, history, length, tf.where(which, old.start, length), self.capacity)
        start = tf.where(which, moved, old.start)
        return old._replace(start=start, cached_length=tf.where(start == old.start, old.cached_length, 0))

    def histories(self, written: tf.Tensor) -> tf.Tensor:
        """All rows' tokens, int32 ``[B, W]``."""
        return tf.reshape(written[:-1], [self.batch, self.width])

    def result(self, state: _State, pad_token_id: int) -> Generated:
        """Return the texts, padded."""
        own = tf.range(self.width) < state.length[:, tf.newaxis]
        sequences = tf.where(own, self.histories(state.written), pad_token_id)
        return Generated(sequences, state.length, tf.reshape(state.logprobs[:-1], [self.batch, self.steps]))


def _buffer(values: tf.Tensor) -> tf.Tensor:
    """Copy ``values`` into a flat buffer with one more element, which may be written in place."""
    size = tf.size(values)
    buffer = tf.raw_ops.Empty(shape=tf.reshape(size + 1, [1]), dtype=values.dtype, init=True)
    return tf.ensure_shape(_put(buffer, tf.range(size), tf.reshape(values, [-1])), [None])


def _put(buffer: tf.Tensor, place: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Write ``values`` to the elements ``place`` of ``buffer``, in place. Consumes ``buffer``."""
    return tf.raw_ops.InplaceUpdate(x=buffer, i=place, v=values)
