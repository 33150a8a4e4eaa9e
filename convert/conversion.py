"""What the commands that write a checkpoint of another format have in common: options, atomic output, its manifest."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.commands.options import add_checkpoint_option, add_source_options
from convert.output.atomic_folder import Kind, new_folder
from convert.output.hashing import Hasher
from convert.output.manifest import ROOT_MANIFEST, has_only_its_own
from convert.provenance import describe_copy
from convert.source import counted_reader, hash_files, print_notes
from convert.tensors import BFLOAT16, Array, DType
from support.messages import list_names, pluralize
from support.progress import TerminalProgress

DTYPES: dict[str, DType] = {
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    "float32": np.dtype(np.float32),
}
"""What a checkpoint can be written in."""

COPY = Kind(
    others="that this program did not write",
    is_older=lambda folder: (folder / ROOT_MANIFEST).is_file() and has_only_its_own(folder),
)
"""A folder of ours with other files in it is none any more: a training may have gone on from there."""

MANIFEST_BYTES = 1 << 16

Read = Callable[[str, DType], Array]
Write = Callable[[Path, Mapping[str, DType], Read], list[Path]]
"""Writes a checkpoint into an empty folder, given the types of its tensors and what reads one; gives its files."""


def add_arguments(
    parser: argparse.ArgumentParser, dtypes: Mapping[str, DType] = DTYPES, default: str | None = None
) -> None:
    """The options that all of these commands have; ``default`` is the type that is written when none is given."""
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the new checkpoint's folder")
    parser.add_argument(
        "--dtype",
        choices=tuple(dtypes),
        default=default,
        help=f"type of all weights written (default: {default or 'each tensor keeps its own'})",
    )
    add_source_options(parser)
    parser.add_argument(
        "--force", action="store_true", help="replace the checkpoint DIR of this program, once the new one is complete"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no notes and no closing line")


def dtypes_of(checkpoint: Checkpoint, dtype: str | None) -> dict[str, DType]:
    """The type that each tensor is written in: ``dtype``, or else its own."""
    return {name: DTYPES[dtype] if dtype else own for name, own in checkpoint.dtypes.items()}


def weight_bytes(checkpoint: Checkpoint, dtypes: Mapping[str, DType]) -> int:
    """Bytes of all weights in those types."""
    return sum(math.prod(shape) * dtypes[name].itemsize for name, shape in checkpoint.config.tensor_shapes().items())


def copy(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    dtypes: Mapping[str, DType],
    write: Write,
    *,
    size: int,
    options: Mapping[str, Any],
    inputs: list[Path] | None = None,
) -> None:
    """Writes ``checkpoint`` by ``write``: all of it or nothing appears at ``args.output``.

    Args:
        args: of ``add_arguments``.
        checkpoint: the source.
        dtypes: the type of each tensor that is written.
        write: as ``Write``.
        size: bytes that it takes, at most.
        options: for the manifest.
        inputs: what else is read, and must not be written over.
    """
    started = time.monotonic()
    sources = [args.checkpoint, *checkpoint.info.files, *(inputs or [])]
    with new_folder(args.output, force=args.force, size=size + MANIFEST_BYTES, inputs=sources, kind=COPY) as folder:
        print_notes(checkpoint, quiet=args.quiet)
        if checkpoint.info.left_out and not args.quiet:
            names = list_names(checkpoint.info.left_out, 9)
            print(f"note: {args.checkpoint}: only the weights are written; left out: {names}", file=sys.stderr)
        with Hasher() as hasher:
            hash_files(checkpoint, hasher)
            widest = max(dtype.itemsize for dtype in dtypes.values())
            with TerminalProgress(quiet=args.quiet) as progress:
                files = write(folder, dtypes, counted_reader(checkpoint, progress, itemsize=widest))
            describe_copy(folder, checkpoint, {"dtype": args.dtype, **options}, hasher)
        written = sum(file.stat().st_size for file in files)
    if not args.quiet:
        kinds = Counter(dtype.name for dtype in dtypes.values()).most_common()
        print(
            f"{checkpoint.config.parameter_count:,} parameters as {list_names((name for name, _ in kinds), 4)} in "
            f"{pluralize(len(files), 'file')}, {written / 1e6:,.1f} MB, {time.monotonic() - started:.1f} s: "
            f"{args.output}"
        )
