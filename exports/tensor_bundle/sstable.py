"""The file format of a sorted table of keys and values, in which TensorFlow keeps the index of a checkpoint.

It is LevelDB's: blocks of entries, an (empty) block for filters, a block with the last key and the place of each block
of entries, and a footer. Numbers are little-endian; a varint has 7 bits a byte, the lowest first. Sources:
``doc/table_format.md`` of LevelDB; ``table_builder.cc``, ``block_builder.cc`` and ``format.cc`` of TensorFlow's
``lib/io``, whose defaults for the size of a block and the distance of its restarts are kept here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import google_crc32c

_BLOCK = 262_144
"""Bytes after which a block is full."""

_RESTART = 16
"""Entries after which a key is written in full again, so that a reader can search in between."""

_MAGIC = 0xDB4775248B80FB57
_FOOTER = struct.Struct("<40sQ")


def masked(crc: int) -> int:
    """Return a CRC-32C as files keep it, so that the CRC of bytes that have CRCs in them is as good as any other."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def varint(value: int) -> bytes:
    """Encode a number that is not negative, 7 bits a byte."""
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the whole file for ``entries``, which are sorted by key.

    Raises:
        ValueError: two keys are equal, or out of order.
    """
    file, places, block, last = bytearray(), _Block(), _Block(), None
    for key, value in entries:
        if last is not None and key <= last:
            raise ValueError(f"the key {key!r} comes after {last!r}")
        if block.size >= _BLOCK:
            places.add(block.last, _append(file, block))
            block = _Block()
        block.add(key, value)
        last = key
    if last is not None:
        places.add(block.last, _append(file, block))
    filters = _append(file, _Block())
    handles = filters + _append(file, places)
    return bytes(file + _FOOTER.pack(handles, _MAGIC))


class _Block:
    """Entries, each without the bytes that its key shares with the one before, then the places of the restarts."""

    def __init__(self) -> None:
        self.last = b""
        self._bytes = bytearray()
        self._restarts = [0]
        self._count = 0

    @property
    def size(self) -> int:
        return len(self._bytes) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count and self._count % _RESTART == 0:
            self._restarts.append(len(self._bytes))
        else:
            shared = _shared(self.last, key)
        self._bytes += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self.last = key
        self._count += 1

    def content(self) -> bytes:
        numbers = (*self._restarts, len(self._restarts))
        return bytes(self._bytes + struct.pack(f"<{len(numbers)}I", *numbers))


def _append(file: bytearray, block: _Block) -> bytes:
    """Add a block and its trailer: 0, as it is not compressed, and the CRC-32C of all; where it is, as two varints."""
    place, content = len(file), block.content()
    stored = content + b"\0"
    file += stored + struct.pack("<I", masked(google_crc32c.value(stored)))
    return varint(place) + varint(len(content))


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of bytes that two keys have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
