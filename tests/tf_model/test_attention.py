"""Attention's last bits, which the rounding of int8 activations makes large: a row has the same ones in every batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_model.attention import attend
from tf_model.cache import BLOCK, capacity_for

_CPU = Path("/proc/cpuinfo")
pytestmark = pytest.mark.skipif(
    _CPU.exists() and "avx512f" in _CPU.read_text(), reason="the multiples were measured with AVX2: kernels differ"
)


@pytest.fixture(scope="module", params=[(12, 64), (8, 80)], ids="{0[0]}x{0[1]}".format)
def attention(request: pytest.FixtureRequest) -> tuple[int, int, tf.types.experimental.GenericFunction]:
    """``attend`` for some heads of some width, in a graph, as a SavedModel has it."""
    heads, width = request.param
    rows, visible = tf.TensorSpec([None, heads, None, width]), tf.TensorSpec([None, 1, None, None], tf.bool)
    return heads, width, tf.function(attend, input_signature=[rows, rows, rows, visible], autograph=False)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 15, 16, 40])
def test_a_query_does_not_depend_on_others(
    attention: tuple[int, int, tf.types.experimental.GenericFunction], size: int
) -> None:
    """Bit for bit: alone, and among other rows, of more tokens, with more room in the cache."""
    heads, width, attend_in_graph = attention
    rng = np.random.default_rng(size)
    seen = int(rng.integers(size, BLOCK))
    few = int(capacity_for(tf.constant(seen), 1 << 20)) + 1 if size == 1 else BLOCK  # as many as are looked at

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def mask(size: int, keys: int) -> np.ndarray:
        return np.arange(keys) <= np.arange(seen - size, seen)[:, np.newaxis]

    for more in [0] if size == 1 else [0, 1, 2, 8, 13]:
        for keys in (few, few + 7 * BLOCK):
            query = normal(3, heads, size + more, width)
            key, value = normal(3, heads, keys, width), normal(3, heads, keys, width)
            visible = np.tile(np.concatenate([mask(size, keys), mask(more, keys)]), [3, 1, 1, 1])
            together = attend_in_graph(query, key, value, visible).numpy()
            for row in range(3):
                one = slice(row, row + 1)
                alone = attend_in_graph(
                    query[one, :, :size], key[one, :, :few], value[one, :, :few], visible[one, :, :size, :few]
                ).numpy()
                np.testing.assert_array_equal(together[row, :, :size], alone[0], f"{row} {more} {keys}")
            scores = query.astype(np.float64) @ key.swapaxes(2, 3)
            weights = np.exp(np.where(visible, scores, -np.inf))
            exact = weights / weights.sum(axis=-1, keepdims=True) @ value
            np.testing.assert_allclose(together, exact, atol=2e-4)
