"""Functions with gradients in closed form, against PyTorch's autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from tests.training.reference import UERLayerNorm
from tf_model.config import ACTIVATIONS, LAYER_NORMS, UER
from training.model import functions
from training.model.functions import Head

RNG = np.random.default_rng(0)
EPSILON = 1e-3
TORCH_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    ),
    "gelu": torch.nn.functional.gelu,
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def in_torch(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]


def assert_close(found: Any, expected: torch.Tensor, share: float = 2e-6) -> None:
    wanted = expected.detach().numpy()
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=share * np.abs(wanted).max())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_and_its_slope_are_those_of_pytorch(name: str) -> None:
    x = np.r_[np.linspace(-12, 12, 2001), [-1e4, -60, 60, 1e4]].astype(np.float32)
    (theirs,) = in_torch(x)
    value = TORCH_ACTIVATIONS[name](theirs)
    (slope,) = torch.autograd.grad(value.sum(), theirs)
    both = functions.ACTIVATIONS[name].value_and_slope(tf.constant(x))
    for found in (functions.ACTIVATIONS[name].value(tf.constant(x)), both[0]):
        np.testing.assert_allclose(found, value.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both[1], slope, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", LAYER_NORMS)
def test_a_layer_norm_and_its_gradients_are_those_of_pytorch(kind: str) -> None:
    x, outer = normal(5, 24) * 3 + 1, normal(5, 24)
    norm = UERLayerNorm(24, EPSILON) if kind == UER else torch.nn.LayerNorm(24, EPSILON)
    norm = norm.double()
    gamma, beta = normal(24), normal(24)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(gamma))
        norm.bias.copy_(torch.tensor(beta))
    (theirs,) = in_torch(x)
    expected = norm(theirs)
    expected.backward(torch.tensor(outer, dtype=torch.float64))
    ours = [tf.constant(value) for value in (x, gamma, beta)]
    with tf.GradientTape() as tape:
        tape.watch(ours)
        found = functions.layer_norm(*ours, EPSILON, kind)
    assert_close(found, expected)
    gradients = tape.gradient(found, ours, output_gradients=tf.constant(outer))
    for gradient, wanted in zip(gradients, (theirs.grad, norm.weight.grad, norm.bias.grad), strict=True):
        assert_close(gradient, wanted)


@pytest.mark.parametrize("kind", LAYER_NORMS)
def test_a_row_of_equal_values_has_a_finite_gradient(kind: str) -> None:
    kept = functions.normalise(tf.fill([1, 8], 3.0), EPSILON, kind)
    assert np.isfinite(functions.normalise_gradient(kept, tf.constant(normal(1, 8)))).all()


def test_attention_and_its_gradients_are_those_of_pytorch() -> None:
    query, key, value, outer = (normal(2, 3, 6, 4) for _ in range(4))
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]])
    seen = np.array([[[a == b and i >= j for j, b in enumerate(row)] for i, a in enumerate(row)] for row in segments])
    theirs = in_torch(query, key, value)
    scores = theirs[0] @ theirs[1].transpose(2, 3)
    scores = scores.masked_fill(~torch.tensor(seen)[:, None], -torch.inf)
    expected = torch.softmax(scores, -1) @ theirs[2]
    expected.backward(torch.tensor(outer, dtype=torch.float64))
    mask = functions.visibility(tf.constant(segments))
    found, probabilities = functions.attend(*map(tf.constant, (query, key, value)), mask)
    assert_close(found, expected)
    along = tf.reduce_sum(outer * found, axis=-1, keepdims=True)
    gradients = functions.attend_gradient(probabilities, *map(tf.constant, (query, key, value)), along, outer)
    for gradient, tensor in zip(gradients, theirs, strict=True):
        assert_close(gradient, tensor.grad)


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("piece", [3, 4, 100])
def test_the_loss_in_pieces_and_its_gradients_are_those_of_pytorch(
    piece: int, is_trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "ROWS_OF_LOGITS", piece)
    rows, table, labels = normal(9, 8), normal(20, 8), RNG.integers(0, 20, 9)
    weights = np.array([1, 0, 1, 0.5, 0, 1, 1, 2, 0], np.float32)
    theirs = in_torch(rows, table)
    losses = torch.nn.functional.cross_entropy(theirs[0] @ theirs[1].T, torch.tensor(labels), reduction="none")
    expected = (losses * torch.tensor(weights)).sum()
    (3 * expected).backward()
    x, matrix = tf.constant(rows), tf.constant(table)
    head = Head(matrix, matrix if is_trained else None)
    with tf.GradientTape() as tape:
        tape.watch([x, matrix])
        loss = functions.cross_entropy(x, head, labels, tf.constant(weights))
        scaled = 3 * loss
    assert_close(loss, expected)
    assert_close(functions.cross_entropy_value(x, head, labels, tf.constant(weights)), expected)
    row_gradient, table_gradient = tape.gradient(scaled, [x, matrix])
    assert_close(row_gradient, theirs[0].grad)
    if is_trained:
        assert_close(table_gradient, theirs[1].grad)
    else:
        assert table_gradient is None


def test_a_loss_of_no_rows_is_0_and_has_gradients_of_0() -> None:
    x, matrix = tf.constant(normal(4, 8)), tf.constant(normal(20, 8))
    with tf.GradientTape() as tape:
        tape.watch([x, matrix])
        loss = functions.cross_entropy(x, Head(matrix, matrix), tf.zeros([4], tf.int32), tf.zeros([4]))
    assert loss == 0
    assert not any(np.any(gradient) for gradient in tape.gradient(loss, [x, matrix]))
