"""Arrays of weights: their types, casts as fast as the memory allows, transposes, comparisons, checks.

Everything works in blocks of some MB, so that nothing of a tensor's own size is allocated next to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# NumPy first: ml_dtypes, importing it, makes an ImportError of a signal that comes meanwhile.
# isort: off
import numpy as np
import ml_dtypes

# isort: on

from support.errors import CheckpointError

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]

BFLOAT16: DType = np.dtype(ml_dtypes.bfloat16)
FLOATS: tuple[DType, ...] = (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))
"""The types that weights may have, in the files and in memory."""

_CHECKED_BYTES = 1 << 22
"""Bytes that a check looks at in one step: it allocates a boolean or a cast copy of them and nothing else."""

_CAST_ELEMENTS = 1 << 17
"""Elements that are cast in one step: they stay in the second-level cache."""

_TRANSPOSED_BYTES = 1 << 23
"""Bytes that are transposed before they are written."""

_TILE = 512
"""Rows and columns of a matrix that are transposed in one step: both orders of them stay in the cache."""

_SCALE = np.float32(2.0**112)
"""The difference of the exponents' biases, 127 - 15."""

_SMALL = np.array([2.0**-136], np.float32)
"""What the smallest float16, 2**-24, is before it is multiplied by ``_SCALE``: a denormal number."""


def empty(shape: Sequence[int], dtype: DType, buffer: Array | None = None) -> Array:
    """Memory for a whole tensor, in ``buffer`` if that is given, else of its own."""
    nbytes = math.prod(shape) * dtype.itemsize
    return (np.empty(nbytes, np.uint8) if buffer is None else buffer[:nbytes]).view(dtype).reshape(shape)


def widest(dtypes: Iterable[DType]) -> DType:
    """Return the smallest of ``FLOATS`` that holds all ``dtypes`` exactly; float16 and bfloat16 make float32."""
    result: DType | None = None
    for dtype in dtypes:
        try:
            result = dtype if result is None else np.promote_types(result, dtype)
        except TypeError:  # neither of the two 16-bit types holds the other
            result = np.dtype(np.float32)
    if result is None:
        raise ValueError("no types given")
    return result


def assign(out: Array, source: Array) -> None:
    """``out[...] = source``, of one shape and any strides; what ``out`` cannot hold becomes infinite, as in NumPy.

    NumPy 2.4 converts float16 one element at a time, 1.6 GB/s where this does 6 GB/s. Every other pair of types that
    weights have is fast in NumPy.
    """
    out, source = out.squeeze(), source.squeeze()  # views; a dimension of 1 would be one more loop in Python
    with np.errstate(over="ignore", invalid="ignore"):
        if source.dtype != np.float16 or out.dtype != np.float32 or not source.ndim or not _keeps_denormals():
            out[...] = source
            return
        if source.ndim > 2:
            for part, values in zip(out, source, strict=True):
                assign(part, values)
            return
        width = source[:1].size
        step = max(1, _CAST_ELEMENTS // max(1, width))
        for start in range(0, len(source), step):
            _widen(out[start : start + step], source[start : start + step])


def _keeps_denormals() -> bool:
    """Whether this thread computes with denormal numbers; libraries built with -ffast-math switch that off."""
    return bool((_SMALL * _SCALE)[0] == 2.0**-24)


def _widen(out: Array, source: Array) -> None:
    """float16 -> float32: exponent and mantissa moved to their new place, then the exponent's bias corrected."""
    bits = out.view(np.int32)
    bits[...] = source.view(np.int16)  # bit 15, the sign, fills the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, -0x7000_2000, out=bits)  # clears the copies of the sign in bits 28 to 30
    np.multiply(out, _SCALE, out=out)
    if out.max(initial=0.0) >= 65536.0 or out.min(initial=0.0) <= -65536.0:
        out[...] = source  # infinities and NaN have an exponent of their own


def transpose(matrix: Array, out: Array) -> None:
    """``out[...] = matrix.T``, tile by tile: 5 times as fast as in one step where a row is longer than a page."""
    for i in range(0, matrix.shape[0], _TILE):
        for j in range(0, matrix.shape[1], _TILE):
            assign(out[j : j + _TILE, i : i + _TILE], matrix[i : i + _TILE, j : j + _TILE].T)


def transposed_blocks(matrix: Array) -> Iterator[Array]:
    """Yield the rows of the transpose of ``matrix``, some MB of them at a time."""
    step = max(1, _TRANSPOSED_BYTES // max(1, matrix[:, :1].nbytes))
    for start in range(0, matrix.shape[1], step):
        columns = matrix[:, start : start + step]
        block = np.empty(columns.shape[::-1], columns.dtype)
        transpose(columns, block)
        yield block


def row_blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Consecutive rows of ``array`` as (first row, view of about 4 MB); a view for any strides, unlike flattening."""
    step = max(1, _CHECKED_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def same_values(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape are equal: bit by bit in one type, else exactly in one that holds both."""
    kind = np.dtype(f"u{a.itemsize}") if a.dtype == b.dtype else widest((a.dtype, b.dtype))

    def comparable(block: Array) -> Array:
        return block.view(kind) if a.dtype == b.dtype else block.astype(kind)

    pairs = ((block, b[start : start + len(block)]) for start, block in row_blocks(a))
    return all(np.array_equal(comparable(x), comparable(y)) for x, y in pairs)


def _not_finite(array: Array) -> tuple[int, list[int]]:
    """How many values are NaN or infinite, and the index of the first."""
    count, first = 0, []
    for start, block in row_blocks(array):
        finite = np.isfinite(block)
        if not finite.all():
            if not count:
                first = [int(i) for i in np.unravel_index(int(finite.argmin()), finite.shape)]
                first[0] += start
            count += int(finite.size - np.count_nonzero(finite))
    return count, first


def check_finite(name: str, array: Array, where: str | Path, sources: Sequence[tuple[str | Path, Array]] = ()) -> None:
    """Check that ``array``, to be called ``name``, has no NaN and no infinity.

    Args:
        where: the file or folder for the message.
        sources: what ``array`` was made of by a cast, as (file, values). They are looked at only when ``array`` is bad,
            and tell values that were never finite from those that the type of ``array`` cannot hold.

    Raises:
        CheckpointError: it has; with the number of bad values and the index of the first.
    """
    count, first = _not_finite(array)
    if not count:
        return
    for file, source in sources:
        check_finite(name, source, file)
    if not sources:
        raise CheckpointError(
            f"{where}: {name}: {count} of {array.size} values are NaN or infinite, the first at {first} of "
            f"{list(array.shape)}: the checkpoint is damaged or its training diverged"
        )
    largest = max(float(np.abs(block).max()) for _, source in sources for _, block in row_blocks(source))
    able = [dtype.name for dtype in (np.dtype(np.float32), BFLOAT16) if largest <= float(ml_dtypes.finfo(dtype).max)]
    advice = f"convert to {' or '.join(able)}" if able else "no supported type can"
    raise CheckpointError(
        f"{where}: {name}: {array.dtype.name} cannot hold {count} of {array.size} values (up to {largest:g}, the first "
        f"at {first}): {advice}"
    )
