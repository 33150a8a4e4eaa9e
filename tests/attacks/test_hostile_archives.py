"""Files whose archive, storages or tensors claim what is not there."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from convert.torch_format.reader import Storage, TensorRef, load
from support.errors import CheckpointError
from tests.attacks.assembler import (
    Entry,
    Raw,
    call,
    finish,
    legacy_file,
    name,
    storage,
    tensor,
    value,
    write_zip,
    zip_file,
)

DATA = np.arange(4, dtype="<f4").tobytes()
GOOD = finish(tensor(storage()))
HUGE = 10**12


def view(offset: object, size: object, key: object = "7") -> Raw:
    return storage(view=(key, offset, size))


def v3(dtype: object, size: object = (4,), count: object = 16) -> Raw:
    untyped = Raw(value(("storage", Raw(name("torch.storage", "UntypedStorage")), "0", "cpu", count)) + b"Q")
    return call("torch._utils", "_rebuild_tensor_v3", untyped, 0, size, (1,), False, None, dtype)


TENSORS: dict[str, Raw] = {
    "size beyond the storage": tensor(storage(), 0, (5,)),
    "offset beyond the storage": tensor(storage(), 4, (1,)),
    "offset and size beyond": tensor(storage(), 2, (3,)),
    "stride beyond": tensor(storage(), 0, (3,), (2,)),
    "sizes that overflow": tensor(storage(), 0, (2**62, 2**62, 2**62), (0, 0, 0)),
    "bytes that overflow": tensor(storage(), 0, (2**62,), (0,)),
    "strides that overflow": tensor(storage(), 0, (2,), (2**62,)),
    "stride of one element that overflows": tensor(storage(), 0, (1,), (2**63 - 1,)),
    "sizes of an empty one that overflow": tensor(storage(), 0, (0, 2**62, 2**62), (1, 1, 1)),
    "negative size": tensor(storage(), 0, (-1,)),
    "negative stride": tensor(storage(), 3, (4,), (-1,)),
    "negative offset": tensor(storage(), -1, (1,)),
    "large integer": tensor(storage(), 2**4000, (1,)),
    "boolean offset": tensor(storage(), True, (1,)),
    "float size": tensor(storage(), 0, (4.0,)),
    "size as list": tensor(storage(), 0, [4]),
    "size as string": tensor(storage(), 0, "4"),
    "sizes and strides that differ": tensor(storage(), 0, (2, 2), (1,)),
    "sizes without strides": tensor(storage(), 0, (0, 3), ()),
    "33 dimensions": tensor(storage(), 0, (1,) * 33, (1,) * 33),
    "10,000 dimensions": tensor(storage(), 0, (1,) * 10_000, (1,) * 10_000),
    "no storage": tensor(None),
    "a tensor as storage": tensor(tensor(storage())),
    "a storage class as storage": tensor(Raw(name("torch", "FloatStorage"))),
    "a dtype as size": tensor(storage(), 0, Raw(name("torch", "float32"))),
    "a storage of 10**12 elements": storage(count=HUGE),
    "a storage of 2**63 elements": storage(count=2**63),
    "a storage of -1 elements": storage(count=-1),
    "a storage of True elements": storage(count=True),
    "a storage of 4.0 elements": storage(count=4.0),
    "a storage of wider elements": Raw(value([storage(), storage("DoubleStorage")])),
    "a storage that is missing": storage(key="1"),
    "a storage with a path as key": storage(key="../../../../etc/passwd"),
    "a storage with a number as key": storage(key=0),
    "a storage with a list as key": storage(key=[]),
    "a dtype that is a string": v3("float32"),
    "a dtype that is wider": v3(Raw(name("torch", "float64"))),
    "bytes beyond the storage": v3(Raw(name("torch", "uint8")), (17,)),
    "a part beyond its storage": view(2, 3),
    "a part with a negative offset": view(-1, 2),
    "a part of 10**12 elements": view(0, HUGE),
    "a part of strings": view("a", "b"),
    "a part that is a number": storage(view=3),
    "arguments of a tensor with attributes": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        Raw(name("torch._utils", "_rebuild_tensor_v2")),
        Raw(name("torch", "Tensor")),
        (storage(), 0, (5,), (1,), False, None),
        {},
    ),
}


@pytest.mark.parametrize("item", TENSORS.values(), ids=TENSORS.keys())
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_stay_within_the_bytes(item: Raw, legacy: bool, tmp_path: Path) -> None:
    # The first mention is right, so that the legacy format's list of storages is.
    untyped = b"UntypedStorage" in item.code
    code = finish([item] if untyped else [storage(), item])
    if legacy:
        path = legacy_file(tmp_path / "x.pt", code, {"0": (16 if untyped else 4, DATA)})
    else:
        path = zip_file(tmp_path / "x.pt", code, {"0": DATA})
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "x.pt") in str(caught.value)


def test_the_table_tests_what_it_says(tmp_path: Path) -> None:
    """The same files load when the claim is true."""
    for number, item in enumerate(
        (tensor(storage()), tensor(storage(), 1, (2,), (2,)), v3(Raw(name("torch", "float32"))))
    ):
        found = load(zip_file(tmp_path / f"{number}.pt", finish(item), {"0": DATA}))
        np.testing.assert_array_equal(found.numpy(), np.arange(4)[found.offset :: found.stride[0]])
    found = load(legacy_file(tmp_path / "l.pt", finish([storage(), tensor(view(1, 3), 1, (2,))]), {"0": (4, DATA)}))
    assert found[1].numpy().tolist() == [2, 3]
    assert found[0].offset + 4 == found[1].storage.offset


LEGACY: dict[str, tuple[bytes, dict[str, tuple[int, bytes]]]] = {
    "10**12 elements declared": (finish(storage(count=HUGE)), {"0": (HUGE, DATA)}),
    "negative count": (GOOD, {"0": (-4, DATA)}),
    "another count": (GOOD, {"0": (3, DATA)}),
    "cut off": (GOOD, {"0": (4, DATA[:-1])}),
    "no storage": (GOOD, {}),
    "a storage that nobody mentions": (GOOD, {"0": (4, DATA), "1": (4, DATA)}),
}


@pytest.mark.parametrize(("code", "storages"), LEGACY.values(), ids=LEGACY.keys())
def test_legacy_storages(code: bytes, storages: dict[str, tuple[int, bytes]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt: .*storage"):
        load(legacy_file(tmp_path / "x.pt", code, storages))


def test_legacy_keys(tmp_path: Path) -> None:
    good = legacy_file(tmp_path / "x.pt", GOOD, {"0": (4, DATA)}).read_bytes()
    assert load(tmp_path / "x.pt").numpy().tolist() == [0, 1, 2, 3]
    tail = struct.pack("<q", 4) + DATA
    for keys in (["0", "0"], [0], "0", None, {"0": 1}, [["0"]]):
        start = good.index(finish(tensor(storage()))) + len(GOOD)
        (tmp_path / "x.pt").write_bytes(good[:start] + finish(keys) + tail * 2)
        with pytest.raises(CheckpointError):
            load(tmp_path / "x.pt")


PICKLE, ORDER, ZERO = Entry("a/data.pkl", GOOD), Entry("a/byteorder", b"little"), Entry("a/data/0", DATA)
LOCAL = 30
END_OF_PICKLE = LOCAL + len(PICKLE.name) + len(GOOD)

ARCHIVES: dict[str, tuple[Sequence[Entry], str]] = {
    "compressed pickle": ([Entry("a/data.pkl", GOOD, method=8), ZERO], "compressed"),
    "zip bomb in the pickle": ([Entry("a/data.pkl", b"N" * 50_000_000, method=8), ZERO], "compressed"),
    "compressed storage": ([PICKLE, Entry("a/data/0", DATA, method=8)], "compressed"),
    "unknown compression": ([PICKLE, Entry("a/data/0", DATA, method=99)], "compressed"),
    "encrypted": ([PICKLE, Entry("a/data/0", DATA, flags=1)], "encrypted"),
    "two entries of one name": ([PICKLE, ZERO, ZERO], "same name"),
    "two pickles": ([PICKLE, Entry("b/data.pkl", GOOD), ZERO], "2 entries data.pkl"),
    "no pickle": ([ZERO], "0 entries data.pkl"),
    "another name in the local header": ([PICKLE, Entry("a/data/0", DATA, local_name="a/data/1")], "not where"),
    "alias of another entry": ([PICKLE, Entry("a/data/0", DATA, offset=0)], "overlap"),
    "overlap": ([PICKLE, ZERO, Entry("a/data/1", DATA, offset=END_OF_PICKLE + 4)], "overlap"),
    "local header in data": ([PICKLE, Entry("a/data/0", DATA, offset=END_OF_PICKLE)], "outside|not where"),
    "beyond the file": ([PICKLE, Entry("a/data/0", DATA, offset=10**9)], "outside"),
    "size beyond the file": ([PICKLE, Entry("a/data/0", DATA, size=10**9)], "cut off"),
    "pickle beyond the file": ([Entry("a/data.pkl", GOOD, size=10**9)], "cut off"),
    "damaged pickle": ([Entry("a/data.pkl", GOOD, crc=1), ZERO], "CRC-32"),
    "bytes behind the pickle": ([Entry("a/data.pkl", GOOD + b"N."), ZERO], "2 bytes more"),
    "big-endian": ([PICKLE, Entry("a/byteorder", b"big"), ZERO], "little-endian"),
    "another byte order": ([PICKLE, Entry("a/byteorder", b"x" * 10**6), ZERO], "little-endian"),
    "storage under a path": ([PICKLE, Entry("a/data/../data/0", DATA)], "missing"),
    "storage in another folder": ([PICKLE, Entry("b/data/0", DATA)], "missing"),
    "storage too short": ([PICKLE, Entry("a/data/0", DATA[:-1])], "expected 4 elements of float32, found 15 bytes"),
    "TorchScript": ([PICKLE, ZERO, Entry("a/constants.pkl", b"N.")], "TorchScript"),
}


@pytest.mark.parametrize(("entries", "text"), ARCHIVES.values(), ids=ARCHIVES.keys())
def test_archives(entries: Sequence[Entry], text: str, tmp_path: Path) -> None:
    write_zip(tmp_path / "x.pt", entries)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / "x.pt")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert re.search(text, str(caught.value).removeprefix(str(tmp_path)))  # the name of the folder has words, too


@pytest.mark.parametrize(
    ("position", "byte"), [(0, b"p"), (6, b"\1"), (8, b"\x08")], ids=["signature", "flags", "method"]
)
def test_local_headers_are_compared(position: int, byte: bytes, tmp_path: Path) -> None:
    data = bytearray(write_zip(tmp_path / "x.pt", [PICKLE, ZERO]).read_bytes())
    data[END_OF_PICKLE + position] = byte[0]
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="'a/data/0' is not where the directory says"):
        load(tmp_path / "x.pt")


def test_legacy_header(tmp_path: Path) -> None:
    good = legacy_file(tmp_path / "x.pt", GOOD, {"0": (4, DATA)}).read_bytes()
    version = finish(1001)
    for old, new, text in (
        (version, finish(1002), "expected version 1001 of the format, found 1002"),
        (version, finish("1"), "found '1'"),
        (b"\x88", b"\x89", "little-endian"),
    ):
        assert old in good
        (tmp_path / "x.pt").write_bytes(good.replace(old, new, 1))
        with pytest.raises(CheckpointError, match=text):
            load(tmp_path / "x.pt")


def test_entries_with_paths_stay_where_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    others = [
        Entry("../evil", b"x"),
        Entry("/evil", b"x"),
        Entry("a/data/../../../evil", b"x"),
        Entry("C:\\evil", b"x"),
    ]
    found = load(write_zip(folder / "x.pt", [PICKLE, ORDER, ZERO, *others]))
    assert found.numpy().tolist() == [0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "x.pt"]


def test_the_directory_may_say_anything(tmp_path: Path) -> None:
    """Every number of the archive's directory and its end, replaced by large ones."""
    good = write_zip(tmp_path / "x.pt", [PICKLE, ORDER, ZERO]).read_bytes()
    start = good.index(b"PK\1\2")
    for position in range(start, len(good) - 1):
        for number in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"):
            (tmp_path / "x.pt").write_bytes(good[:position] + number[: len(good) - position] + good[position + 4 :])
            with contextlib.suppress(CheckpointError):
                assert load(tmp_path / "x.pt").numpy().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "an empty file"),
        (b"PK\5\6" + bytes(18), "an empty zip archive"),
        (b"PK\3\4" + bytes(100), "cut off"),
        (struct.pack("<Q", 10) + b'{"a": 1}  ', "safetensors"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (b"\x80\x02}.", "another pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"hello", "5 bytes that start with 68 65 6c 6c 6f"),
    ],
)
def test_other_files_are_named(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"x\.pt: .*{text}"):
        load(tmp_path / "x.pt")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, text in (
        (tmp_path, "found a directory"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "fifo", "found a device"),
        (Path("/dev/zero"), "found a device"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(CheckpointError, match=text):
            load(path)


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "x.pt", GOOD, {"0": DATA})
    found = load(path)
    assert isinstance(found, TensorRef)
    assert isinstance(found.storage, Storage)
    path.write_bytes(b"")
    for function in (found.numpy, found.storage.check):
        with pytest.raises(CheckpointError, match="storage '0'"):
            function()
    path.unlink()
    for function in (found.numpy, found.storage.check):
        with pytest.raises(CheckpointError, match="No such file"):
            function()
