"""A checkpoint whose tensors are each made of one or more tensors in files: what all formats but CPM's have in common.

A format is a table, canonical name -> ``Part``: which tensors of the files make it, and how. ``TableCheckpoint`` reads
by that table, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from convert.checkpoint import FLOATS, Array, DType, check_finite, empty, widest
from convert.tensors import assign
from convert.torch_format.reader import Storage, TensorRef
from support.errors import CheckpointError
from support.messages import list_names, pluralize, short_repr
from tf_model.config import GPT2Config
from tokenization.special_tokens import SpecialTokens

_BLOCK = 1 << 23
"""Bytes that are transposed before they are written."""

_TILE = 512
"""Rows and columns of a matrix that are transposed in one step: both orders of them stay in the cache."""


class Source(Protocol):
    """A tensor in a file."""

    @property
    def file(self) -> Path: ...

    @property
    def name(self) -> str:
        """As the file calls it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> DType: ...

    @property
    def lacks_checksum(self) -> bool:
        """Whether it has none, in a format whose files mostly have: damage would not be noticed."""

    def numpy(self) -> Array:
        """The values, mapped where the file allows it; ``CheckpointError`` where they are damaged."""


class TorchSource(NamedTuple):
    """A tensor of a file that ``torch.save`` wrote."""

    file: Path
    name: str
    ref: TensorRef
    checked: set[Storage]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ref.shape

    @property
    def dtype(self) -> DType:
        return self.ref.dtype

    @property
    def lacks_checksum(self) -> bool:
        return self.ref.storage.crc is None

    def numpy(self) -> Array:
        if self.ref.storage not in self.checked:
            self.ref.storage.check()
            self.checked.add(self.ref.storage)
        return self.ref.numpy()


def torch_sources(file: Path, state: Mapping[object, object]) -> dict[str, Source]:
    """The tensors of a state dict in ``file``, by name.

    Raises:
        CheckpointError: something in it is no tensor, or one whose bytes the file has not.
    """
    checked: set[Storage] = set()
    sources: dict[str, Source] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, TensorRef):
            raise CheckpointError(f"{file}: {list_names([name])}: expected a tensor, found {short_repr(value)}")
        if value.nbytes > value.storage.nbytes:  # a view that repeats values: small in the file, huge in memory
            raise CheckpointError(f"{file}: {list_names([name])}: {value.nbytes} bytes, of which the file has fewer")
        sources[name] = TorchSource(file, name, value, checked)
    return sources


class Part(NamedTuple):
    """A canonical tensor.

    Attributes:
        sources: what it is made of.
        put: writes it into an array of its shape, cast to that array's type, given the values of the sources.
    """

    sources: Sequence[Source]
    put: Callable[[Sequence[Array], Array], None]


def whole(parts: Sequence[Array], out: Array) -> None:
    """The one source, as it is; dimensions of 1 in front of it are dropped."""
    assign(out, parts[0].reshape(out.shape) if parts[0].shape != out.shape else parts[0])


def transposed(parts: Sequence[Array], out: Array) -> None:
    """The one source ``[in, out]``, as ``[out, in]``; dimensions of 1 in front of it are dropped."""
    transpose(parts[0].reshape(out.shape[::-1]), out)


def rows(parts: Sequence[Array], out: Array) -> None:
    """The sources, one below the other."""
    start = 0
    for part in parts:
        assign(out[start : start + len(part)], part)
        start += len(part)


def transpose(matrix: Array, out: Array) -> None:
    """``out[...] = matrix.T``, tile by tile: 5 times as fast as in one step where a row is longer than a page."""
    for i in range(0, matrix.shape[0], _TILE):
        for j in range(0, matrix.shape[1], _TILE):
            assign(out[j : j + _TILE, i : i + _TILE], matrix[i : i + _TILE, j : j + _TILE].T)


def transposed_blocks(matrix: Array) -> Iterator[Array]:
    """The rows of the transpose of ``matrix``, some MB of them at a time."""
    step = max(1, _BLOCK // max(1, matrix[:, :1].nbytes))
    for start in range(0, matrix.shape[1], step):
        columns = matrix[:, start : start + step]
        block = np.empty(columns.shape[::-1], columns.dtype)
        transpose(columns, block)
        yield block


class TableCheckpoint:
    """A ``Checkpoint`` read by a table; nothing but headers has been read so far.

    Args:
        format: its name.
        config: the sizes.
        details: see ``Checkpoint``.
        parts: every canonical tensor of the config.
        left_out, notes: see ``Checkpoint``.
        tokens, tokenizer: see ``Checkpoint``.
        check: called once, before the first tensor is read: for what takes reading.
    """

    def __init__(
        self, format: str, config: GPT2Config, parts: Mapping[str, Part], *,
        details: dict[str, str | int] | None = None, left_out: Sequence[str] = (), notes: Sequence[str] = (),
        tokens: SpecialTokens | None = None, tokenizer: Path | None = None, check: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.format, self.config, self.details = format, config, details or {}
        self.left_out, self.notes, self.tokens, self.tokenizer = list(left_out), list(notes), tokens, tokenizer
        self._parts, self._check = parts, check
        self._shapes = config.tensor_shapes()
        sources = [source for part in parts.values() for source in part.sources]
        for source in sources:
            if source.dtype not in FLOATS:
                found = f"expected {list_names(FLOATS, 4)}, found {source.dtype.name}"
                raise CheckpointError(f"{source.file}: {list_names([source.name])}: {found}")
        self.files = list(dict.fromkeys(source.file for source in sources))
        self.dtypes: Mapping[str, DType] = {name: widest(s.dtype for s in parts[name].sources) for name in self._shapes}
        self.nbytes = sum(nbytes(source) for source in sources)
        self.without_checksums = sorted({source.file for source in sources if source.lacks_checksum})

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """As ``Checkpoint.read``."""
        part, shape = self._parts[name], self._shapes[name]
        if self._check is not None:
            check, self._check = self._check, None
            check()
        out = empty(shape, dtype, buffer)
        values = [source.numpy() for source in part.sources]
        part.put(values, out)
        files = [source.file for source in part.sources]
        check_finite(part.sources[0].name, out, files[0], list(zip(files, values, strict=True)))
        return out


def nbytes(source: Source) -> int:
    count = source.dtype.itemsize
    for size in source.shape:
        count *= size
    return count


class Names(NamedTuple):
    """The tensors that a format has, for ``check_names``."""

    expected: Mapping[str, tuple[int, ...]]
    """Name -> shape."""
    ignored: Callable[[str], bool] = lambda name: False
    """Whether a name that is not expected is known to hold nothing that a model needs."""


def check_names(where: Path, sources: Mapping[str, Source], names: Names) -> None:
    """Checks that every tensor of a format is there, of its shape, and no other.

    Raises:
        CheckpointError: with all that are missing, too many, or of another shape.
    """
    problems = []
    for what, wrong in (
        ("missing", [name for name in names.expected if name not in sources]),
        ("unexpected", [name for name in sources if name not in names.expected and not names.ignored(name)]),
    ):
        if wrong:
            problems.append(f"{pluralize(len(wrong), f'{what} tensor')}: {list_names(wrong)}")
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}")
    for name, shape in names.expected.items():
        if (found := sources[name].shape) != shape:
            file = sources[name].file
            raise CheckpointError(f"{file}: {name}: expected the shape {list(shape)}, found {list(found)}")


def matrix_shape(where: Path, sources: Mapping[str, Source], name: str) -> tuple[int, int]:
    """The shape of a matrix that sizes are read from; dimensions of 1 in front of it are dropped.

    Raises:
        CheckpointError: it is not there, or no matrix.
    """
    if name not in sources:
        raise CheckpointError(f"{where}: missing tensor: {name}: not a GPT-2 of this format")
    shape = sources[name].shape
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(
            f"{sources[name].file}: {name}: expected a matrix, found the shape {list(sources[name].shape)}"
        )
    return shape[0], shape[1]


def count_layers(where: Path, names: Mapping[str, Source], before: str) -> int:
    """One more than the highest number that follows ``before`` in a name; layers in between may still be missing.

    Raises:
        CheckpointError: none does, or one is beyond all reason.
    """
    numbers = [
        int(number)
        for name in names
        if name.startswith(before) and (number := name[len(before) :].split(".")[0].split("/")[0]).isdecimal()
        and len(number) < 5
    ]  # fmt: skip
    if not numbers:
        raise CheckpointError(f"{where}: expected tensors named {before}0..., found {list_names(names)}")
    return 1 + max(numbers)
