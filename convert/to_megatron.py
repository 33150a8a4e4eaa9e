"""``to-megatron`` and ``reshard``: a checkpoint in, CPM's shards for any number of model-parallel ranks out."""

from __future__ import annotations

import argparse

from convert import copying
from convert.formats.megatron_writer import check_ranks, check_writable, named_iteration, shard_bytes, write_megatron
from convert.layer_norms import with_layer_norm
from convert.source import open_source
from tf_model.config import STANDARD

HELP = "a checkpoint -> Megatron and DeepSpeed shards (CPM's layout) for any number of model-parallel ranks"
DESCRIPTION = """\
Writes a checkpoint again, split over another number of model-parallel ranks, as CPM's programs load it. Weights keep
their bits, or become another type (--dtype). Only weights are taken: optimizer and random states are left out. The
SHA-256 of all files is kept in manifest.json; the command check compares them with it.
"""
EXAMPLE = "python -m convert to-megatron --checkpoint CPM-Generate --tensor-parallel 4 --output CPM-Generate-4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    copying.add_arguments(parser)
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        required=True,
        metavar="P",
        help="number of model-parallel ranks, each with a file of its own; it divides heads and vocabulary",
    )


def run(args: argparse.Namespace) -> None:
    checkpoint = with_layer_norm(open_source(args), STANDARD)
    check_writable(checkpoint.config)
    p = args.tensor_parallel
    check_ranks(checkpoint.config, p)
    dtypes = copying.dtypes_of(checkpoint, args.dtype)
    copying.copy(
        args,
        checkpoint,
        dtypes,
        lambda folder, dtypes, read: write_megatron(folder, checkpoint, dtypes, p, read),
        size=shard_bytes(checkpoint.config, dtypes, p),
        options={"tensor_parallel": p, "iteration": named_iteration(checkpoint)},
    )
