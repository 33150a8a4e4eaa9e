"""convert/formats/megatron/sharding.py: split and merge are inverse, and they are upstream's split."""

from __future__ import annotations

import tracemalloc
import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.formats.megatron.sharding import (
    COLUMN,
    QKV,
    REPLICATED,
    ROW,
    ShardingError,
    ShardSpec,
    merge,
    shard_shape,
    split,
)

KINDS = {"column": COLUMN, "row": ROW, "qkv": QKV, "replicated": REPLICATED}


@st.composite
def splittable(draw: st.DrawFn) -> tuple[np.ndarray, ShardSpec, int]:
    kind, p = KINDS[draw(st.sampled_from(sorted(KINDS)))], draw(st.integers(1, 8))
    shape = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(2 if kind is ROW else 1, 3)))]
    if kind.axis is not None:
        shape[kind.axis] *= p * kind.parts
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape), kind, p


def upstream_column(master: np.ndarray, p: int, stride: int) -> list[np.ndarray]:
    """``_initialize_affine_weight`` of mpu/layers.py: chunks of 1/(p * stride), every p-th of them is a rank's."""
    chunks = np.split(master, p * stride, axis=0)
    return [np.concatenate(chunks[rank::p], axis=0) for rank in range(p)]


@given(splittable())
@settings(max_examples=200, deadline=None)
def test_merge_undoes_split(case: tuple[np.ndarray, ShardSpec, int]) -> None:
    whole, kind, p = case
    parts = split(whole, kind, p)
    assert [part.shape for part in parts] == [shard_shape(whole.shape, kind, p)] * p
    out = np.full(whole.shape, np.nan, whole.dtype)
    merge(parts, kind, out)
    np.testing.assert_array_equal(out, whole)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("rest", [(), (48,)])
def test_each_rank_holds_what_upstream_gives_it(p: int, rest: tuple[int, ...]) -> None:
    master = np.random.default_rng(p).standard_normal((3 * 48, *rest))
    for kind, stride in ((QKV, 3), (COLUMN, 1)):
        for ours, theirs in zip(split(master, kind, p), upstream_column(master, p, stride), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    if rest:
        for ours, theirs in zip(split(master, ROW, p), np.split(master, p, axis=1), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_rank_rows_of_qkv_are_thirds() -> None:
    rows = np.arange(12)  # Q 0-3, K 4-7, V 8-11
    assert [part.tolist() for part in split(rows, QKV, 2)] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]


def test_split_gives_views_where_it_can() -> None:
    whole = np.zeros((12, 12), np.float32)
    for kind in (COLUMN, ROW, REPLICATED):
        assert all(np.shares_memory(part, whole) for part in split(whole, kind, 2))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_merge_reads_shards_of_any_strides_and_casts(kind: str) -> None:
    whole = np.random.default_rng(0).standard_normal((24, 24)).astype(ml_dtypes.bfloat16)
    shards = [np.asfortranarray(part) for part in split(whole, KINDS[kind], 4)]
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        out = np.empty(whole.shape, dtype)
        merge(shards, KINDS[kind], out)
        np.testing.assert_array_equal(out, whole.astype(dtype))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_merge_with_a_cast_allocates_nothing(kind: str) -> None:
    shards = split(np.ones((3072, 1024), ml_dtypes.bfloat16), KINDS[kind], 2)
    shards = [
        np.frombuffer(b"-" + part.tobytes(), np.uint8)[1:].view(part.dtype).reshape(part.shape) for part in shards
    ]
    out = np.empty((3072, 1024), np.float32)
    tracemalloc.start()
    try:
        merge(shards, KINDS[kind], out)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert (out == 1).all()


def test_overflow_in_a_cast_gives_infinity_without_a_warning() -> None:
    out = np.empty(2, np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge([np.array([1e6], np.float32), np.array([1.0], np.float32)], COLUMN, out)
    assert out.tolist() == [np.inf, 1.0]


@pytest.mark.parametrize(
    ("shape", "kind", "p", "words"),
    [
        ((10, 4), COLUMN, 3, "dimension 0 of the shape [10, 4] cannot be split over 3 ranks"),
        ((4, 10), ROW, 4, "dimension 1 of the shape [4, 10] cannot be split over 4 ranks"),
        ((12,), QKV, 8, "dimension 0 of the shape [12] cannot be split over 8 ranks in 3 parts"),
        ((8, 8), QKV, 2, "in 3 parts"),
        ((8,), ROW, 2, "dimension 1 of the shape [8]"),
        ((8,), COLUMN, 0, "over 0 ranks"),
        ((8,), REPLICATED, -1, "over -1 ranks"),
    ],
)
def test_a_shape_that_cannot_be_split_is_refused(shape: tuple[int, ...], kind: ShardSpec, p: int, words: str) -> None:
    with pytest.raises(ShardingError) as error:
        shard_shape(shape, kind, p)
    assert words in str(error.value)
    with pytest.raises(ShardingError):
        split(np.zeros(shape), kind, p)


def test_shards_of_other_shapes_are_refused() -> None:
    with pytest.raises(ShardingError, match=r"rank 1 holds the shape \[3, 4\], expected \[2, 4\]"):
        merge([np.zeros((2, 4)), np.zeros((3, 4))], COLUMN, np.empty((4, 4)))
    with pytest.raises(ShardingError, match="0 ranks"):
        merge([], REPLICATED, np.empty((4, 4)))
