"""What every command that converts does with its source: notes about it, hashes of its files, tensor after tensor."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np

from convert.checkpoint import Array, Checkpoint, DType
from convert.formats.registry import open_checkpoint
from convert.progress import progress
from convert.releases import may_be_known
from exports.hashing import Hasher


def open_source(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint that ``arguments.add_checkpoint_option`` and ``add_source_options`` have read of."""
    return open_checkpoint(args.checkpoint, n_head=args.heads, iteration=args.iteration, from_format=args.from_format)


def print_notes(checkpoint: Checkpoint, *, quiet: bool) -> None:
    """Says on stderr what a user should know about a source that can be used."""
    if quiet:
        return
    if (dtype := checkpoint.details.get("quantized")) is not None:
        print(f"note: the weights are those of {dtype}, not of the original: they were rounded then", file=sys.stderr)
    for file in checkpoint.without_checksums:
        print(f"note: {file}: has no checksums, so damage to its weights cannot be noticed", file=sys.stderr)


def hash_files(checkpoint: Checkpoint, hasher: Hasher) -> None:
    """Starts hashing the files of a checkpoint, beside the work that reads them."""
    known = may_be_known(checkpoint.config, len(checkpoint.files))
    for file in checkpoint.files:
        hasher.add(file, ("sha256", "sha1") if known else ("sha256",))


@contextlib.contextmanager
def reading(
    checkpoint: Checkpoint, what: str, *, itemsize: int = 4, quiet: bool = False
) -> Iterator[Callable[[str, DType], Array]]:
    """Gives ``Checkpoint.read`` with one piece of memory for all tensors, and shows how far the reading has come.

    Args:
        what: the word in front of the progress.
        itemsize: bytes of the widest type that will be asked for.
    """
    counts = {name: math.prod(shape) for name, shape in checkpoint.config.tensor_shapes().items()}
    buffer = np.empty(itemsize * max(counts.values()), np.uint8)
    total = sum(count * checkpoint.dtypes[name].itemsize for name, count in counts.items())
    with progress(what, total, quiet=quiet) as done:

        def read(name: str, dtype: DType) -> Array:
            value = checkpoint.read(name, dtype, buffer)
            done(value.size * checkpoint.dtypes[name].itemsize)
            return value

        yield read
