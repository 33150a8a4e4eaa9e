"""Change the logits before a token is drawn from them, by what was generated so far.

The definitions and their order are those of transformers' logits processors: repetition penalty, forbidden n-grams, no
end of text before its time, suppressed tokens. A forbidden token has the logit -inf.

A *history* is int32 ``[B, W]``, of which ``length`` ``[B]`` tokens are a row's own: prompt and continuation, all of it,
whatever the model still sees.

Constraints may remember something of each row: a *state*, tensors ``[B, ...]`` by name. The loop carries it from token
to token, ``prefill`` and ``decode`` hand it on together with the cache, and beam search gives each beam the state of
the beam that it continues. ``Constraints`` remember nothing: everything that they need is in the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

ConstraintState = Mapping[str, tf.Tensor]
"""Tensors ``[B, ...]`` by name; a row's part depends on its own tokens and parameters only."""


class LogitsProcessor(Protocol):
    """Constraints with a state: a nested structure of tensors ``[B, ...]``, as a ``NamedTuple`` is, with these methods.

    A row must be treated by itself. The methods are called while the graph is traced.
    """

    @property
    def eos_token_id(self) -> tf.Tensor:
        """int32 ``[B, E]``, the tokens that end a text; -1 for none."""

    def initial_state(self, history: tf.Tensor, length: tf.Tensor) -> ConstraintState:
        """Return the state after the prompts, int32 ``[B, W]`` and ``[B]``."""

    def apply(
        self, state: ConstraintState, logits: tf.Tensor, history: tf.Tensor, length: tf.Tensor, new: tf.Tensor
    ) -> tf.Tensor:
        """Return the logits float32 ``[B, V]`` after the constraints, as ``apply_constraints`` does; V must be static.

        It is called in every turn of the loop, also before a prompt is read to its end. ``state`` has the tokens that
        were generated so far; a caller of ``decode`` may have appended others, which only the history has.
        """

    def update(self, state: ConstraintState, token: tf.Tensor) -> ConstraintState:
        """Return the state after ``token``, int32 ``[B]``; it is kept for the rows that drew it."""


class Constraints(NamedTuple):
    """The constraints of the signatures, which have no state.

    Attributes, one value per row unless said:
        repetition_penalty: float32 ``[B]``; the logit of a token of the history is divided by it, or multiplied when
            it is negative (Keskar et al. 2019 as transformers has it); 1 is off.
        no_repeat_ngram_size: int32 ``[B]``; no sequence of so many tokens occurs twice; 0 is off.
        min_new_tokens: int32 ``[B]``; no end of text before so many new tokens.
        eos_token_id: int32 ``[B, E]``, the tokens that end a text; -1 for none.
        suppress_tokens: int32 ``[B, K]``, tokens that are never drawn; -1 for none.
    """

    repetition_penalty: tf.Tensor
    no_repeat_ngram_size: tf.Tensor
    min_new_tokens: tf.Tensor
    eos_token_id: tf.Tensor
    suppress_tokens: tf.Tensor

    def initial_state(self, history: tf.Tensor, length: tf.Tensor) -> ConstraintState:
        """Return the empty state."""
        return {}

    def apply(
        self, state: ConstraintState, logits: tf.Tensor, history: tf.Tensor, length: tf.Tensor, new: tf.Tensor
    ) -> tf.Tensor:
        """Call ``apply_constraints``."""
        return apply_constraints(logits, self, history, length, new)

    def update(self, state: ConstraintState, token: tf.Tensor) -> ConstraintState:
        """Return the empty state."""
        return state


def where_rows(rows: tf.Tensor, new: Any, old: Any) -> Any:
    """Return ``new`` in the rows, bool ``[B]``, and ``old`` in the others, of all tensors of a nested structure."""
    return tf.nest.map_structure(
        lambda a, b: tf.where(tf.reshape(rows, [-1] + [1] * (a.shape.rank - 1)), a, b), new, old
    )


def apply_constraints(
    logits: tf.Tensor, constraints: Constraints, history: tf.Tensor, length: tf.Tensor, new: tf.Tensor
) -> tf.Tensor:
    """Return the logits float32 ``[B, V]`` after all constraints; ``new`` int32 ``[B]`` counts generated tokens."""
    too_early = new < constraints.min_new_tokens

    def penalise(x: tf.Tensor) -> tf.Tensor:
        return repetition(x, constraints.repetition_penalty, history, length)

    def ngrams(x: tf.Tensor) -> tf.Tensor:
        return no_repeat_ngrams(x, constraints.no_repeat_ngram_size, history, length)

    def end(x: tf.Tensor) -> tf.Tensor:
        return forbid(x, tf.where(too_early[:, tf.newaxis], constraints.eos_token_id, -1))

    def suppress(x: tf.Tensor) -> tf.Tensor:
        return forbid(x, constraints.suppress_tokens)

    steps = (
        (tf.reduce_any(constraints.repetition_penalty != 1.0), penalise),
        (tf.reduce_any(constraints.no_repeat_ngram_size > 0), ngrams),
        (tf.reduce_any(too_early), end),
        (tf.reduce_any(constraints.suppress_tokens >= 0), suppress),
    )

    def apply_all() -> tf.Tensor:
        x = logits
        for needed, step in steps:
            x = tf.cond(needed, lambda step=step, x=x: step(x), lambda x=x: x)
        return x

    needed = tf.reduce_any(tf.stack([needed for needed, _ in steps]))
    return tf.ensure_shape(tf.cond(needed, apply_all, lambda: logits), logits.shape)


def repetition(logits: tf.Tensor, penalty: tf.Tensor, history: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Logits of tokens that occur in the history, divided by ``penalty`` where positive, else multiplied."""
    batch, width = tf.unstack(tf.shape(history))
    # Behind a row's end its first token stands in: it is in the history anyway.
    own = tf.where(tf.range(width) < length[:, tf.newaxis], history, history[:, :1])
    score = tf.gather(logits, own, axis=1, batch_dims=1)
    factor = penalty[:, tf.newaxis]
    changed = tf.where(score < 0, score * factor, score / factor)
    # An infinite logit would make the sum of the probabilities NaN, and the draw meaningless.
    changed = tf.clip_by_value(changed, tf.float32.min, tf.float32.max)
    row = tf.tile(tf.range(batch)[:, tf.newaxis], [1, width])
    return tf.tensor_scatter_nd_update(logits, tf.stack([row, own], axis=-1), changed)


def no_repeat_ngrams(logits: tf.Tensor, size: tf.Tensor, history: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Forbids every token that would complete a sequence of ``size`` tokens which the history has already."""
    width = tf.shape(history)[1]
    column = tf.range(width)[tf.newaxis]
    last = length[:, tf.newaxis]

    def compare(back: tf.Tensor, repeats: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Column c stays a candidate while the token ``back`` before c equals the one ``back`` before the end."""
        there = tf.gather(history, tf.maximum(column[0] - back, 0), axis=1)
        here = tf.gather(history, tf.maximum(last - back, 0), axis=1, batch_dims=1)
        same = (there == here) & (column >= back)
        return back + 1, repeats & (same | (back >= size[:, tf.newaxis]))

    possible = (size > 0) & (length >= size - 1)
    # Rows that are too short have nothing to compare: a size of two thousand million must not be that many turns.
    most = tf.reduce_max(tf.where(possible, size, 0))
    _, repeats = tf.while_loop(
        lambda back, _: back < most,
        compare,
        (tf.constant(1), (column < last) & possible[:, tf.newaxis]),
        parallel_iterations=1,
    )
    return forbid(logits, tf.where(repeats, history, -1))


def forbid(logits: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Set the logits of ``tokens`` int32 ``[B, K]`` to -inf; a negative one stands for none."""
    batch, vocabulary = tf.shape(logits)[0], logits.shape[-1]
    row = tf.tile(tf.range(batch)[:, tf.newaxis], [1, tf.shape(tokens)[1]])
    place = tf.stack([row, tf.where(tokens >= 0, tokens, vocabulary)], axis=-1)
    marked = tf.scatter_nd(place, tf.ones_like(row, tf.float32), tf.stack([batch, vocabulary + 1]))
    return tf.where(marked[:, :vocabulary] > 0, -float("inf"), logits)
