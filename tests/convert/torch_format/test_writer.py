"""What ``torch_save`` writes, PyTorch and our own reader read."""

from __future__ import annotations

import collections
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from convert.torch_format.reader import TensorRef, load
from convert.torch_format.writer import Pending, save, writing

READERS: dict[str, Callable[[Path], Any]] = {
    "weights_only": lambda path: torch.load(path, weights_only=True),
    "anything": lambda path: torch.load(path, weights_only=False),
    "mmap": lambda path: torch.load(path, weights_only=True, mmap=True),
    "ours": load,
}
DTYPES = ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
SHAPES: list[tuple[int, ...]] = [(), (1,), (5,), (0,), (3, 0, 2), (3, 4), (2, 3, 5), (17, 129)]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def random_bits(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray[Any, Any]:
    """Any bits: NaNs, infinities and denormal numbers are among them."""
    size = int(np.prod(shape, dtype=int)) * dtype_of(dtype).itemsize
    raw = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return (raw & 1 if dtype == "bool" else raw).view(dtype_of(dtype)).reshape(shape)


def pending(array: np.ndarray[Any, Any]) -> Pending:
    return Pending(array.shape, array.dtype, lambda: array)


def found(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Type, shape and bytes of a tensor, whoever read it."""
    if isinstance(value, TensorRef):
        value.storage.check()
        return value.dtype.name, value.shape, value.numpy().tobytes()
    assert isinstance(value, torch.Tensor)
    assert value.stride() == torch.empty(value.shape).stride()
    assert value.untyped_storage().nbytes() == value.nbytes  # no other tensor's bytes
    raw = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return str(value.dtype).removeprefix("torch."), tuple(value.shape), raw


@pytest.mark.parametrize("reader", READERS)
def test_every_type_and_shape_is_what_torch_reads(reader: str, tmp_path: Path) -> None:
    arrays = {
        f"{dtype} {shape}": random_bits(shape, dtype, seed)
        for seed, (dtype, shape) in enumerate((dtype, shape) for dtype in DTYPES for shape in SHAPES)
    }
    save(tmp_path / "x.pt", {name: pending(array) for name, array in arrays.items()})
    result = READERS[reader](tmp_path / "x.pt")
    assert list(result) == list(arrays)
    for name, array in arrays.items():
        assert found(result[name]) == (array.dtype.name, array.shape, array.tobytes()), name


PLAIN: Any = {
    "none": None,
    "bools": [True, False],
    "ints": [0, 1, -1, 255, 256, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, -(2**200)],
    "floats": (0.0, -0.0, 1.5, float("inf"), 5e-324),
    "text": ["", "name", "中文\n😀", "\udc80"],
    "nested": {"a": [[], (), {}, ({1: ("b",)},)], 3: None, (1, "x"): 2},
    "ordered": collections.OrderedDict(z=1, a=2),
}


@pytest.mark.parametrize("reader", READERS)
def test_plain_data_is_what_torch_reads(reader: str, tmp_path: Path) -> None:
    save(tmp_path / "x.pt", PLAIN)
    result = READERS[reader](tmp_path / "x.pt")
    assert result == PLAIN
    assert repr(result["ints"]) == repr(PLAIN["ints"])
    assert repr(result["floats"]) == repr(PLAIN["floats"])
    assert repr(result["bools"]) == repr(PLAIN["bools"])
    if reader != "ours":  # which reads ordered dicts as dicts
        assert type(result["ordered"]) is collections.OrderedDict


def test_values_may_come_in_pieces(tmp_path: Path) -> None:
    """Pieces of any shape, strided ones among them, larger than a block."""
    whole = random_bits((3000, 1000), "float16", 0)
    transposed = np.ascontiguousarray(whole.T).T
    assert not transposed.flags.c_contiguous

    def pieces() -> Iterator[np.ndarray[Any, Any]]:
        yield transposed[:1700]
        yield whole[1700].reshape(10, 100)
        yield whole[1701:1701]
        yield whole[1701:].reshape(-1)

    value = {
        "pieces": Pending(whole.shape, whole.dtype, pieces),
        "array": Pending(whole.shape, whole.dtype, lambda: transposed),
    }
    save(tmp_path / "x.pt", value)
    for tensor in torch.load(tmp_path / "x.pt", weights_only=True).values():
        assert found(tensor)[2] == whole.tobytes()


def test_a_tensor_that_is_there_twice_shares_its_storage(tmp_path: Path) -> None:
    calls = []
    one = Pending((1000,), np.dtype(np.float32), lambda: calls.append(1) or np.ones(1000, np.float32))
    save(tmp_path / "x.pt", {"a": one, "b": [one]})
    result = torch.load(tmp_path / "x.pt", weights_only=True)
    assert result["a"].data_ptr() == result["b"][0].data_ptr()
    assert calls == [1]
    assert (tmp_path / "x.pt").stat().st_size < 2 * 4000


def test_the_archive_is_laid_out_as_torch_does_it(tmp_path: Path) -> None:
    """Checksums, alignment, order, nothing compressed, nothing written that nobody needs, the same bytes each time."""
    arrays = [random_bits((size,), "uint8", size) for size in range(200)]
    (tmp_path / "y").mkdir()
    for name in ("x.pt", "y/x.pt"):
        save(tmp_path / name, [pending(array) for array in arrays])
    raw = (tmp_path / "x.pt").read_bytes()
    assert raw == (tmp_path / "y" / "x.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None
        entries = {entry.filename.removeprefix("x/"): entry for entry in archive.infolist()}
        assert list(entries) == ["data.pkl", "byteorder", *(f"data/{key}" for key in range(200)), "version"]
        assert (archive.read("x/version"), archive.read("x/byteorder")) == (b"3\n", b"little")
    for name, entry in entries.items():
        assert (entry.compress_type, entry.extra) == (zipfile.ZIP_STORED, b""), name
        name_size, extra = struct.unpack_from("<2H", raw, entry.header_offset + 26)
        start = entry.header_offset + 30 + name_size + extra
        assert start % 64 == 0, name
        assert struct.unpack_from("<I", raw, entry.header_offset + 14)[0] == entry.CRC, name
        assert extra < 4 + 64
    assert [entries[f"data/{key}"].file_size for key in range(200)] == list(range(200))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["x.pt", "y"]


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "a.b.c", "no ending", "模型.pt", ".pt"])
def test_any_file_name_is_written(name: str, tmp_path: Path) -> None:
    array = random_bits((5, 7), "float32", 0)
    save(tmp_path / name, [pending(array)])
    for reader in READERS.values():
        assert found(reader(tmp_path / name)[0])[2] == array.tobytes()


def test_files_are_no_larger_than_those_of_torch(tmp_path: Path) -> None:
    """PyTorch would store all of ``whole`` for a view of a row; here a storage has its tensor's size."""
    whole = np.ones((100, 1000), np.float32)
    save(tmp_path / "ours.pt", {f"row {i}": pending(whole[i]) for i in range(50)})
    torch.save({f"row {i}": torch.ones(1000) for i in range(50)}, tmp_path / "theirs.pt")
    ours, theirs = ((tmp_path / name).stat().st_size for name in ("ours.pt", "theirs.pt"))
    assert 50 * 4000 < ours <= theirs


def test_memory_stays_flat(tmp_path: Path) -> None:
    size = 500_000

    def tensor(number: int) -> Pending:
        return Pending((size,), np.dtype(np.float32), lambda: np.full(size, number, np.float32))

    value = {f"tensor {number}": tensor(number) for number in range(200)}
    tracemalloc.start()
    try:
        save(tmp_path / "x.pt", value)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * 4 * size
    assert (tmp_path / "x.pt").stat().st_size > 200 * 4 * size
    read = load(tmp_path / "x.pt")
    assert all((read[f"tensor {number}"].numpy()[[0, -1]] == number).all() for number in range(200))


@pytest.mark.parametrize("limit", [10, 1000])
def test_files_beyond_the_limits_of_zip_are_read(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of entries beyond 2 GB, with the limit pulled down; the offsets of the directory too."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    array = random_bits((700,), "float32", 0)
    save(tmp_path / "x.pt", [pending(array), pending(array)])
    monkeypatch.undo()
    raw = (tmp_path / "x.pt").read_bytes()
    assert b"PK\6\6" in raw  # the end of a zip64 directory
    for reader in READERS.values():
        assert [found(tensor)[2] for tensor in reader(tmp_path / "x.pt")] == [array.tobytes()] * 2
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        for entry in archive.infolist():
            name_size, extra = struct.unpack_from("<2H", raw, entry.header_offset + 26)
            assert (entry.header_offset + 30 + name_size + extra) % 64 == 0


FLOAT32 = np.dtype(np.float32)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "too few": (lambda: [np.ones((3, 4), np.float32), np.ones(11, np.float32)], "1 fewer"),
    "none": (lambda: iter(()), "24 fewer"),
    "too many": (lambda: (np.ones(7, np.float32) for _ in range(4)), "4 more"),
    "another type": (lambda: np.ones((6, 4), np.float16), "float16 came"),
    "another byte order": (lambda: np.ones((6, 4), ">f4"), ">f4 came"),
    "another type of the same size": (lambda: np.ones((6, 4), np.int32), "int32 came"),
    "another shape": (lambda: np.ones((4, 6), np.float32), r"\[4, 6\] came"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_tensor_other_than_announced_is_refused(kind: str, tmp_path: Path) -> None:
    """An error, and what was there before stays."""
    produce, words = BAD[kind]
    (tmp_path / "x.pt").write_text("precious")
    with pytest.raises(ValueError, match=words):
        save(tmp_path / "x.pt", {"good": pending(np.ones(3)), "bad": Pending((6, 4), FLOAT32, produce)})
    assert (tmp_path / "x.pt").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_objects_that_cannot_be_saved_are_refused(tmp_path: Path) -> None:
    for value in (object(), {"a": {1}}, [np.float32(1)], np.ones(3), b"bytes"):
        with pytest.raises(TypeError, match="cannot be saved"):
            save(tmp_path / "x.pt", value)
    for dtype in ("uint16", ">f4", "U3", "O"):
        with pytest.raises(ValueError, match="cannot be saved"):
            Pending((1,), np.dtype(dtype), list)
    assert not list(tmp_path.iterdir())


def test_several_files_are_written_side_by_side(tmp_path: Path) -> None:
    """What is written in turns is what ``save`` writes; the arrays may be used again at once."""
    arrays = {name: [random_bits((300, 7), name, seed) for seed in range(3)] for name in ("float16", "bfloat16")}
    announced = {name: {str(i): Pending((300, 7), dtype_of(name)) for i in range(3)} for name in arrays}
    scratch = np.empty(300 * 7 * 2, np.uint8)
    with (
        writing(tmp_path / "float16.pt", announced["float16"]) as first,
        writing(tmp_path / "bfloat16.pt", announced["bfloat16"]) as second,
    ):
        for number in range(3):
            for name, writer in (("float16", first), ("bfloat16", second)):
                values = scratch.view(dtype_of(name)).reshape(300, 7)
                values[...] = arrays[name][number]
                writer.write(values)
        assert not (tmp_path / "float16.pt").exists()
    (tmp_path / "saved").mkdir()
    for name, values in arrays.items():
        save(tmp_path / "saved" / f"{name}.pt", {str(i): pending(array) for i, array in enumerate(values)})
        assert (tmp_path / f"{name}.pt").read_bytes() == (tmp_path / "saved" / f"{name}.pt").read_bytes()


@pytest.mark.parametrize(("number", "words"), [(0, "2 fewer came"), (1, "1 fewer came"), (3, "one more came")])
def test_another_number_of_tensors_than_announced_is_refused(number: int, words: str, tmp_path: Path) -> None:
    def write() -> None:
        with writing(tmp_path / "x.pt", [Pending((3,), FLOAT32), Pending((3,), FLOAT32)]) as writer:
            for _ in range(number):
                writer.write(np.ones(3, np.float32))

    with pytest.raises(ValueError, match=f"2 tensors were announced, {words}"):
        write()
    assert not list(tmp_path.iterdir())


def test_a_tensor_without_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="nothing that produces its values"):
        save(tmp_path / "x.pt", [Pending((3,), FLOAT32)])
    assert not list(tmp_path.iterdir())
