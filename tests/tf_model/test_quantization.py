"""int8 weights and the product with them, against integers in NumPy; and the whole model against one in float32."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import INT8
from tests.helpers.checkpoints import random_state
from tests.tf_model.test_beam import assign
from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2
from tf_model.precision import OFFSET, PRECISIONS, SCALE, is_transposed, stored_bytes, stored_tensors
from tf_model.quantization import convolve, offset, product, quantize
from tf_model.stacked_blocks import StackedBlocks

CONFIG = GPT2Config(vocab_size=96, n_positions=40, n_embd=48, n_layer=3, n_head=12)


@pytest.mark.parametrize("levels", [127, 63])
def test_every_row_has_the_scale_of_its_largest_value(levels: int) -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(1000, 700)) * rng.uniform(1e-6, 1e3, (1000, 1))).astype(np.float32)  # several blocks
    matrix[3] = 0
    matrix[4] = -5
    matrix[5] = 1e-45
    quantized, scale = quantize(matrix, levels)
    assert (quantized.dtype, scale.dtype) == (np.int8, np.float32)
    exact = np.abs(matrix.astype(np.float64)).max(axis=1) / levels
    exact[[3, 5]] = 1
    np.testing.assert_allclose(scale, exact, rtol=1e-6)
    assert np.abs(quantized.astype(int)).max(axis=1).tolist() == [0 if row in (3, 5) else levels for row in range(1000)]
    assert (quantized[4] == -levels).all()
    error = np.abs(quantized * scale[:, np.newaxis].astype(np.float64) - matrix)
    assert (error <= 0.5001 * scale[:, np.newaxis]).all()


def multiplied(x: tf.Tensor, kernel: np.ndarray, scale: Any, offset: Any, bias: Any = None) -> tf.Tensor:
    """By ``convolve``, which takes the kernel transposed."""
    return convolve(x, tf.constant(kernel.T), scale, offset, bias)


WAYS = pytest.mark.parametrize(
    ("levels", "ways"),
    [
        pytest.param(127, [product, functools.partial(product, packed=False)], marks=pytest.mark.int8, id="product"),
        pytest.param(63, [multiplied], id="convolve"),
    ],
)
Ways = Sequence[Callable[..., tf.Tensor]]


@WAYS
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 33])
@pytest.mark.parametrize(("width", "outputs"), [(48, 96), (768, 64), (64, 3000), (7, 5)])
def test_the_product_is_that_of_integers(rows: int, width: int, outputs: int, levels: int, ways: Ways) -> None:
    rng = np.random.default_rng(rows)
    x = (rng.normal(size=(rows, width)) * rng.uniform(0.01, 50, (rows, 1))).astype(np.float32)
    if rows > 1:
        x[1] = 0
    matrix = rng.normal(size=(outputs, width)).astype(np.float32)
    if rows > 2:  # the largest products that there are
        x[2:4] = [[3], [-4]]
        matrix[1:3] = [[5], [-6]]
    quantized, scale = quantize(matrix, levels)
    bias = rng.normal(size=outputs).astype(np.float32)
    largest = np.abs(x).max(axis=1, keepdims=True)
    activations = np.floor(x * np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0) + 0.5)
    sums = activations.astype(np.int64) @ quantized.T.astype(np.int64)
    expected = sums * (largest.astype(np.float64) / 127) * scale + bias
    for way in ways:
        call = functools.partial(way, tf.constant(x), quantized, scale, offset(quantized), bias)
        for found in (call(), tf.function(call, autograph=False)()):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@WAYS
def test_a_row_does_not_depend_on_its_neighbours(levels: int, ways: Ways) -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(9, 256)) * 10.0 ** rng.integers(-3, 3, (9, 1))).astype(np.float32)
    kernel, scale = quantize(rng.normal(size=(300, 256)).astype(np.float32), levels)

    def graph_of(way: Callable[..., tf.Tensor]) -> Any:
        return tf.function(
            lambda x: way(x, kernel, scale, offset(kernel)), input_signature=[tf.TensorSpec([None, 256])]
        )

    for graph in map(graph_of, ways):
        together = graph(tf.constant(x)).numpy()
        for row, expected in zip(x, together, strict=True):
            np.testing.assert_array_equal(graph(tf.constant(row[np.newaxis])).numpy()[0], expected)


def models(dtype: str, step: int = 1) -> tuple[GPT2, GPT2]:
    """In float32 and in ``dtype``, with the same, quantised weights; all but every ``step``-th column is 0."""
    exact, model = GPT2(CONFIG), GPT2(CONFIG, dtype=dtype)
    assign(exact, random_state(CONFIG, np.random.default_rng(2)))
    variables = model.canonical_variables()
    for name, variable in exact.canonical_variables().items():
        if name + SCALE in variables:
            matrix = np.zeros_like(variable.numpy())
            matrix[:, ::step] = variable.numpy()[:, ::step]
            quantized, scale = quantize(matrix, PRECISIONS[dtype].levels)
            variables[name].assign(quantized.T if is_transposed(name, dtype) else quantized)
            variables[name + SCALE].assign(scale)
            variables[name + OFFSET].assign(offset(quantized))
            variable.assign(quantized * scale[:, np.newaxis])
        else:
            variables[name].assign(variable)
    return exact, model


def assert_close(found: tf.Tensor, expected: tf.Tensor) -> None:
    """But for the rounding of activations."""
    span = np.ptp(expected.numpy())
    error = np.abs(found.numpy() - expected.numpy())
    assert error.max() < 0.05 * span
    assert error.mean() < 0.005 * span


IDS = np.random.default_rng(3).integers(0, 96, (4, 40))


@pytest.mark.parametrize("dtype", [INT8, "int8-avx2"])
def test_the_model_is_that_of_its_weights(dtype: str) -> None:
    exact, model = models(dtype)
    assert_close(model(tf.constant(IDS)), exact(tf.constant(IDS)))


@pytest.mark.parametrize("dtype", ["int8", "int8-low-memory", "int8-avx2"])
def test_one_function_for_all_blocks_packs_the_weights_of_each(dtype: str) -> None:
    """The kernel keeps the first matrix that it packs. Without VNNI, too: of each pair, whose sum might saturate, one
    column is 0."""
    exact, model = models(dtype, step=2)
    ids, batch, size = tf.constant(IDS, tf.int32), tf.constant(4), tf.constant(40)
    (stacks := StackedBlocks(model)).assign()

    @tf.function(autograph=False)
    def rows() -> tf.Tensor:
        start = tf.zeros([batch], tf.int32)
        return model.forward(ids, start, tf.fill([batch], size), model.allocate(batch, size), size, stacks.blocks())[0]

    for _ in range(2):
        assert_close(model.logits(rows()), tf.reshape(exact(ids), [-1, 96]))


def test_offsets_are_exact() -> None:
    quantized = np.full((2, 60_000), 127, np.int8)
    quantized[1, ::2] = -126
    assert offset(quantized).astype(np.int64).tolist() == [-128 * 127 * 60_000, -128 * 30_000]


PROGRAM = """
    import numpy as np
    import tensorflow as tf
    from tf_model.quantization import convolve, is_exact, offset
    kernel = np.full((32, 128), 63, np.int8)
    for rows in 1, 40:
        found = convolve(tf.fill([rows, 128], 2.0), kernel.T, tf.ones([32]), offset(kernel))
        np.testing.assert_allclose(found, np.full([rows, 32], 2 * 63 * 128.0), rtol=1e-6)
    print(bool(tf.function(is_exact)()))
"""


@pytest.mark.parametrize(
    ("isa", "exact"),
    [
        pytest.param("", "True", marks=pytest.mark.int8),
        pytest.param("AVX512_CORE", "False", marks=pytest.mark.int8),  # others may not have it
        ("AVX2", "False"),
        ("SSE41", "False"),
    ],
)
def test_processors_without_vnni(isa: str, exact: str) -> None:
    """oneDNN is told to do without; then sums of pairs saturate, which is found out. Smaller weights keep from it."""
    environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.split()) == (0, [exact]), run.stderr


def test_what_is_stored() -> None:
    tensors = stored_tensors(CONFIG, "int8")
    assert list(tensors)[:4] == ["wte.weight", "wte.weight_scale", "wte.weight_offset", "wpe.weight"]
    assert tensors["h.0.attn.c_attn.weight"] == ((144, 48), "int8")
    assert tensors["h.0.attn.c_attn.weight_scale"] == ((144,), "float32")
    assert {name for name, tensor in tensors.items() if tensor.dtype == "int8"} == {
        name for name in tensors if name + SCALE in tensors
    }
    assert tensors.keys() == GPT2(CONFIG, dtype="int8", initialize=False).canonical_variables().keys()
    for config in (GPT2Config(30000, 1024, 768, 12, 12), GPT2Config(30000, 1024, 2560, 32, 32)):
        assert stored_bytes(config, "int8") < 1.1 * config.parameter_count
        assert stored_bytes(config, "float32") == 4 * config.parameter_count
