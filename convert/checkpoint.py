"""A checkpoint: what the reader of any format gives to the writer of any format."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from convert.tensors import Array, DType
from tf_model.config import GPT2Config
from tokenization.special_tokens import SpecialTokens

TRAINED = "trained"
"""The detail of a checkpoint that says what of it was trained after it was read."""


class Checkpoint(Protocol):
    """A model: its sizes, and its weights, each read when asked for.

    The names of the weights are those of ``GPT2Config.tensor_shapes``. Before a reader returns a checkpoint, it has
    checked that every one of them is there with its shape, and that there is no other tensor.
    """

    @property
    def config(self) -> GPT2Config:
        """The sizes."""

    @property
    def dtypes(self) -> Mapping[str, DType]:
        """The type of each tensor; the widest one where the tensor is spread over shards of several types."""

    @property
    def tokens(self) -> SpecialTokens | None:
        """The end of a text and the padding that the checkpoint itself names; None where it names none."""

    @property
    def tokenizer(self) -> Path | None:
        """The folder with the tokenizer's files, where the format keeps them next to the weights; else None."""

    @property
    def info(self) -> CheckpointInfo:
        """Where the checkpoint comes from, and what else a user may want to know."""

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """Read the whole tensor ``name`` in ``dtype``, C-contiguous.

        Args:
            name: the canonical name.
            dtype: the type that the values are cast to.
            buffer: uint8, as many bytes as the tensor takes or more: the tensor is put there. Without it, the tensor
                has memory of its own; where the system is slow to give memory, that takes longer than everything else.

        Raises:
            KeyError: no tensor of the config has this name.
            CheckpointError: the bytes are damaged, values are not finite, or ``dtype`` cannot hold them.
        """
        ...


class CheckpointSource(Protocol):
    """What opens a checkpoint on disk again, in another process too: ``formats.registry.CheckpointSpec``."""

    @property
    def path(self) -> Path: ...

    @property
    def vocab_size(self) -> int | None:
        """The number of tokens that the user gave; None where it is the files'."""

    def with_vocab_size(self, vocab_size: int) -> CheckpointSource:
        """Return what opens the same checkpoint with so many tokens."""

    def open(self) -> Checkpoint: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Where a checkpoint comes from. Only ``format`` is required: a model in memory has no files.

    Attributes:
        format: the name of the format, as ``--from`` takes it.
        files: the files that hold the weights.
        nbytes: bytes of weights in the files, all shards together.
        details: what else a user may want to see, such as ``tensor_parallel`` and ``iteration``.
        notes: what else a user should know, a line each.
        left_out: what else the files hold, by name: optimizer, random states. No reader gives it.
        without_checksums: those of the files that have no checksums, in a format whose files mostly have them.
        source: what opens the checkpoint again; None where it was not opened by ``open_checkpoint``.
        is_changed: whether the model differs from the one in the files: an adapter is merged, rows are left out. The
            files alone are not the model then.
        training: what is recorded of a training that has changed the weights: texts, settings, perplexity.
    """

    format: str
    files: tuple[Path, ...] = ()
    nbytes: int = 0
    details: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    without_checksums: tuple[Path, ...] = ()
    source: CheckpointSource | None = None
    is_changed: bool = False
    training: Mapping[str, Any] | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every path that a result must not replace: what was opened, and the files."""
        return self.files if self.source is None else (self.source.path, *self.files)

    @property
    def where(self) -> str:
        """The first file, for messages; the name of the format where there is no file."""
        return str(self.files[0]) if self.files else self.format


class CheckpointAdapter:
    """A ``Checkpoint`` made of another one: what is given here replaces its own; a subclass may read otherwise.

    Args:
        checkpoint: the other one.
        config, info: the new ones; None keeps those of ``checkpoint``.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, config: GPT2Config | None = None, info: CheckpointInfo | None = None
    ) -> None:
        self.config, self.info = config or checkpoint.config, info or checkpoint.info
        self.dtypes, self.tokens, self.tokenizer = checkpoint.dtypes, checkpoint.tokens, checkpoint.tokenizer
        self._checkpoint = checkpoint

    def __repr__(self) -> str:
        return f"<{self.info.format} checkpoint {self.info.where}: {self.config.parameter_count:,} parameters>"

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """Read a tensor as ``Checkpoint.read``."""
        return self._checkpoint.read(name, dtype, buffer)
