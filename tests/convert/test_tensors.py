"""The fast way from float16 to float32 against NumPy's own, value by value."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from convert.tensors import assign

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def test_every_finite_float16_is_cast_exactly() -> None:
    out = np.empty(FINITE.shape, np.float32)
    assign(out, FINITE)
    assert same_bits(out, FINITE.astype(np.float32))


def test_infinities_and_nan_stay_what_they_are() -> None:
    for values in (EVERY, *(FINITE[:1000].copy() for _ in range(3))):
        values = values.copy()
        values[7], values[500], values[999] = np.inf, np.nan, -np.inf
        out = np.empty(values.shape, np.float32)
        assign(out, values)
        np.testing.assert_array_equal(out, values.astype(np.float32))


@pytest.mark.parametrize(
    "shape", [(0,), (5,), (300_000,), (0, 4), (700, 513), (3, 100, 700), (2, 3, 5, 7), (1,), (1, 1), (9, 1, 70)]
)
def test_arrays_of_any_shape_and_strides_are_cast(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=tuple(2 * extent for extent in shape)).astype(np.float16)
    source = values[tuple(slice(None, None, 2) for _ in shape)]
    out = np.full(values.shape, 9.0, np.float32)
    part = out[tuple(slice(1, None, 2) for _ in shape)]
    assign(part, source)
    np.testing.assert_array_equal(part, source.astype(np.float32))
    assert (out != 9.0).sum() == (np.asarray(part) != 9.0).sum()  # nothing beside it was written


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("target", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_other_types_are_cast_as_numpy_does(source: type, target: type) -> None:
    values = np.array([0.0, -0.0, 1.5, -3e4, 6e-8, 1e30]).astype(np.float32)
    with np.errstate(over="ignore"):
        values = values.astype(source)
        expected = values.astype(target)
    out = np.empty(values.shape, target)
    assign(out, values)
    np.testing.assert_array_equal(out, expected)


def test_where_denormals_are_flushed_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.tensors._SMALL", np.zeros(1, np.float32))  # what a flushed one is
    monkeypatch.setattr("convert.tensors._widen", lambda out, source: pytest.fail("the fast way was taken"))
    out = np.empty(FINITE.shape, np.float32)
    assign(out, FINITE)
    assert same_bits(out, FINITE.astype(np.float32))
