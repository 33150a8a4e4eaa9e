"""What every command that converts does with its source: notes about it, hashes of its files, tensor after tensor."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.formats.registry import open_checkpoint
from convert.formats.uer_layer_norm import with_layer_norm
from convert.output.hashing import Hasher
from convert.releases import may_be_known
from convert.tensors import Array, DType
from support.progress import Progress, no_progress
from tf_model.config import STANDARD, UER


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """A checkpoint and what the command line says about it: ``add_checkpoint_option`` and ``add_source_options``."""

    path: Path
    n_head: int | None = None
    iteration: str | None = None
    from_format: str | None = None
    uer_layer_norm: str = UER

    @classmethod
    def of(cls, args: argparse.Namespace) -> SourceOptions:
        return cls(args.checkpoint, args.heads, args.iteration, args.from_format, args.uer_layer_norm)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SourceOptions:
        """The inverse of ``to_dict``."""
        return cls(**{**values, "path": Path(values["path"])})

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, for another process."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def words(self) -> list[str]:
        """The options of a command line that says the same, without the path."""
        options = (("--heads", self.n_head), ("--iteration", self.iteration), ("--from", self.from_format))
        given = [word for name, value in options if value is not None for word in (name, str(value))]
        return [*given, "--uer-layer-norm", self.uer_layer_norm]

    def open(self) -> Checkpoint:
        """The checkpoint; ``ConvertError`` as ``open_checkpoint``."""
        checkpoint = open_checkpoint(
            self.path, n_head=self.n_head, iteration=self.iteration, from_format=self.from_format
        )
        return with_layer_norm(checkpoint, STANDARD, copy=True) if self.uer_layer_norm == STANDARD else checkpoint


def open_source(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint that a command's options name."""
    return SourceOptions.of(args).open()


def print_notes(checkpoint: Checkpoint, *, quiet: bool) -> None:
    """Says on stderr what a user should know about a source that can be used."""
    if quiet:
        return
    for note in checkpoint.info.notes:
        print(f"note: {note}", file=sys.stderr)
    for file in checkpoint.info.without_checksums:
        print(f"note: {file}: has no checksums, so damage to its weights cannot be noticed", file=sys.stderr)


def hash_files(checkpoint: Checkpoint, hasher: Hasher) -> None:
    """Starts hashing the files of a checkpoint, beside the work that reads them."""
    known = may_be_known(checkpoint.config, len(checkpoint.info.files))
    for file in checkpoint.info.files:
        hasher.add(file, ("sha256", "sha1") if known else ("sha256",))


def counted_reader(
    checkpoint: Checkpoint, progress: Progress = no_progress, *, itemsize: int = 4
) -> Callable[[str, DType], Array]:
    """Give ``Checkpoint.read`` with one piece of memory for all tensors, which tells ``progress`` about each.

    A tensor is good until the next one is read. The stage is called ``convert``.

    Args:
        checkpoint: what is read.
        progress: called with the bytes read so far, of all bytes in the files.
        itemsize: bytes of the widest type that will be asked for.
    """
    counts = {name: math.prod(shape) for name, shape in checkpoint.config.tensor_shapes().items()}
    buffer = np.empty(itemsize * max(counts.values()), np.uint8)
    total = sum(count * checkpoint.dtypes[name].itemsize for name, count in counts.items())
    done = 0

    def read(name: str, dtype: DType) -> Array:
        nonlocal done
        value = checkpoint.read(name, dtype, buffer)
        done += value.size * checkpoint.dtypes[name].itemsize
        progress("convert", done, total)
        return value

    return read
