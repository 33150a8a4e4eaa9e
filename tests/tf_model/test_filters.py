"""What each filter and constraint leaves, against the classes of transformers: the same tokens, exactly.

Logits are random float32 without ties. transformers is given them as float64, which settles where the sum ends that
top_p and typical_p bound: in float32 that depends on the order of the additions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from transformers.generation import logits_process as theirs

from tests.tf_model.test_beam import lists
from tests.tf_model.test_sampling import parameters
from tf_model import logits_processors as processors
from tf_model import sampling
from tf_model.logits_processors import Constraints
from tf_model.sampling import CANDIDATES, Sampling

SHAPES = list(itertools.product([50, CANDIDATES - 1, CANDIDATES, CANDIDATES + 1, 5000, 30_000], [0.01, 1.0, 6.0]))
"""Vocabularies, and standard deviations of the logits: nearly flat, in between, peaked."""

each_shape = pytest.mark.parametrize(("vocabulary", "spread"), SHAPES)


@cache
def compiled(vocabulary: int) -> Callable[..., tf.Tensor]:
    real, whole, seed = (tf.TensorSpec([None], dtype) for dtype in (tf.float32, tf.int32, tf.int64))
    return tf.function(
        sampling.filtered_probabilities,
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, vocabulary], tf.float32), Sampling(real, whole, real, real, real, seed),
        ],
    )  # fmt: skip


def kept(logits: np.ndarray, **values: Any) -> np.ndarray:
    """Which tokens are kept, bool ``[B, V]``."""
    return compiled(logits.shape[1])(tf.constant(logits), parameters(len(logits), **values)).numpy() > 0


def kept_by(logits: np.ndarray, *warpers: Callable[..., torch.Tensor]) -> np.ndarray:
    scores = torch.from_numpy(logits.astype(np.float64))
    for warper in warpers:
        scores = warper(None, scores)
    return torch.isfinite(scores).numpy()


def single(value: float) -> float:
    """A parameter as float32 holds it."""
    return float(np.float32(value))


def random_logits(seed: Sequence[int], rows: int, vocabulary: int, spread: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, vocabulary)) * spread).astype(np.float32)


@each_shape
def test_top_k(vocabulary: int, spread: float) -> None:
    logits = random_logits([1, vocabulary], 3, vocabulary, spread)
    for k in (1, 2, 20, CANDIDATES - 1, CANDIDATES, CANDIDATES + 1, vocabulary - 1, vocabulary, 10**6):
        found = kept(logits, top_k=k)
        np.testing.assert_array_equal(found, kept_by(logits, theirs.TopKLogitsWarper(k)), str(k))
        if spread > 0.5:
            assert (found.sum(axis=1) == min(k, vocabulary)).all()  # there are no ties indeed


@each_shape
def test_top_p(vocabulary: int, spread: float) -> None:
    logits = random_logits([2, vocabulary], 3, vocabulary, spread)
    for p in (1e-6, 0.1, 0.5, 0.9, 0.97, 0.999):
        expected = kept_by(logits, theirs.TopPLogitsWarper(single(p)))
        np.testing.assert_array_equal(kept(logits, top_p=p), expected, str(p))


@each_shape
def test_min_p(vocabulary: int, spread: float) -> None:
    logits = random_logits([3, vocabulary], 3, vocabulary, spread)
    for p in (1e-6, 0.01, 0.3, 0.99, 1.0):
        expected = kept_by(logits, theirs.MinPLogitsWarper(single(p)))
        np.testing.assert_array_equal(kept(logits, min_p=p), expected, str(p))


@each_shape
def test_typical_p(vocabulary: int, spread: float) -> None:
    logits = random_logits([4, vocabulary], 3, vocabulary, spread)
    for p in (1e-6, 0.1, 0.5, 0.9, 0.97, 0.999):
        expected = kept_by(logits, theirs.TypicalLogitsWarper(single(p)))
        np.testing.assert_array_equal(kept(logits, typical_p=p), expected, str(p))


def test_all_off_keeps_everything() -> None:
    logits = random_logits([5], 2, 3000, 3.0)
    assert kept(logits).all()
    np.testing.assert_allclose(
        compiled(3000)(tf.constant(logits), parameters(2)), np.exp(logits - logits.max(axis=1, keepdims=True)), 1e-5
    )


@each_shape
def test_combinations_in_the_order_of_transformers(vocabulary: int, spread: float) -> None:
    """Each row with its own temperature and its own set of filters, some tokens forbidden before."""
    rows = 24
    rng = np.random.default_rng([6, vocabulary, int(spread * 100)])
    logits = random_logits([7, vocabulary], rows, vocabulary, spread)
    for row in range(0, rows, 3):
        logits[row, rng.permutation(vocabulary)[: rng.integers(1, vocabulary)]] = -np.inf
    values = {
        "temperature": rng.uniform(0.7, 2.0, rows),
        "top_k": rng.choice([0, 30, CANDIDATES - 1, CANDIDATES, CANDIDATES + 50, 4000], rows),
        "top_p": rng.choice([0.3, 0.8, 0.95, 1.0], rows),
        "min_p": rng.choice([0.0, 0.001, 0.2], rows),
        "typical_p": rng.choice([0.2, 0.9, 1.0], rows),
    }
    expected = []
    for row in range(rows):
        t, k, p, m, y = (single(value[row]) for value in values.values())
        warpers = [
            theirs.TemperatureLogitsWarper(t),
            *([theirs.TopKLogitsWarper(int(k))] if k else []),
            *([theirs.TopPLogitsWarper(p)] if p < 1 else []),
            *([theirs.MinPLogitsWarper(m)] if m else []),
            *([theirs.TypicalLogitsWarper(y)] if y < 1 else []),
        ]
        expected.append(kept_by(logits[row : row + 1], *warpers)[0])
    np.testing.assert_array_equal(kept(logits, **values), np.array(expected))
    for row in range(rows):  # alone: a row that needs the whole vocabulary sorted has it sorted for all
        one = slice(row, row + 1)
        found = kept(logits[one], **{name: value[one] for name, value in values.items()})
        np.testing.assert_array_equal(found[0], expected[row], str(row))


def test_equal_tokens_are_kept_together() -> None:
    """At a tie transformers keeps by top_k all equals, and so do we by top_p too: no index is preferred."""
    logits = np.zeros((1, 3000), np.float32)
    assert kept(logits, top_k=1).all()
    assert kept(logits, top_p=0.5).all()
    logits[0, 7] = 3.0
    assert np.flatnonzero(kept(logits, top_k=1)[0]).tolist() == [7]


VOCABULARY = 40
apply_constraints = tf.function(
    processors.apply_constraints,
    autograph=False,
    input_signature=[
        tf.TensorSpec([None, VOCABULARY], tf.float32),
        Constraints(
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, None], tf.int32),
        ),
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None], tf.int32),
    ],
)


def processed(logits: np.ndarray, histories: Sequence[Sequence[int]], prompt: int = 1, **values: Any) -> np.ndarray:
    """Logits after the constraints; histories are padded with a token that would matter if it were read."""
    rows = len(logits)

    def each(name: str, default: float, dtype: tf.DType) -> tf.Tensor:
        return tf.constant(np.broadcast_to(values.get(name, default), rows), dtype)

    length = tf.constant([len(history) for history in histories])
    return apply_constraints(
        tf.constant(logits),
        Constraints(
            each("repetition_penalty", 1.0, tf.float32),
            each("no_repeat_ngram_size", 0, tf.int32),
            each("min_new_tokens", 0, tf.int32),
            lists(values.get("eos_token_id", [[]] * rows), -1),
            lists(values.get("suppress_tokens", [[]] * rows), -1),
        ),
        lists(histories, 3),
        length,
        length - prompt,
    ).numpy()


def processed_by(logits: np.ndarray, histories: Sequence[Sequence[int]], *steps: Sequence[Any]) -> np.ndarray:
    """Row i through the processors ``steps[i]``."""
    result = []
    for row, history, chain in zip(torch.from_numpy(logits), histories, steps, strict=True):
        scores = row[None]
        for step in chain:
            scores = step(torch.tensor([history]), scores)
        result.append(scores[0].numpy())
    return np.array(result)


def random_histories(rng: np.random.Generator, rows: int, alphabet: int = 4) -> list[list[int]]:
    """Of few different tokens, so that sequences occur again; one of a single token."""
    return [[1]] + [rng.integers(0, alphabet, rng.integers(2, 25)).tolist() for _ in range(rows - 1)]


@pytest.mark.parametrize("penalty", [0.5, 0.9, 1.0, 1.2, 10.0])
def test_repetition_penalty(penalty: float) -> None:
    rng = np.random.default_rng(10)
    histories = random_histories(rng, 12, alphabet=20)
    logits = random_logits([11], 12, VOCABULARY, 3.0)
    expected = processed_by(logits, histories, *[[theirs.RepetitionPenaltyLogitsProcessor(single(penalty))]] * 12)
    np.testing.assert_allclose(processed(logits, histories, repetition_penalty=penalty), expected, rtol=1e-6)
    assert (expected != logits).any() == (penalty != 1.0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 30])
def test_no_repeat_ngrams(size: int) -> None:
    rng = np.random.default_rng([12, size])
    forbidden = 0
    for seed in range(10):
        histories = random_histories(rng, 12, alphabet=2 if size > 4 else 4)
        logits = random_logits([13, seed], 12, VOCABULARY, 3.0)
        expected = processed_by(logits, histories, *[[theirs.NoRepeatNGramLogitsProcessor(size)]] * 12)
        np.testing.assert_array_equal(processed(logits, histories, no_repeat_ngram_size=size), expected)
        forbidden += np.isinf(expected).sum()
    assert (forbidden > 0) == (size < 30)


def test_min_new_tokens_and_suppress_tokens() -> None:
    rng = np.random.default_rng(14)
    histories = random_histories(rng, 20)
    logits = random_logits([15], 20, VOCABULARY, 3.0)
    prompt = 2
    histories[0] = [1, 2]  # nothing generated yet
    least = rng.integers(0, 30, 20)
    eos = [rng.integers(0, VOCABULARY, i % 4).tolist() for i in range(20)]
    suppressed = [rng.integers(0, VOCABULARY, i % 3).tolist() for i in range(20)]
    ends = [theirs.MinNewTokensLengthLogitsProcessor(prompt, int(n), e) for n, e in zip(least, eos, strict=True)]
    others = [theirs.SuppressTokensLogitsProcessor(tokens) for tokens in suppressed]
    np.testing.assert_array_equal(
        processed(logits, histories, prompt, min_new_tokens=least, eos_token_id=eos),
        processed_by(logits, histories, *[[step] for step in ends]),
    )
    np.testing.assert_array_equal(
        processed(logits, histories, prompt, suppress_tokens=suppressed),
        processed_by(logits, histories, *[[step] for step in others]),
    )


def test_all_constraints_at_once_each_row_with_its_own() -> None:
    for seed in range(20):
        rng = np.random.default_rng([16, seed])
        histories = random_histories(rng, 10, alphabet=6)
        logits = random_logits([17, seed], 10, VOCABULARY, 3.0)
        penalty = rng.choice([0.8, 1.0, 1.5], 10)
        size = rng.integers(0, 4, 10)
        least = rng.integers(0, 25, 10)
        eos = [rng.integers(0, 8, rng.integers(1, 4)).tolist() for _ in range(10)]
        suppressed = [rng.integers(0, VOCABULARY, rng.integers(0, 20)).tolist() for _ in range(10)]
        expected = processed_by(
            logits,
            histories,
            *[
                [
                    theirs.RepetitionPenaltyLogitsProcessor(single(penalty[i])),
                    *([theirs.NoRepeatNGramLogitsProcessor(int(size[i]))] if size[i] else []),
                    theirs.MinNewTokensLengthLogitsProcessor(1, int(least[i]), eos[i]),
                    theirs.SuppressTokensLogitsProcessor(suppressed[i]),
                ]
                for i in range(10)
            ],
        )
        found = processed(
            logits, histories, repetition_penalty=penalty, no_repeat_ngram_size=size, min_new_tokens=least,
            eos_token_id=eos, suppress_tokens=suppressed,
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_constraints_leave_the_logits_as_they_are() -> None:
    logits = random_logits([18], 4, VOCABULARY, 3.0)
    np.testing.assert_array_equal(processed(logits, random_histories(np.random.default_rng(19), 4)), logits)
