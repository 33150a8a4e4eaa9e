"""Tensors in a file that PyTorch wrote: where their bytes are, and how a pickle says so.

``KNOWN`` is the table of names for ``pickle_machine.load``: what ``torch.save`` pickles a dense tensor as. Source:
``torch/_utils.py`` and ``torch/_tensor.py``. Arguments are checked against the bytes of the storage, as a file may say
anything; a tensor that is not a dense one (sparse, quantized, a subclass, conjugated) becomes a ``Placeholder``.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

# NumPy first: ml_dtypes, importing it, makes an ImportError of a signal that comes meanwhile.
# isort: off
import numpy as np
import ml_dtypes

# isort: on

from convert.torch_format.pickle_values import PLAIN, Function, Placeholder
from support.errors import CheckpointError
from support.messages import short_repr

_CHUNK = 4 << 20
_MAX_RANK = 32  # what NumPy 1 can do; NumPy 2 can do 64
_MAX = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Storage:
    """A row of elements in a file, which one or more tensors share.

    Attributes:
        file, offset: where its first byte is.
        key: its name in the file.
        dtype, count: what it is a row of, and how many.
        crc: CRC-32 of the zip entry; None in a file without checksums, as every one of the legacy format is.
        entry_size: bytes of the zip entry, which the CRC-32 covers; None in the legacy format.
    """

    file: Path
    key: str
    dtype: np.dtype[Any]
    offset: int
    count: int
    crc: int | None
    entry_size: int | None = None

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def check(self) -> None:
        """Read the bytes and compare them with the CRC-32.

        Raises:
            CheckpointError: the bytes differ from those that were written, or some are missing.
        """
        try:
            with self.file.open("rb") as file:
                if file.seek(0, 2) < self.offset + self.nbytes:
                    raise CheckpointError(f"{self.file}: storage {self.key!r}: the file has become shorter meanwhile")
                found = crc32(file, self.offset, self.entry_size or 0) if self.crc is not None else None
        except OSError as error:
            raise CheckpointError(f"{self.file}: cannot be read: {error.strerror or error}") from error
        if found != self.crc:
            raise CheckpointError(
                f"{self.file}: storage {self.key!r} is damaged: its CRC-32 is {found or 0:#010x}, "
                f"expected {self.crc or 0:#010x}: get the file again"
            )


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A tensor in a file: a view of a storage, with strides and offset in elements.

    ``shape`` and ``stride`` lie within the storage; a stride of 0 repeats elements, so a shape (and ``nbytes``) may be
    larger than any memory: compare it with what is expected before the values are copied.
    """

    storage: Storage
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> np.ndarray[Any, Any]:
        """Map the values: a read-only view of a mapping of these elements only, which goes away with the array.

        While the array lives it holds a file descriptor. It may be unaligned, in the legacy format.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        if not math.prod(self.shape):
            empty = np.empty(self.shape, self.dtype)
            empty.flags.writeable = False
            return empty
        size = self.dtype.itemsize
        start = self.storage.offset + self.offset * size
        skipped = start % mmap.ALLOCATIONGRANULARITY
        length = skipped + (_last(self.shape, self.stride) + 1) * size
        try:
            with self.storage.file.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start - skipped)
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            raise CheckpointError(
                f"{self.storage.file}: storage {self.storage.key!r} cannot be read: {error}"
            ) from error
        strides = [step * size if extent > 1 else 0 for extent, step in zip(self.shape, self.stride, strict=True)]
        values: np.ndarray[Any, Any] = np.ndarray(self.shape, self.dtype, mapping, skipped, strides)
        return values


def _last(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return the index of the last element of a tensor that has elements, counted from its first."""
    return sum((extent - 1) * step for extent, step in zip(shape, stride, strict=True))


def crc32(file: BinaryIO, offset: int, size: int) -> int:
    """Compute the CRC-32 of a part of a file; of less when the file ends before."""
    buffer, crc = memoryview(bytearray(min(_CHUNK, size))), 0
    file.seek(offset)
    while size > 0:
        read = file.readinto(buffer[: min(_CHUNK, size)])  # type: ignore[attr-defined]
        if not read:
            break
        crc = zlib.crc32(buffer[:read], crc)
        size -= read
    return crc


@dataclasses.dataclass(frozen=True)
class StorageType:
    """A class of storages, such as ``torch.HalfStorage``."""

    dtype: np.dtype[Any]


def integer(value: object, what: str) -> int:
    """Return ``value`` if it is an int64 that is not negative; raise ``ValueError`` otherwise."""
    if type(value) is not int or not 0 <= value <= _MAX:
        raise ValueError(f"{what} is {short_repr(value)}, expected an integer from 0 to 2**63 - 1")
    return value


def _integers(values: object, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > _MAX_RANK:
        raise ValueError(
            f"the {what} of a tensor is {short_repr(values)}, expected a tuple of at most {_MAX_RANK} integers"
        )
    return tuple(integer(value, f"the {what} of a tensor") for value in values)


def _tensor(storage: Storage, args: tuple[Any, ...]) -> TensorRef:
    """Make the tensor of ``args``: offset, size, stride; raise ``ValueError`` unless it lies within the storage."""
    offset, shape, stride = integer(args[0], "an offset"), _integers(args[1], "size"), _integers(args[2], "stride")
    where = f"storage {short_repr(storage.key)}: a tensor of size {shape} and stride {stride}"
    if len(shape) != len(stride):
        raise ValueError(f"{where}: expected equally many")
    if max(math.prod(extent or 1 for extent in shape), *stride, 0) * storage.dtype.itemsize > _MAX:
        raise ValueError(f"{where} is too large")
    if 0 not in shape and offset + _last(shape, stride) >= storage.count:
        raise ValueError(f"{where} at offset {offset} does not fit into {storage.count} elements")
    return TensorRef(storage, shape, stride, offset)


def _rebuild(name: str, least: int, most: int, dtype_at: int | None = None) -> Function:
    """Return a function of ``torch._utils`` whose first four arguments are storage, offset, size, stride.

    Hooks and requires_grad follow, which are left out, then a dtype in the newest one. Further arguments are marks that
    change the values (conjugated, negated), unless they are empty.
    """

    def call(args: tuple[Any, ...]) -> Any:
        if not least <= len(args) <= most + 1:
            raise ValueError(f"{name} is called with {len(args)} arguments, expected {least} to {most + 1}")
        storage, dtype = args[0], None if dtype_at is None else args[dtype_at]
        marked = len(args) > most and not (args[most] is None or (isinstance(args[most], dict) and not args[most]))
        if marked or isinstance(storage, Placeholder) or isinstance(dtype, Placeholder):
            return Placeholder("torch._utils", name, args)
        if not isinstance(storage, Storage) or not isinstance(dtype, (np.dtype, type(None))):
            raise ValueError(
                f"a tensor is made of {short_repr(storage)} and {short_repr(dtype)}, not of a storage and a dtype"
            )
        if dtype is not None:
            storage = dataclasses.replace(storage, dtype=dtype, count=storage.nbytes // dtype.itemsize)
        return _tensor(storage, args[1:4])

    return Function(name, call)


_DENSE = {
    "_rebuild_tensor": _rebuild("_rebuild_tensor", 4, 4),
    "_rebuild_tensor_v2": _rebuild("_rebuild_tensor_v2", 6, 6),
    "_rebuild_tensor_v3": _rebuild("_rebuild_tensor_v3", 7, 7, dtype_at=6),
}


def _parameter(args: tuple[Any, ...]) -> Any:
    """Return the tensor of a parameter; whether it is trained, its hooks and its attributes are left out."""
    if not args or not isinstance(args[0], (TensorRef, Placeholder)):
        raise ValueError(f"a parameter is made of {short_repr(args[0] if args else None)}, expected a tensor")
    return args[0]


def _from_type(args: tuple[Any, ...]) -> Any:
    """Call ``torch._tensor._rebuild_from_type_v2(function, class, arguments, state)``: a tensor with attributes."""
    if len(args) == 4 and isinstance(args[0], Function) and isinstance(args[1], Placeholder):
        plain = (args[1].module, args[1].name) == ("torch", "Tensor") and args[1].args is None
        if plain and isinstance(args[2], tuple) and args[0] in _DENSE.values():
            return args[0].call(args[2])
    return Placeholder("torch._tensor", "_rebuild_from_type_v2", args)


def _size(args: tuple[Any, ...]) -> tuple[int, ...]:
    return _integers(args[0] if len(args) == 1 else args, "torch.Size")


def _known() -> dict[tuple[str, str], Any]:
    names = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 complex64 complex128 bool"
    dtypes = {name: np.dtype(name) for name in names.split()}
    dtypes["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
    storages = {
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Float": "float32",
        "Double": "float64",
        "Char": "int8",
        "Short": "int16",
        "Int": "int32",
        "Long": "int64",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
        "Untyped": "uint8",
        "_Untyped": "uint8",  # PyTorch 1.11 and 1.12
    }
    table: dict[tuple[str, str], Any] = {("torch", name): dtype for name, dtype in dtypes.items()}
    for name, dtype in storages.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            table[module, f"{name}Storage"] = StorageType(dtypes[dtype])
    table.update({("torch._utils", name): function for name, function in _DENSE.items()})
    for name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        table["torch._utils", name] = Function(name, _parameter)
    table["torch._tensor", "_rebuild_from_type_v2"] = Function("_rebuild_from_type_v2", _from_type)
    table["torch", "Size"] = Function("torch.Size", _size)
    return {**PLAIN, **table}


KNOWN: Final[Mapping[tuple[str, str], Any]] = _known()
"""The names of plain data, dense tensors, storages and dtypes."""
