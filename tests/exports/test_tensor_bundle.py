"""Checkpoints written without TensorFlow, against TensorFlow: it reads them, and writes the same bytes."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from exports.tensor_bundle.sstable import table
from exports.tensor_bundle.writer import BundleWriter

DTYPES = [np.float32, np.float16, tf.bfloat16.as_numpy_dtype, np.float64, np.int64, np.int32, np.uint8, np.bool_]
Values = dict[str, Any]


def kinds() -> Values:
    """Every dtype; no dimension, empty ones, many; strings around the lengths where a varint grows."""
    rng = np.random.default_rng(0)
    shapes = [(), (1,), (0,), (3, 0, 2), (7, 5), (2, 3, 1, 2), (4097,)]
    numbers = {
        f"kinds/{dtype.__name__}/{number}": (rng.normal(size=shape) * 50).astype(dtype)
        for dtype in DTYPES
        for number, shape in enumerate(shapes)
    }
    strings = {f"strings/{size:09}": rng.bytes(size) for size in (0, 1, 127, 128, 16_383, 16_384, 3_000_000)}
    return {**numbers, **strings, "one": np.arange(3.0)}


def many() -> Values:
    """Several blocks in the index; keys that are long, alike, one the beginning of another, or no ASCII."""
    layers = {f"weights/h.{n}.attn.c_attn.weight/.ATTRIBUTES/VARIABLE_VALUE": np.float32(n) for n in range(6000)}
    beginnings = {"k" * size: np.int64(size) for size in range(1, 400)}
    odd = {"中文/\0": np.ones(2), "\x7f": np.ones(1), "~" * 70_000: np.ones(3)}
    return {**layers, **beginnings, **{key: np.asarray(value) for key, value in odd.items()}}


def write(prefix: Path, values: Values) -> str:
    with BundleWriter(prefix) as bundle:
        for key, value in values.items():
            bundle.add_string(key, value) if isinstance(value, bytes) else bundle.add(key, value)
        return bundle.finish()


def data_of(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.data-00000-of-00001")


def entries_of(prefix: Path) -> bytes:
    """The index up to its first block without entries: the footer begins with where that is, as a varint."""
    content = prefix.with_name(f"{prefix.name}.index").read_bytes()
    place, shift = 0, 0
    for byte in content[-48:]:
        place |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    assert content[-8:] == struct.pack("<Q", 0xDB4775248B80FB57)
    return content[:place]


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, bytes):
        return found == expected
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("make", [kinds, many])
def test_the_same_bytes_as_tensorflow(make: Any, tmp_path: Path) -> None:
    """Which writes the tensors sorted by key. In the index it may shorten the keys between blocks; we do not."""
    values = dict(sorted(make().items(), key=lambda item: item[0].encode()))
    sha256 = write(tmp_path / "ours", values)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "theirs"), tensor_names=list(values), shape_and_slices=[""] * len(values),
        tensors=[tf.constant(value) for value in values.values()],
    )  # fmt: skip
    content = data_of(tmp_path / "ours").read_bytes()
    assert content == data_of(tmp_path / "theirs").read_bytes()
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert entries_of(tmp_path / "ours") == entries_of(tmp_path / "theirs")
    assert len(entries_of(tmp_path / "ours")) > (300_000 if make is many else 1000)


@pytest.mark.parametrize("make", [kinds, many, dict])
def test_tensorflow_reads_them(make: Any, tmp_path: Path) -> None:
    """In any order of writing."""
    items = list(make().items())
    np.random.default_rng(1).shuffle(items)
    write(tmp_path / "ours", dict(items))
    reader = tf.train.load_checkpoint(str(tmp_path / "ours"))
    assert set(reader.get_variable_to_shape_map()) == {key for key, _ in items}
    for key, value in items:
        assert same(reader.get_tensor(key), value), key


def test_memory_of_any_layout(tmp_path: Path) -> None:
    values = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    write(tmp_path / "ours", {"transposed": values.T, "every other": values[::2, ::-1]})
    reader = tf.train.load_checkpoint(str(tmp_path / "ours"))
    np.testing.assert_array_equal(reader.get_tensor("transposed"), values.T)
    np.testing.assert_array_equal(reader.get_tensor("every other"), values[::2, ::-1])


def test_larger_than_a_block(tmp_path: Path) -> None:
    values = {name: np.random.default_rng(n).normal(size=(3_000_001,)) for n, name in enumerate("ba")}
    write(tmp_path / "ours", values)
    reader = tf.train.load_checkpoint(str(tmp_path / "ours"))
    assert all(same(reader.get_tensor(key), value) for key, value in values.items())


def test_values_in_blocks(tmp_path: Path) -> None:
    value = np.arange(60, dtype=np.float32).reshape(1, 12, 5)
    with BundleWriter(tmp_path / "blocks") as bundle:
        bundle.add_blocks("x", value.dtype, value.shape, (value[0, i : i + 5] for i in range(0, 12, 5)))
        bundle.finish()
    write(tmp_path / "whole", {"x": value})
    for suffix in ("index", "data-00000-of-00001"):
        assert (tmp_path / f"blocks.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    with BundleWriter(tmp_path / "wrong") as bundle:
        with pytest.raises(ValueError, match=r"expected 240 bytes for the shape \[1, 12, 5\], found 220"):
            bundle.add_blocks("x", value.dtype, value.shape, (value[0, :11],))
        with pytest.raises(ValueError, match="expected float32, found float64"):
            bundle.add_blocks("y", value.dtype, value.shape, (value.astype(np.float64),))


@pytest.mark.parametrize("make", [kinds, many])
def test_a_flipped_bit_is_noticed(make: Any, tmp_path: Path) -> None:
    """In the data by the tensor that it belongs to; in the index at once or when its block is read."""
    values = make()
    write(tmp_path / "ours", values)
    rng = np.random.default_rng(2)
    data, index = data_of(tmp_path / "ours"), tmp_path / "ours.index"

    def flip(path: Path, position: int) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 1 << rng.integers(8)
        path.write_bytes(content)

    ends = np.cumsum([len(v) + len(varint(len(v))) + 4 if isinstance(v, bytes) else v.nbytes for v in values.values()])
    intact = data.read_bytes()
    for position in rng.integers(0, len(intact), 20):
        flip(data, position)
        key = list(values)[int(np.searchsorted(ends, position, side="right"))]
        with pytest.raises(tf.errors.DataLossError):
            restore(tmp_path / "ours", {key: values[key]})
        data.write_bytes(intact)
    intact, block = index.read_bytes(), len(entries_of(tmp_path / "ours"))
    for position in rng.integers(0, block, 20):
        flip(index, position)
        with pytest.raises((tf.errors.DataLossError, tf.errors.NotFoundError)):  # a block that is damaged has no keys
            restore(tmp_path / "ours", values)
        index.write_bytes(intact)


def restore(prefix: Path, values: Values) -> None:
    tf.raw_ops.RestoreV2(
        prefix=str(prefix), tensor_names=list(values), shape_and_slices=[""] * len(values),
        dtypes=[tf.constant(value).dtype for value in values.values()],
    )  # fmt: skip


def varint(value: int) -> bytes:
    from google.protobuf.internal.encoder import _VarintBytes

    return bytes(_VarintBytes(value))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "ours") as bundle:
        bundle.add("a", np.ones(3))
        for key in ("a", ""):
            with pytest.raises(ValueError, match="key"):
                bundle.add(key, np.ones(3))
        for values in (np.ones(3, ">f4"), np.array(["text"]), np.array([b"text"]), np.array([None])):
            with pytest.raises(TypeError):
                bundle.add("b", values)
    assert not (tmp_path / "ours.index").exists()  # not finished
    with pytest.raises(ValueError, match="comes after"):
        table([(b"b", b""), (b"a", b"")])
