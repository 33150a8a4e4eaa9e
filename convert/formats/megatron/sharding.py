"""The four ways a tensor is split over p model-parallel ranks, and the way back.

Source: ``mpu/layers.py`` and ``mpu/transformer.py`` of CPM-1-Generate. Tensors are ``[out, in]`` as in PyTorch.

One function, ``_of_rank``, says which part of the whole belongs to a rank. ``split`` reads that part and ``merge``
writes it, so each is the inverse of the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from convert.tensors import assign
from support.errors import ConvertError

Array = np.ndarray[Any, Any]


class ShardingError(ConvertError):
    """A tensor that cannot be split over so many ranks, or shards that do not make it; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Split:
    """How a tensor is split.

    Attributes:
        axis: the dimension that is cut; None when every rank holds the whole tensor.
        parts: matrices stacked along that dimension. Each of them is cut over the ranks on its own, so that a rank
            holds its share of the first part, then its share of the second.
    """

    axis: int | None
    parts: int = 1


COLUMN = Split(axis=0)
"""Column-parallel: output features (rows, in PyTorch's orientation) and their bias; the token embedding."""
ROW = Split(axis=1)
"""Row-parallel: input features. The bias is added once after the sum over the ranks, so it is ``REPLICATED``."""
QKV = Split(axis=0, parts=3)
"""The fused projection, weight and bias: rank r holds its heads' rows of Q, then of K, then of V."""
REPLICATED = Split(axis=None)
"""The same values on every rank: layer norms, positions, biases of row-parallel layers."""


def shard_shape(shape: Sequence[int], kind: Split, p: int) -> tuple[int, ...]:
    """The shape that one of ``p`` ranks holds of a tensor of ``shape``.

    Raises:
        ShardingError: p is not positive or does not divide the dimension, or the tensor has no such dimension.
    """
    if p < 1:
        raise ShardingError(f"a model cannot be split over {p} ranks")
    if kind.axis is None:
        return tuple(shape)
    if len(shape) <= kind.axis or shape[kind.axis] % (kind.parts * p):
        cut = f"{p} ranks" if kind.parts == 1 else f"{p} ranks in {kind.parts} parts"
        raise ShardingError(f"dimension {kind.axis} of the shape {list(shape)} cannot be split over {cut}")
    return (*shape[: kind.axis], shape[kind.axis] // p, *shape[kind.axis + 1 :])


def _unstacked(array: Array, axis: int, *sizes: int) -> Array:
    """A view with dimension ``axis`` taken apart into ``sizes``; taking a dimension apart never needs a copy."""
    shape = (*array.shape[:axis], *sizes, *array.shape[axis + 1 :])
    return array.reshape(shape)


def _of_rank(whole: Array, kind: Split, p: int, rank: int) -> Array:
    """The view of ``whole`` that belongs to ``rank``, the cut dimension taken apart into [parts, size of a share]."""
    shard_shape(whole.shape, kind, p)
    if kind.axis is None:
        return whole
    size = whole.shape[kind.axis] // (kind.parts * p)
    by_rank = np.moveaxis(_unstacked(whole, kind.axis, kind.parts, p, size), kind.axis + 1, 0)
    part: Array = by_rank[rank]
    return part


def split(array: Array, kind: Split, p: int) -> list[Array]:
    """The shards of ``array``, rank 0 first: views of it where strides can say so, copies for ``QKV`` with p > 1.

    Raises:
        ShardingError: as ``shard_shape``.
    """
    shape = shard_shape(array.shape, kind, p)
    return [_of_rank(array, kind, p, rank).reshape(shape) for rank in range(p)]


def merge(shards: Sequence[Array], kind: Split, out: Array) -> None:
    """Writes the whole tensor of ``shards`` (rank 0 first) into ``out``, cast to its type on the way.

    The cast happens in ``out`` itself, so nothing beside it is allocated. A value too large for the
    type of ``out`` becomes infinite without a warning: see ``checkpoint.check_finite``. Of ``REPLICATED`` shards the
    first is taken; whether the others are equal is the caller's question.

    Raises:
        ShardingError: as ``shard_shape``, or a shard does not have that shape.
    """
    expected = shard_shape(out.shape, kind, len(shards))
    for rank, shard in enumerate(shards):
        if shard.shape != expected:
            raise ShardingError(f"rank {rank} holds the shape {list(shard.shape)}, expected {list(expected)}")
    if kind.axis is None:
        assign(out, shards[0])
        return
    for rank, shard in enumerate(shards):
        part = _of_rank(out, kind, len(shards), rank)
        assign(part, _unstacked(shard, kind.axis, kind.parts, expected[kind.axis] // kind.parts))
