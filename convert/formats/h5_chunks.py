"""Datasets of HDF5 in pieces, which may be packed with gzip: where the pieces are, and how they are unpacked.

Source: the "Filter Pipeline" and "Chunked Storage" of the HDF5 file format specification 3.0. Every piece has the same
shape; those at the end are larger than what is left. ``shuffle`` puts the first bytes of all values first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.tensors import Array, DType
from support.errors import CheckpointError
from support.messages import list_names

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_CHECKSUM_BYTES = 4


class UnknownFilterError(Exception):
    """A filter that is none of gzip, shuffle and fletcher32; the message is its name."""


class Chunk(NamedTuple):
    """A piece of a dataset.

    Attributes:
        start: the index of its first value.
        offset, size: its bytes in the file.
        skipped: bit i says that the filter i was not applied.
    """

    start: tuple[int, ...]
    offset: int
    size: int
    skipped: int


@dataclasses.dataclass(frozen=True)
class Filters:
    """What a piece has gone through before it was written, in this order.

    Attributes:
        codes: HDF5's numbers of the filters.
        width: the bytes of a value.
    """

    codes: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, properties: Any, width: int) -> Filters:
        """Take the filters of a dataset's creation properties.

        Raises:
            UnknownFilterError: one is unknown here.
        """
        codes = []
        for index in range(properties.get_nfilters()):
            code, _, values, name = properties.get_filter(index)
            if code not in (_DEFLATE, _SHUFFLE, _FLETCHER32) or (code == _SHUFFLE and tuple(values) != (width,)):
                raise UnknownFilterError(list_names([name.decode("latin-1") or code]))
            codes.append(code)
        return cls(tuple(codes), width)

    def undo(self, data: bytes, skipped: int, size: int) -> bytes:
        """Return the ``size`` bytes that a piece was before.

        Raises:
            ValueError: they are more or less.
        """
        for index in reversed(range(len(self.codes))):
            if skipped >> index & 1:
                continue
            code = self.codes[index]
            if code == _FLETCHER32:
                data = data[:-_CHECKSUM_BYTES]
            elif code == _DEFLATE:
                unpacker = zlib.decompressobj()
                data = unpacker.decompress(data, size + _CHECKSUM_BYTES)
            elif len(data) == size:
                data = np.frombuffer(data, np.uint8).reshape(self.width, -1).T.tobytes()
        if len(data) != size:
            raise ValueError(f"expected {size} bytes, found {len(data)}")
        return data


@dataclasses.dataclass(frozen=True)
class ChunkedTensor:
    """A tensor whose values lie in the file in pieces: a ``LazyTensor``.

    Attributes:
        stored: its shape as the file has it, of the same number of values.
        grid: the shape of a piece.
        chunks: all pieces.
        filters: what they have gone through.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: DType
    stored: tuple[int, ...]
    grid: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    filters: Filters
    lacks_checksum: bool = False

    @property
    def extents(self) -> Iterator[tuple[int, int]]:
        """Where the pieces begin and end in the file."""
        return ((chunk.offset, chunk.offset + chunk.size) for chunk in self.chunks)

    @property
    def unpacked_bytes(self) -> int:
        """Bytes of all pieces when they are unpacked."""
        return len(self.chunks) * math.prod(self.grid) * self.dtype.itemsize

    def is_complete(self) -> bool:
        """Whether every piece that there should be is there once."""
        if len(self.grid) != len(self.stored) or 0 in self.grid:
            return False
        counts = [-(-size // step) for size, step in zip(self.stored, self.grid, strict=True)]
        if math.prod(counts) != len(self.chunks):
            return False
        places = itertools.product(*(range(0, size, step) for size, step in zip(self.stored, self.grid, strict=True)))
        return {chunk.start for chunk in self.chunks} == set(places)

    def numpy(self) -> Array:
        out = np.empty(self.stored, self.dtype)
        size = math.prod(self.grid) * self.dtype.itemsize
        try:
            with self.file.open("rb") as opened:
                for chunk in self.chunks:
                    opened.seek(chunk.offset)
                    data = self.filters.undo(opened.read(chunk.size), chunk.skipped, size)
                    rest = out[tuple(slice(a, a + step) for a, step in zip(chunk.start, self.grid, strict=True))]
                    values = np.frombuffer(data, self.dtype).reshape(self.grid)
                    rest[...] = values[tuple(slice(0, length) for length in rest.shape)]
        except (OSError, ValueError, zlib.error) as error:
            raise CheckpointError(
                f"{self.file}: {list_names([self.name])}: cannot be unpacked: {error}: damaged, get it again"
            ) from error
        return out.reshape(self.shape)
