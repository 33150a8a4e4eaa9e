"""Writes pickles opcode by opcode, and files of both of PyTorch's formats around them, however wrong they are."""

from __future__ import annotations

import dataclasses
import pickle
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STOP = b"."


def name(module: str, qualified: str) -> bytes:
    """A GLOBAL."""
    return f"c{module}\n{qualified}\n".encode()


def value(item: object) -> bytes:
    """Plain data, by the standard pickler, as a part of a pickle; it uses no memo."""
    if isinstance(item, tuple):
        return b"(" + b"".join(map(value, item)) + b"t"
    if isinstance(item, list):
        return b"](" + b"".join(map(value, item)) + b"e"
    if isinstance(item, dict):
        return b"}(" + b"".join(value(key) + value(entry) for key, entry in item.items()) + b"u"
    if isinstance(item, Raw):
        return item.code
    if isinstance(item, str):
        return b"X" + struct.pack("<I", len(item.encode())) + item.encode()
    if isinstance(item, bytes):
        return b"B" + struct.pack("<I", len(item)) + item
    return pickle.dumps(item, 2)[2:-1]  # without PROTO and STOP


@dataclasses.dataclass(frozen=True)
class Raw:
    """Opcodes that leave one thing on the stack, as a part of ``value``'s data."""

    code: bytes


def call(module: str, qualified: str, *args: object) -> Raw:
    """GLOBAL, the arguments, REDUCE."""
    return Raw(name(module, qualified) + value(args) + b"R")


def storage(kind: str = "FloatStorage", key: object = "0", count: object = 4, **more: object) -> Raw:
    """A persistent id as both formats have it; ``view`` makes it one of an old legacy file."""
    items = ("storage", Raw(name("torch", kind)), key, "cpu", count, *more.values())
    return Raw(value(items) + b"Q")


def tensor(of: object, offset: object = 0, size: object = (4,), stride: object = (1,)) -> Raw:
    return call("torch._utils", "_rebuild_tensor_v2", of, offset, size, stride, False, None)


def finish(item: object) -> bytes:
    return b"\x80\x02" + value(item) + STOP


@dataclasses.dataclass
class Entry:
    """One entry of a zip archive; what is None is what it should be."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    local_name: str | None = None
    offset: int | None = None
    """Where the directory says it is; its own local header is left out then."""


def write_zip(path: Path, entries: Sequence[Entry]) -> Path:
    body, directory = b"", b""
    for entry in entries:
        data = zlib.compress(entry.data, 9)[2:-4] if entry.method == 8 else entry.data
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.size is None else entry.size
        compressed = len(data) if entry.method == 8 else size
        file_name = entry.name.encode()
        local = (entry.local_name or entry.name).encode()
        fields = (20, entry.flags, entry.method, 0, 0, crc, compressed, size)
        offset = len(body) if entry.offset is None else entry.offset
        if entry.offset is None:
            body += struct.pack("<4s5H3I2H", b"PK\3\4", *fields, len(local), 0) + local + data
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, *fields, len(file_name), 0, 0, 0, 0, 0, offset)
        directory += file_name
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


def zip_file(path: Path, code: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """The zip format around a pickle."""
    entries = [Entry("archive/data.pkl", code), Entry("archive/byteorder", b"little")]
    entries += [Entry(f"archive/data/{key}", data) for key, data in (storages or {}).items()]
    return write_zip(path, [*entries, Entry("archive/version", b"3\n")])


def legacy_file(path: Path, code: bytes, storages: Mapping[str, tuple[int, bytes]] | None = None) -> Path:
    """The legacy format around a pickle; the number of elements of a storage, then its bytes."""
    storages = storages or {}
    header = (MAGIC, VERSION, {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"int": 4}})
    data = b"".join(pickle.dumps(item, 2) for item in header) + code + pickle.dumps(list(storages), 2)
    path.write_bytes(data + b"".join(struct.pack("<q", count) + raw for count, raw in storages.values()))
    return path
