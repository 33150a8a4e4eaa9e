"""``to-megatron`` and ``reshard``: a checkpoint in, CPM's shards for any number of model-parallel ranks out."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from convert.arguments import add_checkpoint_option, add_source_options
from convert.checkpoint import BFLOAT16, DType
from convert.formats.megatron import open_megatron
from convert.formats.megatron_writer import check_ranks, named_iteration, shard_bytes, write_megatron
from convert.formats.wording import plural, some
from convert.output import Kind, new_folder
from convert.provenance import describe_copy
from convert.source import hash_files, print_notes, reading
from exports.hashing import Hasher
from exports.manifest import ROOT_MANIFEST, has_only_its_own

HELP = "a checkpoint -> Megatron and DeepSpeed shards (CPM's layout) for any number of model-parallel ranks"
DESCRIPTION = """\
Writes a checkpoint again, split over another number of model-parallel ranks, as CPM's programs load it. Weights keep
their bits, or become another type (--dtype). Only weights are taken: optimizer and random states are left out. The
SHA-256 of all files is kept in manifest.json; the command check compares them with it.
"""
EXAMPLE = "python -m convert to-megatron --checkpoint CPM-Generate --tensor-parallel 4 --output CPM-Generate-4"

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

_MANIFEST_BYTES = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the new checkpoint's folder")
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        required=True,
        metavar="P",
        help="number of model-parallel ranks, each with a file of its own; it divides heads and vocabulary",
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="type of all weights written (default: each tensor keeps its own)"
    )
    add_source_options(parser)
    parser.add_argument(
        "--force", action="store_true", help="replace the checkpoint DIR of this program, once the new one is complete"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no notes and no closing line")


def run(args: argparse.Namespace) -> None:
    started = time.monotonic()
    checkpoint = open_megatron(args.checkpoint, n_head=args.heads, iteration=args.iteration)
    config, p = checkpoint.config, args.tensor_parallel
    check_ranks(config, p)
    dtypes = {name: DTYPES[args.dtype] if args.dtype else dtype for name, dtype in checkpoint.dtypes.items()}
    size = shard_bytes(config, dtypes, p) + _MANIFEST_BYTES
    inputs = [args.checkpoint, *checkpoint.files]
    with new_folder(args.output, force=args.force, size=size, inputs=inputs, kind=COPY) as folder:
        print_notes(checkpoint, quiet=args.quiet)
        if checkpoint.left_out and not args.quiet:
            names = some(checkpoint.left_out, 9)
            print(f"note: {args.checkpoint}: only the weights are written; left out: {names}", file=sys.stderr)
        with Hasher() as hasher:
            hash_files(checkpoint, hasher)
            widest = max(dtype.itemsize for dtype in dtypes.values())
            with reading(checkpoint, "convert", itemsize=widest, quiet=args.quiet) as read:
                files = write_megatron(folder, checkpoint, dtypes, p, read)
            options = {"dtype": args.dtype, "tensor_parallel": p, "iteration": named_iteration(checkpoint)}
            describe_copy(folder, checkpoint, options, hasher)
        written = sum(file.stat().st_size for file in files)
    if not args.quiet:
        kinds = Counter(dtype.name for dtype in dtypes.values()).most_common()
        print(
            f"{config.parameter_count:,} parameters as {some((name for name, _ in kinds), 4)} in {plural(p, 'shard')}, "
            f"{written / 1e6:,.1f} MB, {time.monotonic() - started:.1f} s: {args.output}"
        )
