"""Read what ``torch.save`` writes, in both of its formats, without PyTorch and without running what a file says.

The zip format (PyTorch 1.6 and later) has ``<prefix>/data.pkl``, the pickle of the object, and ``<prefix>/data/<key>``
for the bytes of each storage. The legacy format is a row of pickles: a magic number, the protocol version 1001, facts
about the machine that wrote it, the object, the storage keys; then for each key the number of elements as int64, and
the bytes. Source: ``torch/serialization.py`` (``_save``, ``_load``, ``_legacy_save``, ``_legacy_load``).

Tensors are described, not read: ``read_torch_file`` reads the pickles, and ``TensorRef.numpy`` maps the bytes of one
tensor.
"""

from __future__ import annotations

import itertools
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convert.torch_format import pickle_machine
from convert.torch_format.pickle_values import Placeholder
from convert.torch_format.tensor_refs import KNOWN, Storage, StorageType, TensorRef, crc32, integer
from convert.torch_format.torch_file import TorchFile
from support.errors import CheckpointError
from support.messages import short_repr

__all__ = [
    "CheckpointError",
    "Placeholder",
    "Storage",
    "TensorRef",
    "TorchFile",
    "load",
    "read_torch_file",
]

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 0x2041  # encrypted; strongly; with its directory


def load(path: str | Path) -> Any:
    """Read the object in a file of ``torch.save``.

    Returns:
        dicts (ordered ones too), lists, tuples (``torch.Size`` too), sets, strings, bytes, numbers, None; ``TensorRef``
        for tensors and parameters, ``Storage`` for storages, ``np.dtype`` for dtypes; ``Placeholder`` for all else.
        Objects may contain themselves, and be nested more deeply than Python recurses.

    Raises:
        CheckpointError: not such a file, or one that is damaged or contradicts itself.
    """
    return read_torch_file(Path(path)).value


def read_torch_file(path: Path) -> TorchFile:
    """Read the object in a file of ``torch.save`` and the name that the file had then.

    Raises:
        CheckpointError: as ``load``.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: expected a file, found a {'directory' if path.is_dir() else 'device'}")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(512)
            if head.startswith(b"PK\3\4"):
                archive = _Zip(path, file)
                return TorchFile(path, archive.load(), archive.prefix.rstrip("/"))
            if _is_legacy(file):
                return TorchFile(path, _Legacy(path, file, size).load(), None)
            raise CheckpointError(f"{path}: expected a file written by torch.save, found {_describe(head, size)}")
    except pickle_machine.PickleError as error:
        raise CheckpointError(f"{path}: {error}: it is damaged, or not a checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, struct.error) as error:  # a NUL in the path; a file that becomes shorter while it is read
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: its object does not fit into memory") from error


def _is_legacy(file: BinaryIO) -> bool:
    file.seek(0)
    try:
        value, _ = pickle_machine.load(file, 64)
    except pickle_machine.PickleError:
        return False
    return type(value) is int and value == _MAGIC


def _describe(head: bytes, size: int) -> str:
    """Describe a file that ``torch.save`` did not write, by its first 512 bytes."""
    if not size:
        return "an empty file"
    if head[257:262] == b"ustar":
        return "a tar archive (PyTorch before 0.2 wrote such files: load it there and save it again)"
    if size > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "a safetensors file"
    for start, name in (
        (b"PK\5\6", "an empty zip archive"),
        (b"\x1f\x8b", "a gzip archive: unpack it first"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
        (b"<", "a web page or XML: the download failed"),
        (b"\x80", "another pickle, or one cut off"),
    ):
        if head.startswith(start):
            return name
    return f"{size} bytes that start with {head[:8].hex(' ')}"


def _parse(saved_id: object) -> tuple[Any, str, int, Any]:
    """Return the class, key and number of elements of a persistent id, and the part of the storage, or None."""
    if not isinstance(saved_id, tuple) or len(saved_id) not in (5, 6) or not isinstance(saved_id[0], str):
        raise ValueError(f"a persistent id is {short_repr(saved_id)}, expected the 5 or 6 items of a storage")
    kind, cls, key, _, count = saved_id[:5]
    if kind != "storage" or not isinstance(cls, (StorageType, Placeholder)) or not isinstance(key, str):
        raise ValueError(
            f"a persistent id is {short_repr(kind)}, {short_repr(cls)}, {short_repr(key)}, expected a storage"
        )
    return (
        cls,
        key,
        integer(count, f"the size of storage {short_repr(key)}"),
        saved_id[5] if len(saved_id) == 6 else None,
    )


def _is_module(saved_id: object) -> bool:
    """Whether a persistent id is the class of an ``nn.Module``, with its source text, as the legacy format has them."""
    if not isinstance(saved_id, tuple) or len(saved_id) != 4 or not isinstance(saved_id[0], str):
        return False
    return saved_id[0] == "module"


class _Zip:
    """A zip archive; entries that are compressed are refused."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        try:
            with zipfile.ZipFile(file) as archive:
                entries, self.end = archive.infolist(), archive.start_dir
        except Exception as error:  # besides BadZipFile: whatever struct, codecs, seek and int make of bad bytes
            raise CheckpointError(
                f"{path}: a zip archive without a usable directory at its end ({short_repr(str(error))}): "
                "it is cut off or damaged, get the file again"
            ) from error
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) < len(entries):
            raise self.error("two entries have the same name")
        entries.sort(key=lambda entry: entry.header_offset)
        for entry, after in itertools.pairwise(entries):
            if entry.header_offset + _LOCAL_HEADER.size + entry.compress_size > after.header_offset:
                raise self.error(f"the entries {short_repr(entry.filename)} and {short_repr(after.filename)} overlap")
        self.prefix = self._find_prefix()
        self.storages: dict[tuple[str, Any, int], Storage] = {}
        self.places: dict[str, tuple[int, int, int | None]] = {}
        # All 0: the writer was told to leave them out (torch.serialization.set_crc32_options). A single 0 is a value.
        self.has_checksums = any(entry.CRC for entry in entries)

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: bad zip archive: {text}")

    def _find_prefix(self) -> str:
        """Return what is before ``data.pkl``: the file's name when PyTorch saved it, and a slash."""
        found = [name for name in self.entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(found) == 1 and f"{found[0][:-8]}constants.pkl" in self.entries:
            raise CheckpointError(
                f"{self.path}: expected a checkpoint, found a TorchScript archive: save its state_dict()"
            )
        if len(found) != 1:
            names = ", ".join(short_repr(name) for name in sorted(self.entries)[:3]) or "nothing"
            raise CheckpointError(
                f"{self.path}: expected a file written by torch.save, found a zip archive with {len(found)} entries "
                f"data.pkl ({names}...)"
            )
        return found[0][:-8]

    def place(self, name: str) -> tuple[int, int, int | None]:
        """Return offset, size and CRC-32 of an entry, after comparing its local header with the directory."""
        entry = self.entries[name]
        what = f"the entry {short_repr(name)}"
        if entry.flag_bits & _ENCRYPTED:
            raise self.error(f"{what} is encrypted")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise self.error(f"{what} is compressed, which torch.save never does: pack it again with `zip -0`")
        if not 0 <= entry.header_offset <= self.end - _LOCAL_HEADER.size:
            raise self.error(f"{what} is outside of the file")
        pickle_position = self.file.tell()
        self.file.seek(entry.header_offset)
        signature, _, flags, method, *_, name_size, extra = _LOCAL_HEADER.unpack(self.file.read(_LOCAL_HEADER.size))
        encoding = "utf-8" if flags & 0x800 else "cp437"
        local_name = self.file.read(name_size).decode(encoding, "replace")
        self.file.seek(pickle_position)
        if signature != b"PK\3\4" or method or flags & _ENCRYPTED or local_name != entry.orig_filename:
            raise self.error(f"{what} is not where the directory says")
        start = entry.header_offset + _LOCAL_HEADER.size + name_size + extra
        if start + entry.file_size > self.end:
            raise self.error(f"{what} is cut off")
        return start, entry.file_size, entry.CRC if self.has_checksums else None

    def load(self) -> Any:
        if (name := f"{self.prefix}byteorder") in self.entries:
            start, size, _ = self.place(name)
            self.file.seek(start)
            if (order := self.file.read(min(size, 16))) != b"little":
                raise CheckpointError(
                    f"{self.path}: expected little-endian numbers, found byteorder {short_repr(order)}"
                )
        start, size, crc = self.place(f"{self.prefix}data.pkl")
        if crc is not None and crc32(self.file, start, size) != crc:
            raise self.error("data.pkl is damaged, its CRC-32 differs: get the file again")
        self.file.seek(start)
        value, used = pickle_machine.load(self.file, size, KNOWN, self.find)
        if used != size:
            raise self.error(f"data.pkl has {size - used} bytes more than its pickle")
        return value

    def find(self, saved_id: object) -> Any:
        """Return what a persistent id stands for."""
        cls, key, count, view = _parse(saved_id)
        if view is not None:
            raise ValueError(f"storage {short_repr(key)} is part of another one, which this format does not have")
        name = f"{self.prefix}data/{key}"
        if name not in self.entries:
            raise CheckpointError(f"{self.path}: storage {short_repr(key)} is missing: no entry {short_repr(name)}")
        if isinstance(cls, Placeholder):
            return cls.called((saved_id,))
        if (identity := (key, cls.dtype, count)) not in self.storages:
            if key not in self.places:
                self.places[key] = self.place(name)
            offset, size, crc = self.places[key]
            if count * cls.dtype.itemsize > size:
                raise CheckpointError(
                    f"{self.path}: storage {short_repr(key)}: expected {count} elements of {cls.dtype}, "
                    f"found {size} bytes"
                )
            self.storages[identity] = Storage(self.path, key, cls.dtype, offset, count, crc, size)
        return self.storages[identity]


class _Legacy:
    """The format without an archive. Its object is read twice: it holds the sizes of the storages that follow it."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.declared: dict[str, tuple[np.dtype[Any], int]] = {}
        self.storages: dict[tuple[str, Any, int, int], Storage] = {}
        self.roots: dict[str, Storage] = {}

    def read(self, **handlers: Any) -> Any:
        return pickle_machine.load(self.file, self.size - self.file.tell(), **handlers)[0]

    def load(self) -> Any:
        self.file.seek(0)
        _, version, machine = self.read(), self.read(), self.read()
        if type(version) is not int or version != _PROTOCOL:
            raise CheckpointError(
                f"{self.path}: expected version {_PROTOCOL} of the format, found {short_repr(version)}"
            )
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise CheckpointError(f"{self.path}: expected little-endian numbers, the file does not say so")
        start = self.file.tell()
        types = {name: value for name, value in KNOWN.items() if isinstance(value, StorageType)}
        self.read(known=types, persistent=self.declare)
        self._find_storages(self.read())
        self.file.seek(start)
        return self.read(known=KNOWN, persistent=self.find)

    def declare(self, saved_id: Any) -> Any:
        """Note the type and size of a storage at its first mention, which is how it was written."""
        if _is_module(saved_id):
            return saved_id[1]
        cls, key, count, _ = _parse(saved_id)
        if isinstance(cls, Placeholder):
            raise CheckpointError(
                f"{self.path}: storage {short_repr(key)} is of the type {cls}, whose size is not known"
            )
        self.declared.setdefault(key, (cls.dtype, count))
        return None

    def _find_storages(self, keys: object) -> None:
        """Find the storages, which follow their keys in that order; the file's position is after the keys."""
        for key in keys if isinstance(keys, list) else [None]:
            if not isinstance(key, str) or key not in self.declared or key in self.roots:
                raise CheckpointError(
                    f"{self.path}: its list of storages has {short_repr(key)}, which its object does not"
                )
            dtype, count = self.declared[key]
            head = self.file.read(8)
            found = int.from_bytes(head, "little", signed=True)
            offset = self.file.tell()
            if len(head) < 8 or (found == count and count * dtype.itemsize > self.size - offset):
                raise CheckpointError(
                    f"{self.path}: ends within storage {short_repr(key)} ({count} elements of {dtype}): it is cut off, "
                    "get the file again"
                )
            if found != count:
                raise CheckpointError(
                    f"{self.path}: storage {short_repr(key)}: expected {count} elements, found {found}"
                )
            self.roots[key] = Storage(self.path, key, dtype, offset, count, None)
            self.file.seek(offset + count * dtype.itemsize)
        if missing := next((key for key in self.declared if key not in self.roots), None):
            raise CheckpointError(f"{self.path}: storage {short_repr(missing)} is missing")

    def find(self, saved_id: Any) -> Any:
        """Return what a persistent id stands for: a storage, a part of one, or the class of a module."""
        if _is_module(saved_id):
            return saved_id[1]
        cls, key, count, view = _parse(saved_id)
        if key not in self.roots:
            raise ValueError(f"storage {short_repr(key)} was not there when the file was read for the first time")
        root, start = self.roots[key], 0
        if view is not None:
            if not isinstance(view, tuple) or len(view) != 3:
                raise ValueError(
                    f"a part of storage {short_repr(key)} is {short_repr(view)}, expected its key, offset and size"
                )
            start, count = integer(view[1], "an offset"), integer(view[2], "a size")
        if (identity := (key, cls.dtype, start, count)) not in self.storages:
            if (start + count) * cls.dtype.itemsize > root.nbytes:
                raise ValueError(f"storage {short_repr(key)}: elements {start} to {start + count} of {root.count}")
            place = root.offset + start * cls.dtype.itemsize
            self.storages[identity] = Storage(self.path, key, cls.dtype, place, count, None)
        return self.storages[identity]
