"""Writing a TensorFlow checkpoint ("tensor bundle", version 2) one tensor after the other, into one data file.

``<prefix>.data-00000-of-00001`` has the bytes of the tensors, in the order in which they were added, little-endian and
without gaps. ``<prefix>.index`` is a sorted table (``sorted_table``): an empty key with a ``BundleHeaderProto``, then
the key of each tensor with a ``BundleEntryProto`` of its dtype, shape, place and masked CRC-32C. Sources:
``tensor_bundle.proto`` and ``tensor_bundle.cc`` of TensorFlow.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import google_crc32c
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2

from exports.tensor_bundle.direct_file import BLOCK, DirectFile
from exports.tensor_bundle.sstable import masked, table, varint


class BundleWriter:
    """A checkpoint in the making. To be used in a ``with`` statement; it is complete when ``finish`` has returned.

    Args:
        prefix: where the two files go, in a folder that exists.

    Raises:
        OSError: the data file is there already or cannot be made.
    """

    def __init__(self, prefix: Path) -> None:
        self.data = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
        self._index = prefix.with_name(f"{prefix.name}.index")
        self._entries: dict[bytes, bytes] = {}
        self._file = DirectFile(self.data)

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def add(self, key: str, value: np.ndarray[Any, Any]) -> None:
        """Add a tensor of numbers, of any shape.

        Raises:
            TypeError: TensorFlow has no such numbers, or the machine has them in another byte order.
            ValueError: there is a tensor under this key, or the key is empty.
            OSError: this tensor, or one that was added earlier, cannot be written.
        """
        self.add_blocks(key, value.dtype, value.shape, (value,))

    def add_blocks(
        self,
        key: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        blocks: Iterable[np.ndarray[Any, Any]],
        keys: Sequence[str] = (),
    ) -> None:
        """Add a tensor of numbers whose values come in blocks, one after the other as they lie in the file.

        Args:
            key: of the whole.
            dtype: of the numbers.
            shape: of the whole.
            blocks: its parts, of any shapes.
            keys: of the blocks, where each is to be found as a tensor of its own, too.

        Raises:
            ValueError: the blocks do not add up to the shape, are of another type, or others than there are keys; or as
                ``add``.
            TypeError, OSError: as ``add``.
        """
        kind = tf.as_dtype(dtype)
        if kind == tf.string or not dtype.isnative:
            raise TypeError(f"{key}: {dtype} is not written as it is in memory")
        start, crc = self._file.size, 0
        for block, name in zip(blocks, keys or itertools.repeat(""), strict=bool(keys)):
            if block.dtype != dtype:
                raise ValueError(f"{key}: expected {dtype}, found {block.dtype}")
            data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
            begin, own = self._file.size, 0
            for first in range(0, len(data), BLOCK):  # what was just copied is still in the cache
                part = data[first : first + BLOCK]
                self._file.write(part)
                crc = google_crc32c.extend(crc, part)
                own = google_crc32c.extend(own, part) if name else 0
            if name:
                self._enter(name, kind, block.shape, begin, own)
        needed, found = math.prod(shape) * dtype.itemsize, self._file.size - start
        if found != needed:
            raise ValueError(f"{key}: expected {needed} bytes for the shape {list(shape)}, found {found}")
        self._enter(key, kind, shape, start, crc)

    def add_string(self, key: str, value: bytes) -> None:
        """Add a scalar of type string. Its length stands before it, as a varint and with a CRC-32C of its own.

        The CRC of the whole is over the length as uint32, the masked CRC of it, and the bytes.

        Raises:
            ValueError: the string has 4 GB or more; or as ``add``.
            OSError: as ``add``.
        """
        if len(value) >= 2**32:
            raise ValueError(f"{key}: a string of {len(value)} bytes")
        start, length = self._file.size, struct.pack("<I", len(value))
        crc = google_crc32c.value(length)
        check = struct.pack("<I", masked(crc))
        self._file.write(np.frombuffer(varint(len(value)) + check + value, np.uint8))
        self._enter(key, tf.string, (), start, google_crc32c.extend(crc, check + value))

    def finish(self) -> str:
        """Completes both files, which are not flushed to the disk (fsync).

        Returns:
            the hexadecimal SHA-256 of the data file.

        Raises:
            OSError: something cannot be written.
        """
        sha256 = self._file.finish()
        header = tensor_bundle_pb2.BundleHeaderProto(num_shards=1)  # endianness: LITTLE, as the value 0 is
        header.version.producer = 1
        self._index.write_bytes(table([(b"", header.SerializeToString()), *sorted(self._entries.items())]))
        return sha256

    def _enter(self, key: str, dtype: tf.DType, shape: tuple[int, ...], start: int, crc: int) -> None:
        """Note the tensor that ends where the file ends now."""
        name = key.encode()
        if not name or name in self._entries:
            raise ValueError(f"two tensors have the key {key!r}" if name else "a tensor has no key")
        entry = tensor_bundle_pb2.BundleEntryProto(
            dtype=dtype.as_datatype_enum, offset=start, size=self._file.size - start, crc32c=masked(crc)
        )
        entry.shape.CopyFrom(tf.TensorShape(shape).as_proto())
        self._entries[name] = entry.SerializeToString()
