"""Split a tensor over p model-parallel ranks in one of four ways; merge the shards and check that they fit together.

Source: ``mpu/layers.py`` and ``mpu/transformer.py`` of CPM-1-Generate. Tensors are ``[out, in]`` as in PyTorch.

One function, ``_of_rank``, selects the part of the whole tensor that belongs to a rank. ``split`` reads that part and
``merge`` writes it, so each is the inverse of the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from convert.formats.tensor_map import LazyTensor, TensorRecipe
from convert.tensors import Array, assign, same_values
from support.errors import CheckpointError, ConvertError
from support.messages import pluralize


class ShardingError(ConvertError):
    """A tensor that cannot be split over this number of ranks, or shards whose shapes do not make the tensor."""


@dataclasses.dataclass(frozen=True)
class ShardSpec:
    """How a tensor is split over the ranks.

    Attributes:
        axis: the dimension that is cut; None when every rank holds the whole tensor.
        parts: number of matrices stacked along that dimension. Each matrix is cut over the ranks on its own, so a rank
            holds its share of the first part, then its share of the second.
    """

    axis: int | None
    parts: int = 1


COLUMN = ShardSpec(axis=0)
"""Column-parallel: output features (rows, in PyTorch's orientation) and their bias; the token embedding."""
ROW = ShardSpec(axis=1)
"""Row-parallel: input features. The bias is added once after the sum over the ranks, so it is ``REPLICATED``."""
QKV = ShardSpec(axis=0, parts=3)
"""The fused projection, weight and bias: rank r holds its heads' rows of Q, then of K, then of V."""
REPLICATED = ShardSpec(axis=None)
"""The same values on every rank: layer norms, positions, biases of row-parallel layers."""


def shard_shape(shape: Sequence[int], shard_spec: ShardSpec, p: int) -> tuple[int, ...]:
    """Return the shape of the shard that each of ``p`` ranks holds of a tensor of ``shape``.

    Raises:
        ShardingError: ``p`` is not positive or does not divide the dimension, or the tensor lacks that dimension.
    """
    if p < 1:
        raise ShardingError(f"a model cannot be split over {p} ranks")
    axis, parts = shard_spec.axis, shard_spec.parts
    if axis is None:
        return tuple(shape)
    if len(shape) <= axis or shape[axis] % (parts * p):
        cut = f"{p} ranks" if parts == 1 else f"{p} ranks in {parts} parts"
        raise ShardingError(f"dimension {axis} of the shape {list(shape)} cannot be split over {cut}")
    return (*shape[:axis], shape[axis] // p, *shape[axis + 1 :])


def _unstacked(array: Array, axis: int, *sizes: int) -> Array:
    """Return a view with dimension ``axis`` reshaped to ``sizes``; splitting a dimension never needs a copy."""
    shape = (*array.shape[:axis], *sizes, *array.shape[axis + 1 :])
    return array.reshape(shape)


def _of_rank(whole: Array, shard_spec: ShardSpec, p: int, rank: int) -> Array:
    """Return the view of ``whole`` that belongs to ``rank``, its cut dimension reshaped to [parts, size of a share]."""
    shard_shape(whole.shape, shard_spec, p)
    axis, parts = shard_spec.axis, shard_spec.parts
    if axis is None:
        return whole
    size = whole.shape[axis] // (parts * p)
    by_rank = np.moveaxis(_unstacked(whole, axis, parts, p, size), axis + 1, 0)
    part: Array = by_rank[rank]
    return part


def split(array: Array, shard_spec: ShardSpec, p: int) -> list[Array]:
    """Return the shards of ``array``, rank 0 first: views where strides allow it, copies for ``QKV`` with p > 1.

    Raises:
        ShardingError: as ``shard_shape``.
    """
    shape = shard_shape(array.shape, shard_spec, p)
    return [_of_rank(array, shard_spec, p, rank).reshape(shape) for rank in range(p)]


def merge(shards: Sequence[Array], shard_spec: ShardSpec, out: Array) -> None:
    """Write the whole tensor that ``shards`` (rank 0 first) make into ``out``, cast to the dtype of ``out``.

    The cast happens in ``out`` itself, so no other memory is allocated. A value too large for the dtype of ``out``
    becomes infinite without a warning: ``check_finite`` reports it. Of ``REPLICATED`` shards the first is copied;
    ``check_shards`` checks that the others are equal.

    Raises:
        ShardingError: as ``shard_shape``, or a shard has another shape.
    """
    expected = shard_shape(out.shape, shard_spec, len(shards))
    for rank, shard in enumerate(shards):
        if shard.shape != expected:
            raise ShardingError(f"rank {rank} holds the shape {list(shard.shape)}, expected {list(expected)}")
    axis, parts = shard_spec.axis, shard_spec.parts
    if axis is None:
        assign(out, shards[0])
        return
    for rank, shard in enumerate(shards):
        part = _of_rank(out, shard_spec, len(shards), rank)
        assign(part, _unstacked(shard, axis, parts, expected[axis] // parts))


def check_shards(name: str, shard_spec: ShardSpec, shards: Sequence[tuple[Path, Array]]) -> None:
    """Check that replicas are equal, and that no rank's shard of a split tensor is a copy of another rank's.

    A file copied over another rank's file has shapes that fit. Constant tensors, such as new biases, may repeat. Two
    files that were swapped fit too: only the name that a file was saved under reveals that, where the format keeps it.

    Args:
        name: the tensor's name in the files, for messages.
        shard_spec: how the tensor is split.
        shards: file and values of each rank's shard, rank 0 first.

    Raises:
        CheckpointError: two replicas differ, or two shards are equal.
    """
    if shard_spec is REPLICATED:
        _check_replicas(name, shards)
    else:
        _check_distinct(name, shards)


def _check_replicas(name: str, shards: Sequence[tuple[Path, Array]]) -> None:
    first_file, first = shards[0]
    for file, shard in shards[1:]:
        if not same_values(first, shard):
            raise CheckpointError(
                f"{file}: {name}: differs from {first_file}, but all ranks hold the same: one of the files is of "
                "another model or iteration"
            )


def _check_distinct(name: str, shards: Sequence[tuple[Path, Array]]) -> None:
    by_first_row: dict[bytes, tuple[Path, Array]] = {}
    for file, shard in shards:
        other_file, other = by_first_row.setdefault(shard[:1].tobytes(), (file, shard))
        if other_file is not file and same_values(other, shard) and (shard != shard.flat[0]).any():
            raise CheckpointError(
                f"{file}: {name}: the same as in {other_file}, but each rank has a part of its own: a copy of that file"
            )


def check_shard_shapes(shards: Sequence[LazyTensor], shape: Sequence[int], shard_spec: ShardSpec) -> None:
    """Check that ``shards``, rank 0 first, have the shapes of the shards of a tensor of ``shape``.

    Raises:
        CheckpointError: a shard has another shape.
        ShardingError: as ``shard_shape``.
    """
    expected = shard_shape(shape, shard_spec, len(shards))
    for shard in shards:
        if shard.shape != expected:
            raise CheckpointError(
                f"{shard.file}: {shard.name}: expected the shape {list(expected)} on each of "
                f"{pluralize(len(shards), 'rank')}, found {list(shard.shape)}"
            )


def shard_recipe(
    shards: Sequence[LazyTensor],
    shard_spec: ShardSpec,
    merge_values: Callable[[Sequence[Array], Array], None] | None = None,
) -> TensorRecipe:
    """Return the recipe that checks the values of ``shards``, rank 0 first, and merges them.

    Args:
        shards: the tensors in the files.
        shard_spec: how the tensor is split.
        merge_values: writes the whole tensor, given the values of the shards; by default that is ``merge``.
    """

    def assemble(values: Sequence[Array], out: Array) -> None:
        files = [shard.file for shard in shards]
        check_shards(shards[0].name, shard_spec, list(zip(files, values, strict=True)))
        if merge_values is None:
            merge(values, shard_spec, out)
        else:
            merge_values(values, out)

    return TensorRecipe(shards, assemble)
