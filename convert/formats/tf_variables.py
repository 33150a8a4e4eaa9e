"""The names of the variables in a checkpoint of TensorFlow 2, whose keys are paths of objects and no names.

    <prefix>.index             key -> BundleEntryProto; the key "" -> BundleHeaderProto
    _CHECKPOINTABLE_OBJECT_GRAPH     a text in the data: a TrackableObjectGraph, with each key's ``full_name``

Sources: ``tensor_bundle.proto``, ``trackable_object_graph.proto`` and ``tensor_bundle.cc`` of TensorFlow; LevelDB's
``doc/table_format.md``. TensorFlow's own reader allocates whatever length a text in the index claims, and takes seconds
to start; nothing here allocates more than the files have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.errors import CheckpointError

OBJECT_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
_INDEX = ".index"
_MAGIC = 0xDB4775248B80FB57
_FOOTER = struct.Struct("<40sQ")
_TRAILER_BYTES = 5
_MAX_INDEX, _MAX_GRAPH, _MAX_KEYS = 1 << 26, 1 << 26, 1 << 26
"""Bytes: the index of CPM-Generate has 60 kB, its graph of objects 1 MB."""
_MAX_FILES = 99_999
_VARIABLE = b"VARIABLE_VALUE"
_NODES, _ATTRIBUTES = 1, 2
_COUNT, _SHARD, _OFFSET, _SIZE = 1, 3, 4, 5
_CHECKSUM_BYTES = 4


def has_object_graph(prefix: Path) -> bool:
    """Whether a checkpoint is one of TensorFlow 2's, by its index; False where it has none, or a damaged one.

    Raises:
        OSError: the index cannot be read.
    """
    try:
        return OBJECT_GRAPH in _read_index(prefix)
    except ValueError:
        return False


def variable_names(prefix: Path) -> dict[str, str]:
    """Return the key of each variable and its name, such as ``gpt/layer00/attention/key_layer/bias``.

    Keys are names where there is no graph of objects, as in checkpoints of TensorFlow 1.

    Raises:
        CheckpointError: the index or the graph is damaged.
        OSError: a file cannot be read.
    """
    where = prefix.with_name(prefix.name + _INDEX)
    try:
        entries = _read_index(prefix)
        if OBJECT_GRAPH in entries:
            return dict(_names(_read_graph(prefix, entries)))
        return {key.decode(): key.decode() for key in entries if key}
    except ValueError as error:
        raise CheckpointError(
            f"{where}: the names of its variables cannot be read: {error}: damaged or cut off, get it again"
        ) from error


def _read_index(prefix: Path) -> dict[bytes, bytes]:
    """Return the entries of an index; none where there is no such file.

    Raises:
        ValueError: it is no table, or a compressed one.
    """
    file = prefix.with_name(prefix.name + _INDEX)
    if not file.is_file():
        return {}
    with file.open("rb") as opened:
        data = opened.read(_MAX_INDEX + 1)
    if len(data) > _MAX_INDEX or len(data) < _FOOTER.size:
        raise ValueError(f"expected an index, found {len(data)} bytes")
    handles, magic = _FOOTER.unpack_from(data, len(data) - _FOOTER.size)
    if magic != _MAGIC:
        raise ValueError("expected an index, found another file")
    _, place = _varint(handles, _varint(handles, 0)[1])  # what comes first is where the filters are
    entries: dict[bytes, bytes] = {}
    total = 0
    for _, handle in _block(data, handles[place:]):
        for key, value in _block(data, handle):
            entries[key] = value
            total += len(key)
            if total > _MAX_KEYS:
                raise ValueError("keys too long")
    return entries


def _block(data: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a block, given where it is."""
    offset, place = _varint(handle, 0)
    size, _ = _varint(handle, place)
    block = data[offset : offset + size]
    if len(block) != size or size < 4 or data[offset + size : offset + size + 1] != b"\0":
        raise ValueError("expected blocks that are not compressed")
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")  # in front of the restarts and their number
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or place + own + length > end:
            raise ValueError("an entry ends behind its block")
        key = key[:shared] + block[place : place + own]
        if len(key) > 1 << 16:
            raise ValueError("keys too long")
        yield key, block[place + own : place + own + length]
        place += own + length


def _read_graph(prefix: Path, entries: Mapping[bytes, bytes]) -> bytes:
    """Return the graph of objects, out of the file that the entry of the index names."""
    count = _numbers(entries.get(b"", b"")).get(_COUNT, 1)
    entry = _numbers(entries[OBJECT_GRAPH])
    offset, size, shard = entry.get(_OFFSET, 0), entry.get(_SIZE, 0), entry.get(_SHARD, 0)
    if size > _MAX_GRAPH:
        raise ValueError(f"a graph of {size} bytes")
    if max(shard, count) > _MAX_FILES:
        raise ValueError(f"file {shard} of {count}")
    with prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{count:05d}").open("rb") as opened:
        if opened.seek(0, 2) < offset + size:
            raise ValueError("the graph of objects ends too early")
        opened.seek(offset)
        data = opened.read(size)
    length, place = _varint(data, 0)
    if place + _CHECKSUM_BYTES + length != size or len(data) != size:
        raise ValueError("the graph of objects ends too early")
    return data[place + _CHECKSUM_BYTES :]


def _names(graph: bytes) -> Iterator[tuple[str, str]]:
    """Yield the key and the name of each variable in a ``TrackableObjectGraph``."""
    for number, node in _fields(graph):
        if number != _NODES or not isinstance(node, bytes):
            continue
        for kind, attribute in _fields(node):
            if kind != _ATTRIBUTES or not isinstance(attribute, bytes):
                continue
            parts = dict(_fields(attribute))
            name, full_name, key = (parts.get(field, b"") for field in (1, 2, 3))
            if name == _VARIABLE and isinstance(full_name, bytes) and isinstance(key, bytes):
                yield key.decode(), full_name.decode()


def _numbers(message: bytes) -> dict[int, int]:
    """Return the fields of a protocol buffer that are numbers."""
    return {number: value for number, value in _fields(message) if isinstance(value, int)}


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a protocol buffer: a number, or bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(message, place)
        else:
            length = {1: 8, 5: 4}.get(kind, len(message) + 1)
        if place + length > len(message):
            raise ValueError("a field ends behind its message")
        yield number, message[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(data):
            raise ValueError("a number is cut off")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than 64 bits")
