"""What a reader of any format gives to a writer of any format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from support.errors import CheckpointError
from tf_model.config import GPT2Config
from tokenization.special_tokens import SpecialTokens

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]

BFLOAT16: DType = np.dtype(ml_dtypes.bfloat16)
FLOATS: tuple[DType, ...] = (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))
"""The types that weights may have, in the files and in memory."""

_BLOCK = 1 << 22
"""Bytes that are looked at in one step: a boolean or a cast copy of them is all that a check allocates."""


class Checkpoint(Protocol):
    """A model on disk: its sizes, known on opening, and its weights, each read when asked for.

    The names are those of ``GPT2Config.tensor_shapes``. Every reader has checked, before it gives a checkpoint, that
    each of them is there and has its shape, and that there is nothing else.

    Attributes:
        format: the name of the format, as the command line says it.
        config: the sizes.
        details: what else a user may want to see, such as ``tensor_parallel`` and ``iteration``.
        dtypes: the type of each tensor in the files; the widest, when it is spread over shards of several types.
        files: the files that hold the weights.
        nbytes: bytes of weights in them, all shards together.
        without_checksums: those of the files that have no checksums, in a format that mostly has.
        notes: what else a user should know about it, a line each.
        left_out: what else of use the files hold, by name: optimizer, random states. No reader gives it.
        tokens: the end of a text and the padding that the source itself names; None where it names none.
        tokenizer: the folder with the tokenizer's files, where the format keeps them beside the weights; else None.
    """

    format: str
    config: GPT2Config
    details: dict[str, str | int]
    dtypes: Mapping[str, DType]
    files: list[Path]
    nbytes: int
    without_checksums: list[Path]
    notes: list[str]
    left_out: list[str]
    tokens: SpecialTokens | None
    tokenizer: Path | None

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """The whole tensor ``name`` in ``dtype``, C-contiguous.

        Args:
            name: the canonical name.
            dtype: what it is converted to.
            buffer: bytes, enough of them; the tensor is put there. Without, it has memory of its own. New memory
                costs more time than everything else together where the system is slow to give it.

        Raises:
            KeyError: no tensor of the config has this name.
            CheckpointError: the bytes are damaged, values are not finite, or ``dtype`` cannot hold them.
        """
        ...


def empty(shape: Sequence[int], dtype: DType, buffer: Array | None = None) -> Array:
    """Memory for a whole tensor, in ``buffer`` if that is given, else of its own."""
    nbytes = math.prod(shape) * dtype.itemsize
    return (np.empty(nbytes, np.uint8) if buffer is None else buffer[:nbytes]).view(dtype).reshape(shape)


def widest(dtypes: Iterable[DType]) -> DType:
    """The smallest of ``FLOATS`` that holds the values of all ``dtypes`` exactly; float16 and bfloat16 make float32."""
    result: DType | None = None
    for dtype in dtypes:
        try:
            result = dtype if result is None else np.promote_types(result, dtype)
        except TypeError:  # neither of the two 16-bit types holds the other
            result = np.dtype(np.float32)
    if result is None:
        raise ValueError("no types given")
    return result


def row_blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Consecutive rows of ``array`` as (first row, view of about 4 MB); a view for any strides, unlike flattening."""
    step = max(1, _BLOCK // max(1, array[:1].nbytes))
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
    """Checks that ``array``, to be called ``name``, has no NaN and no infinity.

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
