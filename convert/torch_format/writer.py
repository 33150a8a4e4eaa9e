"""Write the files that ``torch.save`` writes, one tensor at a time and without PyTorch.

The zip format: ``<prefix>/data.pkl`` is the pickled object, in which a tensor is the key, type and size of its storage;
``<prefix>/data/<key>`` are the bytes. So the pickle, which comes first, needs shapes and types only, and each tensor is
made when its turn comes. Source: ``torch/serialization.py`` (``_save``), ``torch/_utils.py`` and, for the alignment,
``caffe2/serialize/inline_container.cc``.

There is no ``.format_version``: with it PyTorch may compute where a storage lies from how its own writer lays out an
archive, instead of reading it there.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import math
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from convert.tensors import Array, DType, row_blocks
from convert.torch_format.tensor_refs import KNOWN, StorageType

Values = Array | Iterable[Array]
"""The values of a tensor: one array of its shape, or arrays that have its elements one after the other, in C order."""

_VERSION = b"3\n"
_ALIGNMENT = 64
"""In bytes: the first byte of every entry is at a multiple of it, so that a mapped tensor is aligned."""
_LOCAL_HEADER, _ZIP64_FIELD, _FIELD = 30, 20, struct.Struct("<2sH")

_STORAGES: dict[DType, str] = {
    value.dtype: name
    for (module, name), value in KNOWN.items()
    if module == "torch" and isinstance(value, StorageType) and "Untyped" not in name
}
"""NumPy's type -> the class of storages in ``torch``. Of the unsigned types only uint8 has one."""


@dataclasses.dataclass(frozen=True)
class Pending:
    """A tensor whose values come later.

    Attributes:
        shape, dtype: of the tensor; its storage has exactly this size.
        produce: called once; gives the values. None where a ``Writer`` is given them instead.

    Raises:
        ValueError: PyTorch has no storages of this type.
    """

    shape: tuple[int, ...]
    dtype: DType
    produce: Callable[[], Values] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _STORAGES:
            known = ", ".join(dtype.name for dtype in _STORAGES)
            raise ValueError(f"a tensor of {self.dtype} cannot be saved: expected one of {known}")

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def save(path: Path, value: Any) -> None:
    """Write ``value`` as a file that ``torch.load`` reads, with ``weights_only`` and ``mmap`` too.

    The file appears under its name when it is complete. The object is a tree: what is in it twice is written twice,
    except a ``Pending``, which gives tensors that share a storage. The same input and file name give the same bytes.

    Args:
        value: dicts, ordered dicts, lists, tuples, ``argparse.Namespace``, str, int, float, bool, None, and ``Pending``
            for tensors.

    Raises:
        TypeError: something else is in ``value``.
        ValueError: a ``Pending`` gives values of another type or number than it said.
        OSError: the file cannot be written.
    """
    with writing(path, value) as writer:
        for tensor in writer.tensors:
            if tensor.produce is None:
                raise TypeError(f"a tensor of {tensor.dtype} cannot be saved: it has nothing that produces its values")
            writer.write(tensor.produce())


class Writer:
    """Write the tensors of a file one by one, in the order in which the object mentions them.

    Attributes:
        tensors: all of them.
    """

    def __init__(self, archive: zipfile.ZipFile, prefix: str, tensors: list[Pending]) -> None:
        self.tensors = tensors
        self._archive, self._prefix = archive, prefix
        self._written = 0

    def write(self, values: Values) -> None:
        """Write the next tensor; the caller may change ``values`` as soon as this returns.

        Raises:
            ValueError: they are of another type or number than was said, or every tensor is there already.
            OSError: they cannot be written.
        """
        if self._written == len(self.tensors):
            raise ValueError(f"{len(self.tensors)} tensors were announced, one more came")
        tensor = self.tensors[self._written]
        size = tensor.count * tensor.dtype.itemsize
        with _entry(self._archive, f"{self._prefix}/data/{self._written}", size) as file:
            _write_values(file, tensor, values)
        self._written += 1

    def finish(self) -> None:
        """End the file; raise ``ValueError`` when tensors are missing."""
        if missing := len(self.tensors) - self._written:
            raise ValueError(f"{len(self.tensors)} tensors were announced, {missing} fewer came")
        with _entry(self._archive, f"{self._prefix}/version", len(_VERSION)) as file:
            file.write(_VERSION)


@contextlib.contextmanager
def writing(path: Path, value: Any) -> Iterator[Writer]:
    """Write a file as ``save`` does, with the tensors given one by one, so that files can be written side by side.

    The file appears when the block ends, and not at all when it raises. Errors and arguments are those of ``save``.
    """
    pickled = _Pickle()
    pickled.write(value)
    prefix = path.stem if path.stem.isascii() else "archive"  # the file's name, as PyTorch does it
    with _appearing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with _entry(archive, f"{prefix}/data.pkl", len(pickled.bytes) + 1) as file:
            file.write(pickled.bytes + pickle.STOP)
        with _entry(archive, f"{prefix}/byteorder", len(sys.byteorder)) as file:
            file.write(sys.byteorder.encode())
        writer = Writer(archive, prefix, pickled.tensors)
        yield writer
        writer.finish()


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """Give a file to write into; it gets the name ``path`` when the block ends, and is removed when it raises."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _entry(archive: zipfile.ZipFile, name: str, size: int) -> Iterator[IO[bytes]]:
    """Begin an uncompressed entry of ``size`` bytes; ``zipfile`` puts its CRC-32 into the header afterwards."""
    info = zipfile.ZipInfo(name)
    large = size > zipfile.ZIP64_LIMIT
    header = _LOCAL_HEADER + len(info.filename) + _ZIP64_FIELD * large + _FIELD.size
    padding = -(archive.start_dir + header) % _ALIGNMENT
    info.extra = _FIELD.pack(b"FB", padding) + b"Z" * padding  # as PyTorch does it
    with archive.open(info, "w", force_zip64=large) as file:
        yield file
    info.extra = b""  # the directory does without


def _write_values(file: IO[bytes], tensor: Pending, values: Values) -> None:
    """Write the values of ``tensor``; strided arrays are copied in blocks of a few MB."""
    if isinstance(values, np.ndarray) and values.shape != tensor.shape:
        raise ValueError(f"a tensor of shape {list(tensor.shape)} was announced, {list(values.shape)} came")
    missing = tensor.count
    for array in [values] if isinstance(values, np.ndarray) else values:
        if array.dtype != tensor.dtype:
            raise ValueError(f"a tensor of {tensor.dtype} was announced, {array.dtype} came")
        missing -= array.size
        if missing < 0:
            break
        for _, block in row_blocks(np.atleast_1d(array)):
            file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    if missing:
        amount = "fewer" if missing > 0 else "more"
        raise ValueError(f"a tensor of {tensor.count} values was announced, {abs(missing)} {amount} came")


class _Pickle:
    """A pickle of protocol 2, which is what ``torch.load(weights_only=True)`` understands.

    Python's own pickler imports every class that it names; this one names PyTorch's without having them.

    Attributes:
        bytes: the pickle so far, without its end.
        tensors: those that it mentions; the index is the key of the storage.
    """

    def __init__(self) -> None:
        self.bytes = bytearray(pickle.PROTO + b"\2")
        self.tensors: list[Pending] = []
        self._keys: dict[int, int] = {}
        self._globals: dict[tuple[str, str], int] = {}

    def write(self, value: Any) -> None:
        if (writer := _WRITERS.get(type(value))) is None:
            raise TypeError(f"a {type(value).__name__} cannot be saved: expected plain data or a Pending")
        writer(self, value)

    def write_global(self, module: str, name: str) -> None:
        """Write a class or function; from its second mention on, its number in the unpickler's memory."""
        if (index := self._globals.get((module, name))) is not None:
            self.bytes += pickle.LONG_BINGET + struct.pack("<I", index)
            return
        index = self._globals[module, name] = len(self._globals)
        self.bytes += pickle.GLOBAL + f"{module}\n{name}\n".encode() + pickle.LONG_BINPUT + struct.pack("<I", index)

    def write_none(self, _: None) -> None:
        self.bytes += pickle.NONE

    def write_bool(self, value: bool) -> None:
        self.bytes += pickle.NEWTRUE if value else pickle.NEWFALSE

    def write_int(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.bytes += pickle.BININT + struct.pack("<i", value)
            return
        digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        self.bytes += pickle.LONG1 + struct.pack("<B", len(digits)) + digits

    def write_float(self, value: float) -> None:
        self.bytes += pickle.BINFLOAT + struct.pack(">d", value)

    def write_str(self, value: str) -> None:
        text = value.encode("utf-8", "surrogatepass")
        self.bytes += pickle.BINUNICODE + struct.pack("<I", len(text)) + text

    def write_tuple(self, value: tuple[Any, ...]) -> None:
        self.bytes += pickle.MARK
        for item in value:
            self.write(item)
        self.bytes += pickle.TUPLE

    def write_list(self, value: list[Any]) -> None:
        self.bytes += pickle.EMPTY_LIST + pickle.MARK
        for item in value:
            self.write(item)
        self.bytes += pickle.APPENDS

    def write_dict(self, value: dict[Any, Any]) -> None:
        self.bytes += pickle.EMPTY_DICT
        self._write_items(value)

    def write_ordered_dict(self, value: dict[Any, Any]) -> None:
        self.write_global("collections", "OrderedDict")
        self.bytes += pickle.EMPTY_TUPLE + pickle.REDUCE
        self._write_items(value)

    def _write_items(self, value: dict[Any, Any]) -> None:
        self.bytes += pickle.MARK
        for key, item in value.items():
            self.write(key)
            self.write(item)
        self.bytes += pickle.SETITEMS

    def write_namespace(self, value: argparse.Namespace) -> None:
        """Write an object as protocol 2 has it: its class, and what its ``__dict__`` becomes."""
        self.write_global("argparse", "Namespace")
        self.bytes += pickle.EMPTY_TUPLE + pickle.NEWOBJ
        self.write(vars(value))
        self.bytes += pickle.BUILD

    def write_tensor(self, value: Pending) -> None:
        """Write the call ``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``."""
        key = self._keys.setdefault(id(value), len(self.tensors))
        if key == len(self.tensors):
            self.tensors.append(value)
        self.write_global("torch._utils", "_rebuild_tensor_v2")
        self.bytes += pickle.MARK * 2
        self.write("storage")
        self.write_global("torch", _STORAGES[value.dtype])
        for part in (str(key), "cpu", value.count):
            self.write(part)
        self.bytes += pickle.TUPLE + pickle.BINPERSID
        rest: tuple[Any, ...] = (0, tuple(value.shape), _strides(value.shape), False, collections.OrderedDict())
        for item in rest:
            self.write(item)
        self.bytes += pickle.TUPLE + pickle.REDUCE


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a C-contiguous tensor, in elements; a dimension of size 0 counts as 1, as in PyTorch."""
    return tuple(math.prod(extent or 1 for extent in shape[i + 1 :]) for i in range(len(shape)))


_WRITERS: dict[type, Callable[[_Pickle, Any], None]] = {
    type(None): _Pickle.write_none,
    bool: _Pickle.write_bool,
    int: _Pickle.write_int,
    float: _Pickle.write_float,
    str: _Pickle.write_str,
    tuple: _Pickle.write_tuple,
    list: _Pickle.write_list,
    dict: _Pickle.write_dict,
    collections.OrderedDict: _Pickle.write_ordered_dict,
    argparse.Namespace: _Pickle.write_namespace,
    Pending: _Pickle.write_tensor,
}
