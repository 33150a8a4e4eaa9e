"""Checkpoints of TensorFlow 2 whose index or graph of objects claims what is not there: refused, by few bytes.

The good files are written by the project's own writer of indexes, which TensorFlow reads (``test_saved_model.py``).
"""

from __future__ import annotations

import random
import re
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.formats.tf_variables import OBJECT_GRAPH, has_object_graph, variable_names
from exports.tensor_bundle.sstable import table, varint
from support.errors import CheckpointError

HUGE = 1 << 60
NAMES = {"tensors/0/.ATTRIBUTES/VARIABLE_VALUE": "gpt/embedding/embeddings", "x/.ATTRIBUTES/VARIABLE_VALUE": "更"}


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def graph(names: dict[str, str] = NAMES) -> bytes:
    """Write a TrackableObjectGraph: a root with children, and a node with an attribute for each variable."""
    root = field(1, b"".join(field(1, field(1, i + 1) + field(2, b"x")) for i in range(len(names))))
    attributes = (
        field(1, b"VARIABLE_VALUE") + field(2, name.encode()) + field(3, key.encode()) for key, name in names.items()
    )
    return root + b"".join(field(1, field(2, attribute)) for attribute in attributes)


def text(content: bytes, length: int | None = None) -> bytes:
    """Write a tensor of one text: its length, a checksum, and itself."""
    return varint(len(content) if length is None else length) + bytes(4) + content


def entry(**fields: int) -> bytes:
    numbers = {"dtype": 1, "shard": 3, "offset": 4, "size": 5}
    return b"".join(field(numbers[name], value) for name, value in fields.items())


def write(folder: Path, data: bytes, place: bytes, header: bytes = field(1, 1), more: int = 0) -> Path:
    rows = [(b"", header), (OBJECT_GRAPH, place), *((f"k{i:07d}".encode(), b"") for i in range(more))]
    (folder / "x.index").write_bytes(table(rows))
    (folder / "x.data-00000-of-00001").write_bytes(data)
    return folder / "x"


def good(folder: Path, content: bytes | None = None) -> Path:
    data = text(graph() if content is None else content)
    return write(folder, data, entry(dtype=7, offset=0, size=len(data)))


def longer_text(folder: Path) -> Path:
    data = text(graph(), HUGE)
    return write(folder, data, entry(dtype=7, offset=0, size=len(data)))


def longer_size(folder: Path) -> Path:
    return write(folder, text(graph(), HUGE - 13), entry(dtype=7, offset=0, size=HUGE))


def behind_the_end(folder: Path) -> Path:
    return write(folder, text(graph()), entry(dtype=7, offset=HUGE, size=40))


def many_shards(folder: Path) -> Path:
    return write(folder, text(graph()), entry(dtype=7, shard=HUGE, size=40), field(1, HUGE))


def damaged(change: Callable[[bytearray], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        prefix = good(folder)
        data = bytearray((folder / "x.index").read_bytes())
        change(data)
        (folder / "x.index").write_bytes(data)
        return prefix

    return make


def set_bytes(place: int, value: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        start = place % len(data)
        data[start : start + len(value)] = value

    return change


def index_of(folder: Path, entries: bytes, kind: int = 0) -> Path:
    """Write an index of one block, which ends with the place of its restart; ``kind`` says how it is compressed."""
    block = entries + struct.pack("<2I", 0, 1)
    handle = varint(0) + varint(len(block))
    places = varint(0) + varint(1) + varint(len(handle)) + b"z" + handle + struct.pack("<2I", 0, 1)
    handles = varint(0) + varint(0) + varint(len(block) + 5) + varint(len(places))
    footer = struct.pack("<40sQ", handles, 0xDB4775248B80FB57)
    (folder / "x.index").write_bytes(block + bytes([kind]) + bytes(4) + places + bytes(5) + footer)
    return folder / "x"


def keys_that_share_much(folder: Path) -> Path:
    """Write 200,000 keys of 50 kB in 2 MB: each has all of the one before and one byte more."""
    first = varint(0) + varint(50_000) + varint(0) + b"k" * 50_000
    rest = (varint(50_000) + varint(1) + varint(0) + b"k" for _ in range(200_000))
    return index_of(folder, first + b"".join(rest))


def compressed(folder: Path) -> Path:
    return index_of(folder, varint(0) + varint(1) + varint(0) + b"k", kind=1)


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a text of 2**60 bytes": (longer_text, "the graph of objects ends too early"),
    "an entry of 2**60 bytes": (longer_size, f"a graph of {HUGE} bytes"),
    "an entry behind the end": (behind_the_end, "the graph of objects ends too early"),
    "2**60 files": (many_shards, f"file {HUGE} of {HUGE}"),
    "another file": (damaged(set_bytes(-8, bytes(8))), "expected an index, found another file"),
    "cut": (damaged(lambda data: data.__delitem__(slice(10, 30))), "blocks that are not compressed|ends behind"),
    "compressed": (compressed, "expected blocks that are not compressed"),
    "blocks nowhere": (damaged(set_bytes(-48, varint(HUGE) * 4)), "a number|blocks"),
    "numbers without an end": (damaged(set_bytes(-48, b"\xff" * 40)), "more than 64 bits"),
    "keys that share much": (keys_that_share_much, "keys too long"),
    "a field behind its message": (lambda folder: good(folder, b"\x0a\x7fabc"), "a field ends behind its message"),
    "a group": (lambda folder: good(folder, b"\x0b\x0c"), "a field ends behind its message"),
    "names that are no text": (lambda folder: good(folder, graph().replace(b"gpt/", b"\xff\xfe\xfd/")), "utf-8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_index_is_an_error_of_one_line(case: str, tmp_path: Path) -> None:
    make, words = HOSTILE[case]
    prefix, before = make(tmp_path), set(sys.modules)
    tracemalloc.start()
    try:
        has_object_graph(prefix)
        with pytest.raises(CheckpointError) as caught:
            variable_names(prefix)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)
    assert "tensorflow" not in set(sys.modules) - before


def test_the_table_tests_what_it_says(tmp_path: Path) -> None:
    assert variable_names(good(tmp_path)) == NAMES
    data = text(graph())
    assert variable_names(write(tmp_path, data, entry(dtype=7, offset=0, size=len(data)), more=20_000)) == NAMES


def test_keys_are_names_where_there_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(table([(b"", field(1, 1)), (b"model/wte", entry(dtype=1))]))
    assert variable_names(tmp_path / "x") == {"model/wte": "model/wte"}
    assert not has_object_graph(tmp_path / "x")


def test_damaged_bytes_are_names_or_an_error(tmp_path: Path) -> None:
    prefix = good(tmp_path)
    files = [(path, path.read_bytes()) for path in tmp_path.iterdir()]
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    lines: list[str] = []
    for _ in range(3000):
        path, original = rng.choice(files)
        data = bytearray(original)
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        path.write_bytes(data)
        try:
            has_object_graph(prefix)
            variable_names(prefix)
        except (CheckpointError, OSError) as error:
            lines.append(str(error))
        path.write_bytes(original)
    assert lines, seed
    assert not any("\n" in line for line in lines), seed
