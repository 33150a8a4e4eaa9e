"""Beam search in the graph: the most probable continuations, instead of one that is drawn.

The definition is that of transformers 5 (``GenerationMixin._beam_search`` without sampling). Per row, ``num_beams``
texts are continued at once. Of all their continuations by one token the best are looked at: those that end (at an end
of text, or at the number of tokens) and are among the best ``num_beams`` compete for the row's results with the sum of
their log-probabilities divided by length ** ``length_penalty``, length counted in new tokens; the best ``num_beams`` of
the others go on.

As in ``generation.py``, prefill and decoding are the same nodes of one loop body: the first turn feeds each prompt, as
one beam per row, and the later ones a token per beam. Every turn begins with a copy of the cache in which each beam
finds what its predecessor has left, so a prompt is read once, whatever the number of beams.

A turn treats every row for itself, and one that has stopped is left alone: a row's results are those that it has when
it runs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_model import cache as kv
from tf_model.generation import Step
from tf_model.logits_processors import Constraints, apply_constraints

HEURISTIC, WHEN_FULL, NEVER = 0, 1, 2
"""``early_stopping`` of transformers: False, True and "never"."""

_NOTHING = -1e9
"""transformers' score for what must not be chosen: below every sum of log-probabilities, above -inf."""


class BeamRequest(NamedTuple):
    """What is searched for, for a batch of rows. Everything not said to be a scalar is one value per row.

    Attributes:
        input_ids: int32 ``[B, S]``, right-padded with any valid id.
        input_lengths: int32 ``[B]``, 1 to S.
        max_new_tokens: int32 ``[B]``, 0 or more; input_lengths + max_new_tokens is at most n_positions: there is no
            window that moves. Rows may differ, because all beams of a row have the same length and rows do not meet.
        num_beams: int32, a scalar, 1 to the size of the vocabulary.
        num_return_sequences: int32, a scalar, 1 to num_beams.
        length_penalty: float32 ``[B]``; the power of the length that a sum of log-probabilities is divided by: 0 for
            the sum itself, 1 for the mean; larger favours longer texts.
        early_stopping: int32 ``[B]`` or a scalar. When does a row with ``num_beams`` results stop? 1: at once; 0: when
            the best running beam, were it to end now, is not better than the worst result; 2: when it could not become
            better, which with a positive ``length_penalty`` is judged by its score at ``max_new_tokens``.
        constraints: applied to the log-probabilities, which are not normalised again.
    """

    input_ids: tf.Tensor
    input_lengths: tf.Tensor
    max_new_tokens: tf.Tensor
    num_beams: tf.Tensor
    num_return_sequences: tf.Tensor
    length_penalty: tf.Tensor
    early_stopping: tf.Tensor
    constraints: Constraints


class Beams(NamedTuple):
    """R = B * num_return_sequences: the results of row 0, the best one first, then those of row 1, and so on.

    Attributes:
        sequences: int32 ``[R, S + N]``, N the largest ``max_new_tokens``: prompt and continuation without a gap
            between, the end of text included, then padding.
        lengths: int32 ``[R]``, tokens of each sequence without the padding.
        scores: float32 ``[R]``, the sum of the log-probabilities over length ** ``length_penalty``; 0 where
            ``max_new_tokens`` is 0, and -1e9, with the bare prompt, where the constraints leave no other text.
    """

    sequences: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor


class _Results(NamedTuple):
    """The best texts of each row that have ended: int32 ``[B, num_beams, W]`` and ``[B, num_beams]``, float32 and bool
    ``[B, num_beams]``. A place that is not ``taken`` has the score -1e9 and the prompt."""

    sequences: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor
    taken: tf.Tensor


class _State(NamedTuple):
    """``history`` int32 ``[B * n, W]`` and ``scores`` float32 ``[B, n]`` are the beams, n = 1 in the first turn and
    num_beams later. ``source`` int32 ``[B * n]``: the row of ``cache`` that each continues. ``running``: bool ``[B]``.
    ``number``: of the turn, that is of the new tokens of every beam."""

    number: tf.Tensor
    history: tf.Tensor
    scores: tf.Tensor
    source: tf.Tensor
    results: _Results
    running: tf.Tensor
    cache: tf.Tensor


def beam_search(
    step: Step,
    allocate: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    n_positions: int,
    request: BeamRequest,
    pad_token_id: int,
) -> Beams:
    """Finds the best continuations of every row of a batch.

    Args:
        step, allocate: as the model's methods of these names.
        n_positions: most tokens that the model sees at once.
        request: prompts and parameters.
        pad_token_id: what stands behind the end of a sequence.
    """
    batch, size = tf.unstack(tf.shape(request.input_ids))
    beams, eos, limit = request.num_beams, request.constraints.eos_token_id, request.max_new_tokens
    width = size + tf.reduce_max(limit)
    capacity = kv.capacity_for(width, n_positions)
    # A beam has at most as many continuations that end as there are ends of text: so many candidates hold num_beams
    # that do not.
    ends = tf.reduce_max(tf.reduce_sum(tf.cast(eos >= 0, tf.int32), axis=-1))
    enough = beams * tf.maximum(2, 1 + ends)

    start = _start(request, width, allocate(batch, capacity))
    rows = tf.shape(start.cache)[1] // batch

    def body(state: _State) -> tuple[_State]:
        each = tf.shape(state.scores)[1]
        length = tf.repeat(request.input_lengths + state.number, each)
        cached_length = tf.where(state.number > 0, length - 1, 0)
        count = tf.where(tf.repeat(state.running, each), length - cached_length, 0)
        column = tf.range(tf.maximum(tf.reduce_max(count), 1))[tf.newaxis]
        place = tf.minimum(cached_length[:, tf.newaxis] + column, width - 1)
        tokens = tf.gather(state.history, place, axis=1, batch_dims=1)
        logits, cache = step(tokens, cached_length, count, kv.reorder_rows(state.cache, state.source, rows), capacity)

        constraints = Constraints(*(tf.repeat(values, each, axis=0) for values in request.constraints))
        new = tf.fill(tf.shape(length), state.number)
        logprobs = apply_constraints(tf.nn.log_softmax(logits), constraints, state.history, length, new)
        sums = tf.reshape(state.scores, [-1, 1]) + logprobs
        candidates = tf.minimum(enough, each * logits.shape[-1])
        best = tf.math.top_k(tf.reshape(sums, [batch, -1]), candidates)
        token = best.indices % logits.shape[-1]
        source = tf.range(batch)[:, tf.newaxis] * each + best.indices // logits.shape[-1]

        # [B, candidates, W]: as the beam that is continued, and the new token
        written = tf.range(width) == (request.input_lengths + state.number)[:, tf.newaxis, tf.newaxis]
        history = tf.where(written, token[:, :, tf.newaxis], tf.gather(state.history, source))
        number = state.number + 1
        ended = tf.reduce_any(token[:, :, tf.newaxis] == eos[:, tf.newaxis, :], axis=-1)
        ended |= (number >= limit)[:, tf.newaxis]

        def penalised(scores: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
            return scores / tf.pow(tf.cast(length, tf.float32), request.length_penalty)[:, tf.newaxis]

        among_best = ended & (tf.range(candidates) < beams)
        found = _Results(
            history,
            tf.fill(tf.shape(token), number) + request.input_lengths[:, tf.newaxis],
            tf.where(among_best, penalised(best.values, number), _NOTHING),
            among_best,
        )
        results = _where(state.running, _best_of(state.results, found, beams), state.results)

        going = tf.math.top_k(best.values + tf.where(ended, _NOTHING, 0.0), beams)
        full = tf.reduce_all(results.taken, axis=-1)
        horizon = tf.where((request.early_stopping == NEVER) & (request.length_penalty > 0), limit, number)
        hope = penalised(going.values[:, :1], horizon)[:, 0]
        worst = tf.where(full, tf.reduce_min(results.scores, axis=-1), _NOTHING)
        stops = tf.reduce_all(ended, axis=-1) | (full & (request.early_stopping == WHEN_FULL)) | (hope <= worst)
        return (
            _State(
                number,
                tf.reshape(tf.gather(history, going.indices, axis=1, batch_dims=1), [-1, width]),
                going.values,
                tf.reshape(tf.gather(source, going.indices, axis=1, batch_dims=1), [-1]),
                results,
                state.running & ~stops,
                cache,
            ),
        )

    (state,) = tf.while_loop(
        lambda state: tf.reduce_any(state.running),
        body,
        (start,),
        shape_invariants=(_shapes(start),),
        parallel_iterations=1,  # caches are written in place: turns must not overlap
    )
    sequences, lengths, scores, _ = (values[:, : request.num_return_sequences] for values in state.results)
    sequences = tf.where(tf.range(width) < lengths[:, :, tf.newaxis], sequences, pad_token_id)
    return Beams(tf.reshape(sequences, [-1, width]), tf.reshape(lengths, [-1]), tf.reshape(scores, [-1]))


def _start(request: BeamRequest, width: tf.Tensor, cache: tf.Tensor) -> _State:
    """One beam per row, its prompt, and no results: what a row without new tokens is left with."""
    batch, size = tf.unstack(tf.shape(request.input_ids))
    history = tf.pad(request.input_ids, [[0, 0], [0, width - size]])
    places = tf.stack([batch, request.num_beams])
    running = request.max_new_tokens > 0
    results = _Results(
        tf.repeat(history[:, tf.newaxis], request.num_beams, axis=1),
        tf.broadcast_to(request.input_lengths[:, tf.newaxis], places),
        tf.broadcast_to(tf.where(running, _NOTHING, 0.0)[:, tf.newaxis], places),
        tf.zeros(places, tf.bool),
    )
    return _State(tf.constant(0), history, tf.zeros([batch, 1]), tf.range(batch), results, running, cache)


def _shapes(state: _State) -> _State:
    """Shapes that hold for every turn: the number of beams changes after the first."""
    matrix = tf.TensorShape([None, None])
    return _State(
        number=state.number.shape,
        history=matrix,
        scores=matrix,
        source=tf.TensorShape([None]),
        results=_Results(tf.TensorShape([None, None, None]), matrix, matrix, matrix),
        running=tf.TensorShape([None]),
        cache=state.cache.shape,
    )


def _where(rows: tf.Tensor, new: _Results, old: _Results) -> _Results:
    """``new`` in the rows, bool ``[B]``, and ``old`` in the others."""
    return _Results(
        *(tf.where(tf.reshape(rows, [-1] + [1] * (a.shape.rank - 1)), a, b) for a, b in zip(new, old, strict=True))
    )


def _best_of(results: _Results, found: _Results, number: tf.Tensor) -> _Results:
    """The ``number`` best of both, the best one first."""
    kept = tf.math.top_k(tf.concat([results.scores, found.scores], axis=1), number).indices

    def pick(old: Any, new: Any) -> tf.Tensor:
        return tf.gather(tf.concat([old, new], axis=1), kept, axis=1, batch_dims=1)

    return _Results(*(pick(old, new) for old, new in zip(results, found, strict=True)))
