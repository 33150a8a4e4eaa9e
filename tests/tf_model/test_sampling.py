"""The draw of a token, against numpy and the statistics that it must have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from tf_model import sampling
from tf_model.sampling import Sampling


def chi_squared_p_value(counts: np.ndarray, expected: np.ndarray) -> float:
    """The probability of a deviation at least this large, were ``expected`` the truth."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0), torch.tensor(statistic / 2.0)))


def parameters(rows: int, **values: Any) -> Sampling:
    """Of so many rows: each value one for all, or one per row; what is not given is off."""
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "seed": 0}
    types = {"top_k": tf.int32, "seed": tf.int64}
    return Sampling(
        **{
            name: tf.constant(np.broadcast_to(values.get(name, default), rows), types.get(name, tf.float32))
            for name, default in off.items()
        }
    )


def draws(logits: np.ndarray, temperature: float, top_p: float, number: int) -> np.ndarray:
    """Counts of each token over ``number`` rows with the same logits and different seeds."""
    tokens = tf.function(sampling.sample_tokens)(
        tf.tile(tf.constant(logits[None], tf.float32), [number, 1]),
        parameters(number, temperature=temperature, top_p=top_p, seed=np.arange(number)),
        tf.constant(3),
    )
    return np.bincount(tokens.numpy(), minlength=len(logits))


def nucleus(probabilities: np.ndarray, top_p: float) -> set[int]:
    """Kept tokens by the definition: the most probable ones until their sum reaches top_p."""
    kept, total = set(), 0.0
    for token in np.argsort(-probabilities):
        if total >= top_p and kept:
            break
        kept.add(int(token))
        total += float(probabilities[token])
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_full_distribution(temperature: float) -> None:
    logits = np.random.default_rng(1).normal(size=40)
    expected = np.exp(logits / temperature)
    expected *= 20_000 / expected.sum()
    assert chi_squared_p_value(draws(logits, temperature, 1.0, 20_000), expected) > 1e-3


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.97])
def test_nucleus_distribution(top_p: float) -> None:
    logits = np.random.default_rng(2).normal(size=40) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum()
    kept = sorted(nucleus(probabilities, top_p))
    counts = draws(logits, 1.0, top_p, 20_000)
    assert set(np.flatnonzero(counts)) <= set(kept)
    expected = probabilities[kept] / probabilities[kept].sum() * 20_000
    if len(kept) > 1:
        assert chi_squared_p_value(counts[kept], expected) > 1e-3


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, 1), (0.39, 1), (0.4, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1.0, 4)],
)
def test_the_token_that_crosses_top_p_is_kept(top_p: float, kept: int) -> None:
    logits = tf.math.log([[0.2, 0.4, 0.1, 0.3]])
    assert int((sampling.filtered_probabilities(logits, parameters(1, top_p=top_p)).numpy() > 0).sum()) == kept


@pytest.mark.parametrize("spread", [0.001, 1.0, 8.0])
def test_large_vocabulary(spread: float) -> None:
    """Flat enough that the nucleus is larger than the candidates that are sorted first; and not."""
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(3, 5000)) * spread).astype(np.float32)
    top_p = np.array([0.3, 0.9, 1.0], np.float32)
    kept = tf.function(sampling.filtered_probabilities)(tf.constant(logits), parameters(3, top_p=top_p)).numpy()
    exact = np.exp(logits.astype(np.float64))
    exact /= exact.sum(axis=1, keepdims=True)
    for row, p in enumerate(top_p):
        assert set(np.flatnonzero(kept[row])) == nucleus(exact[row], p if p < 1 else 2.0)


def test_rows_have_their_own_parameters() -> None:
    logits = tf.tile(tf.constant([[0.0, 1.0, 2.0, 0.5]]), [4, 1])
    for seed in range(30):
        own = parameters(4, temperature=[0.0, 1e-30, 1.0, 5.0], top_p=[1.0, 1.0, 0.0, 1.0], seed=seed)
        tokens = sampling.sample_tokens(logits, own, tf.constant(0))
        assert tokens.numpy()[:3].tolist() == [2, 2, 2]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(4)
    logits = tf.constant(rng.normal(size=(16, 3000)), tf.float32)
    own = parameters(
        16, temperature=rng.uniform(0, 2, 16), top_k=rng.choice([0, 50, 2000], 16), top_p=rng.uniform(0.01, 1, 16),
        min_p=rng.choice([0, 0.01], 16), typical_p=rng.choice([0.5, 1.0], 16), seed=np.arange(16) % 5,
    )  # fmt: skip
    together = sampling.sample_tokens(logits, own, tf.constant(7)).numpy()
    for row in range(16):
        one = slice(row, row + 1)
        alone = sampling.sample_tokens(logits[one], Sampling(*(values[one] for values in own)), tf.constant(7)).numpy()
        assert alone[0] == together[row]


def test_uniform_is_uniform_and_independent_of_seed_and_step() -> None:
    seeds = tf.constant([0, 1, 2, -1, 2**62], tf.int64)
    numbers = np.array([sampling.uniform(seeds, tf.constant(step)) for step in range(2000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    correlation = np.corrcoef(numbers.T)
    assert np.abs(correlation - np.eye(5)).max() < 0.08
    for column in numbers.T:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        assert chi_squared_p_value(counts, np.full(20, 100.0)) > 1e-4
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.08


def splitmix(seed: int, step: int) -> float:
    """Number ``step`` of the sequence that the hashed ``seed`` starts: the published algorithm, in Python integers."""
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    gamma = 0x9E3779B97F4A7C15
    state = mix((seed + gamma) & mask)
    return (mix((state + (step + 1) * gamma) & mask) >> 24) / 2**40


def test_uniform_is_splitmix64() -> None:
    for seed, step in ((0, 0), (5, 3), (-7, 1000)):
        assert float(sampling.uniform(tf.constant([seed], tf.int64), tf.constant(step))[0]) == splitmix(seed, step)


@pytest.mark.parametrize("size", [1, 3, 256, 257, 2000, 30_000])
def test_a_draw_is_the_inverse_of_the_cumulated_weights(size: int) -> None:
    """Anywhere, and as near as can be to the bounds between groups, where the next token with a weight will do, too."""
    rng = np.random.default_rng(size)
    weights = (rng.random(size) ** 20 * (rng.random(size) > 0.5)).astype(np.float32)
    weights[size // 2] = 1
    weights[size // 2 + 1 : size // 2 + 300] = 0  # a group with nothing in it
    cumulated = np.cumsum(weights.astype(np.float64))
    total = cumulated[-1]
    quantiles = [0.0, 1 - 2.0**-40, *rng.random(200)]
    for bound in cumulated[255::256] / total:
        quantiles += [np.nextafter(bound, 0), bound, np.nextafter(bound, 1)]
    q = np.minimum(quantiles, 1 - 2.0**-40)
    found = tf.function(sampling._inverse_cdf)(tf.constant(np.tile(weights, (len(q), 1))), tf.constant(q)).numpy()
    assert (weights[found] > 0).all()
    below = cumulated[found] - weights[found]
    assert (below <= q * total * (1 + 1e-12)).all()
    assert (cumulated[found] >= q * total * (1 - 1e-12)).all()
    expected = np.searchsorted(cumulated, q[:202] * total, side="right")
    np.testing.assert_array_equal(found[:202], expected)


def test_rounding_does_not_lead_beyond_the_last_weight() -> None:
    """What is left for the group may be its whole sum, which was added up in another order."""
    index, left = sampling._first_beyond(tf.constant([[1.0, 2.0, 0.0]], tf.float64), tf.constant([[3.0]], tf.float64))
    assert (index.numpy().tolist(), left.numpy().tolist()) == ([1], [[2.0]])
