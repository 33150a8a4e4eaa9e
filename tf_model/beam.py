"""Beam search in the graph: the most probable continuations, instead of one that is drawn.

The definition is that of transformers 5 (``GenerationMixin._beam_search`` without sampling). Each row continues
``num_beams`` texts at once. A turn looks at the best of all their continuations by one token:

- Continuations that end (at an end of text, or at the number of tokens) and are among the best ``num_beams`` compete
  for the row's results. Their score is the sum of their log-probabilities divided by length ** ``length_penalty``; the
  length counts new tokens.
- The best ``num_beams`` of the other continuations are the beams of the next turn.

As in ``generation.py``, prefill and decoding are the same nodes of one loop body: the first turn reads each prompt, as
one beam per row, and the later turns read a token per beam. Every turn begins with a copy of the cache in which each
beam finds the keys and values of the beam that it continues, so a prompt is read once for any number of beams.

A turn treats every row by itself and leaves a row alone that has stopped: a row's results do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_model import cache as kv
from tf_model.generation import Step
from tf_model.logits_processors import ConstraintState, LogitsProcessor, where_rows

HEURISTIC, WHEN_FULL, NEVER = 0, 1, 2
"""``early_stopping`` of transformers: False, True and "never"."""

_NOTHING = -1e9
"""transformers' score for what must not be chosen: below every sum of log-probabilities, above -inf."""


class BeamRequest(NamedTuple):
    """A request for beam search, for a batch of rows. Every field is one value per row unless it is called a scalar.

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
    constraints: LogitsProcessor


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
    """The best texts of each row that have ended, C of them.

    Attributes:
        sequences: int32 ``[B, C, W]``.
        lengths: int32 ``[B, C]``.
        scores: float32 ``[B, C]``.
        taken: bool ``[B, C]``; a place that is not taken has the score -1e9 and the prompt.
    """

    sequences: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor
    taken: tf.Tensor


class _Candidates(NamedTuple):
    """The best continuations of each row's beams by one token, C of them, the best one first.

    Attributes:
        history: int32 ``[B, C, W]``, the beam that is continued, and the new token.
        token: int32 ``[B, C]``, the new token.
        source: int32 ``[B, C]``, the beam that is continued, numbered over all rows: its row of the cache.
        sums: float32 ``[B, C]``, sums of log-probabilities.
        ended: bool ``[B, C]``, whether the text ends here.
    """

    history: tf.Tensor
    token: tf.Tensor
    source: tf.Tensor
    sums: tf.Tensor
    ended: tf.Tensor


class _State(NamedTuple):
    """What changes from turn to turn; each row has n beams, 1 in the first turn and ``num_beams`` later.

    Attributes:
        number: int32 scalar, of the turn, that is of the new tokens of every beam.
        history: int32 ``[B * n, W]``.
        sums: float32 ``[B, n]``, sums of log-probabilities.
        source: int32 ``[B * n]``, the row of ``cache`` that each beam continues.
        results: what has ended.
        running: bool ``[B]``.
        cache: keys and values of the beams of the turn before.
        constraint_state: what the constraints remember of each beam, ``[B * n, ...]`` by name.
    """

    number: tf.Tensor
    history: tf.Tensor
    sums: tf.Tensor
    source: tf.Tensor
    results: _Results
    running: tf.Tensor
    cache: tf.Tensor
    constraint_state: ConstraintState


def beam_search(
    step: Step,
    allocate: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    n_positions: int,
    request: BeamRequest,
    pad_token_id: int,
) -> Beams:
    """Find the best continuations of every row of a batch.

    Args:
        step, allocate: as the model's methods of these names.
        n_positions: most tokens that the model sees at once.
        request: prompts and parameters.
        pad_token_id: fills a sequence after its end.
    """
    search = _Search(step, allocate, n_positions, request)
    (state,) = tf.while_loop(
        lambda state: tf.reduce_any(state.running),
        lambda state: (search.turn(state),),
        (search.first,),
        shape_invariants=(_shapes(search.first),),
        parallel_iterations=1,  # caches are written in place: turns must not overlap
    )
    sequences, lengths, scores, _ = (values[:, : request.num_return_sequences] for values in state.results)
    sequences = tf.where(tf.range(search.width) < lengths[:, :, tf.newaxis], sequences, pad_token_id)
    return Beams(tf.reshape(sequences, [-1, search.width]), tf.reshape(lengths, [-1]), tf.reshape(scores, [-1]))


class _Search:
    """What is the same in all turns of a beam search, and the steps of a turn: expand, finish, keep, should_stop."""

    def __init__(
        self,
        step: Step,
        allocate: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        n_positions: int,
        request: BeamRequest,
    ) -> None:
        self.step, self.request = step, request
        self.batch, size = tf.unstack(tf.shape(request.input_ids))
        self.width = size + tf.reduce_max(request.max_new_tokens)
        self.capacity = kv.capacity_for(self.width, n_positions)
        # A beam has at most as many continuations that end as there are ends of text: among so many candidates there
        # are num_beams that do not end.
        ends = tf.reduce_max(tf.reduce_sum(tf.cast(request.constraints.eos_token_id >= 0, tf.int32), axis=-1))
        self.enough = request.num_beams * tf.maximum(2, 1 + ends)
        self.first = _start(request, self.width, allocate(self.batch, self.capacity))
        self.rows = tf.shape(self.first.cache)[1] // self.batch

    def turn(self, state: _State) -> _State:
        """Continue the beams of every row by one token."""
        each = tf.shape(state.sums)[1]
        constraints = tf.nest.map_structure(lambda values: tf.repeat(values, each, axis=0), self.request.constraints)
        candidates, cache = self.expand(state, each, constraints)
        results = self.finish(state, candidates)
        return self.keep(state, candidates, results, cache, constraints)

    def expand(self, state: _State, each: tf.Tensor, constraints: LogitsProcessor) -> tuple[_Candidates, tf.Tensor]:
        """Read the beams' last tokens; return their best continuations and the cache, which has what was read."""
        request, batch = self.request, self.batch
        length = tf.repeat(request.input_lengths + state.number, each)
        cached_length = tf.where(state.number > 0, length - 1, 0)
        count = tf.where(tf.repeat(state.running, each), length - cached_length, 0)
        column = tf.range(tf.maximum(tf.reduce_max(count), 1))[tf.newaxis]
        place = tf.minimum(cached_length[:, tf.newaxis] + column, self.width - 1)
        tokens = tf.gather(state.history, place, axis=1, batch_dims=1)
        own = kv.reorder_rows(state.cache, state.source, self.rows)
        logits, cache = self.step(tokens, cached_length, count, own, self.capacity)

        new = tf.fill(tf.shape(length), state.number)
        logprobs = constraints.apply(state.constraint_state, tf.nn.log_softmax(logits), state.history, length, new)
        sums = tf.reshape(state.sums, [-1, 1]) + logprobs
        best = tf.math.top_k(tf.reshape(sums, [batch, -1]), tf.minimum(self.enough, each * logits.shape[-1]))
        token = best.indices % logits.shape[-1]
        source = tf.range(batch)[:, tf.newaxis] * each + best.indices // logits.shape[-1]

        written = tf.range(self.width) == (request.input_lengths + state.number)[:, tf.newaxis, tf.newaxis]
        history = tf.where(written, token[:, :, tf.newaxis], tf.gather(state.history, source))
        ended = tf.reduce_any(token[:, :, tf.newaxis] == request.constraints.eos_token_id[:, tf.newaxis, :], axis=-1)
        ended |= (state.number + 1 >= request.max_new_tokens)[:, tf.newaxis]
        return _Candidates(history, token, source, best.values, ended), cache

    def finish(self, state: _State, candidates: _Candidates) -> _Results:
        """Return the results of every row, those of the candidates that end here included."""
        number, beams = state.number + 1, self.request.num_beams
        among_best = candidates.ended & (tf.range(tf.shape(candidates.token)[1]) < beams)
        found = _Results(
            candidates.history,
            tf.fill(tf.shape(candidates.token), number) + self.request.input_lengths[:, tf.newaxis],
            tf.where(among_best, self.penalised(candidates.sums, number), _NOTHING),
            among_best,
        )
        results: _Results = where_rows(state.running, _best_of(state.results, found, beams), state.results)
        return results

    def keep(
        self, state: _State, candidates: _Candidates, results: _Results, cache: tf.Tensor, constraints: LogitsProcessor
    ) -> _State:
        """Return the state of the next turn, whose beams are the best candidates that do not end."""
        beams = self.request.num_beams
        going = tf.math.top_k(candidates.sums + tf.where(candidates.ended, _NOTHING, 0.0), beams)

        def pick(values: tf.Tensor, shape: Any) -> tf.Tensor:
            return tf.reshape(tf.gather(values, going.indices, axis=1, batch_dims=1), shape)

        source = pick(candidates.source, [-1])
        memory = state.constraint_state
        if memory:  # else no operation for it
            own = tf.nest.map_structure(lambda values: tf.gather(values, source), constraints)
            memory = tf.nest.map_structure(lambda values: tf.gather(values, source), memory)
            memory = own.update(memory, pick(candidates.token, [-1]))
        return _State(
            state.number + 1,
            pick(candidates.history, [-1, self.width]),
            going.values,
            source,
            results,
            state.running & ~self.should_stop(state.number + 1, candidates, results, going.values[:, :1]),
            cache,
            memory,
        )

    def should_stop(self, number: tf.Tensor, candidates: _Candidates, results: _Results, best: tf.Tensor) -> tf.Tensor:
        """Whether a row has the results that it keeps, bool ``[B]``; ``best`` is the best beam's sum, ``[B, 1]``."""
        request = self.request
        full = tf.reduce_all(results.taken, axis=-1)
        to_limit = (request.early_stopping == NEVER) & (request.length_penalty > 0)
        hope = self.penalised(best, tf.where(to_limit, request.max_new_tokens, number))[:, 0]
        worst = tf.where(full, tf.reduce_min(results.scores, axis=-1), _NOTHING)
        when_full = full & (request.early_stopping == WHEN_FULL)
        return tf.reduce_all(candidates.ended, axis=-1) | when_full | (hope <= worst)

    def penalised(self, sums: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        """Return the scores ``[B, C]`` of sums ``[B, C]`` over ``length`` new tokens, one per row or a scalar."""
        return sums / tf.pow(tf.cast(length, tf.float32), self.request.length_penalty)[:, tf.newaxis]


def _start(request: BeamRequest, width: tf.Tensor, cache: tf.Tensor) -> _State:
    """Return one beam per row, its prompt, and no results: all that a row without new tokens is left with."""
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
    memory = request.constraints.initial_state(request.input_ids, request.input_lengths)
    return _State(tf.constant(0), history, tf.zeros([batch, 1]), tf.range(batch), results, running, cache, memory)


def _shapes(state: _State) -> _State:
    """Return shapes that hold for every turn: the number of beams changes after the first."""
    matrix = tf.TensorShape([None, None])
    return _State(
        number=state.number.shape,
        history=matrix,
        sums=matrix,
        source=tf.TensorShape([None]),
        results=_Results(tf.TensorShape([None, None, None]), matrix, matrix, matrix),
        running=tf.TensorShape([None]),
        cache=state.cache.shape,
        constraint_state={name: tf.TensorShape([None, *x.shape[1:]]) for name, x in state.constraint_state.items()},
    )


def _best_of(results: _Results, found: _Results, number: tf.Tensor) -> _Results:
    """Return the ``number`` best of both, the best one first."""
    kept = tf.math.top_k(tf.concat([results.scores, found.scores], axis=1), number).indices

    def pick(old: Any, new: Any) -> tf.Tensor:
        return tf.gather(tf.concat([old, new], axis=1), kept, axis=1, batch_dims=1)

    return _Results(*(pick(old, new) for old, new in zip(results, found, strict=True)))
