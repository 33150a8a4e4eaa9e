"""The safetensors format: 8 bytes with the length of a JSON header, the header, the values of all tensors in a row.

Source: the format's description in the README of https://github.com/huggingface/safetensors: little-endian, offsets
counted from the end of the header, no gaps, no overlaps. The library itself reads a file well, but writes only what is
in memory as a whole, and in NumPy it has no bfloat16.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convert.formats.tensor_map import LazyTensor
from convert.tensors import BFLOAT16, Array, DType
from support.errors import CheckpointError
from support.files import read_json_object
from support.messages import list_names

_OTHERS: tuple[tuple[str, type], ...] = (
    ("U8", np.uint8), ("BOOL", np.bool_), ("I64", np.int64), ("I8", np.int8), ("I16", np.int16), ("I32", np.int32),
    ("U16", np.uint16), ("U32", np.uint32), ("U64", np.uint64),
)  # fmt: skip
DTYPES: Mapping[str, DType] = {
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    **{name: np.dtype(kind) for name, kind in _OTHERS},
}
"""Those of weights, and of what else a file may hold: masks, what quantized weights are made of."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000
"""What the library allows."""


@dataclasses.dataclass(frozen=True)
class SafeTensor:
    """A tensor of a safetensors file: a ``LazyTensor``. The format has no checksums."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: DType
    offset: int
    """Of its first byte in the file."""
    lacks_checksum: bool = False

    def numpy(self) -> Array:
        try:
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape).view(np.ndarray)
        except (OSError, ValueError) as error:  # it has become shorter
            raise CheckpointError(f"{self.file}: cannot be read: {error}") from error


def read_header(file: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a file by name.

    Raises:
        CheckpointError: not such a file, or one that is damaged or contradicts itself.
    """
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                found = opened.read(16)
                hint = " (a Git LFS pointer: git lfs pull)" if b"https://git-lfs" in found else ""
                raise CheckpointError(
                    f"{file}: expected a safetensors file, found {size} bytes of something else{hint}"
                )
            header = json.loads(opened.read(length))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: expected a safetensors file, its header is no JSON: damaged") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: expected a safetensors file, its header is no object: damaged")
    header.pop("__metadata__", None)
    start, end = 8 + length, 0
    tensors: dict[str, LazyTensor] = {}
    for name, (begin, entry) in sorted(((n, _entry(file, n, e)) for n, e in header.items()), key=lambda x: x[1][0]):
        if begin != end:
            raise CheckpointError(f"{file}: {list_names([name])}: begins at byte {begin}, expected {end}: damaged")
        end = begin + math.prod(entry.shape) * entry.dtype.itemsize
        tensors[name] = dataclasses.replace(entry, offset=start + begin)
    if start + end != size:
        raise CheckpointError(f"{file}: expected {start + end} bytes, found {size}: cut off, get it again")
    return tensors


def _entry(file: Path, name: str, entry: Any) -> tuple[int, SafeTensor]:
    """Return where a tensor begins after the header, and the tensor."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not all(type(n) is int and 0 <= n < 2**62 for n in (*shape, begin, end)):
            raise ValueError
        found = DTYPES[dtype]
        if end - begin != math.prod(shape) * found.itemsize:
            raise ValueError
    except KeyError as error:
        if error.args[0] in ("dtype", "shape", "data_offsets"):
            raise CheckpointError(f"{file}: {list_names([name])}: has no {error.args[0]}: damaged") from error
        known = ", ".join(DTYPES)
        raise CheckpointError(
            f"{file}: {list_names([name])}: the type {error.args[0]!a}: expected one of {known}"
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {list_names([name])}: a shape or place that cannot be: damaged") from error
    return begin, SafeTensor(file, name, tuple(shape), found, 0)


def read_index(index: Path, header: Callable[[Path], dict[str, LazyTensor]] = read_header) -> dict[str, LazyTensor]:
    """Return the tensors of all files that an index names, each in the file that the index assigns it to.

    Args:
        index: as ``model.safetensors.index.json``.
        header: reads the tensors of one of the files.

    Raises:
        CheckpointError: the index or a file cannot be read, or they contradict each other.
    """
    tensors: dict[str, LazyTensor] = {}
    for file, names in files_of(index).items():
        found = header(file)
        if missing := [name for name in names if name not in found]:
            raise CheckpointError(f"{file}: {list_names(missing)}: not in this file, though {index.name} says so")
        tensors.update({name: found[name] for name in names})
    return tensors


def files_of(index: Path) -> dict[Path, list[str]]:
    """Return the files that an index names, and the tensors of each.

    Raises:
        CheckpointError: it cannot be read, names a file outside its folder, or one that is not there.
    """
    values = read_json_object(index, CheckpointError)
    try:
        weight_map = values["weight_map"]
        files: dict[Path, list[str]] = {}
        for name, file in weight_map.items():
            if not re.fullmatch(r"[\w.-]+", file) or file.startswith("."):
                raise CheckpointError(f"{index}: {file!a}: expected the name of a file in the same folder")
            files.setdefault(index.parent / file, []).append(name)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{index}: expected JSON with "weight_map", tensor to file: damaged') from error
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing, {index.name} names it: get all files of the model")
    return files


class Writer:
    """Writes the tensors of a file in the order in which they were announced."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, values: Array) -> None:
        """Write the next tensor, C-contiguous."""
        self._file.write(values.reshape(-1).view(np.uint8).data)


@contextmanager
def writing(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], DType]]) -> Iterator[Writer]:
    """Give a ``Writer`` for a new file with ``tensors``, name -> shape and type, none of which has to be in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    end = 0
    for name, (shape, dtype) in tensors.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)  # the values are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        yield Writer(file)
