"""``to-megatron`` and ``reshard``: a checkpoint in, CPM's shards for any number of model-parallel ranks out."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert import conversion as copying
from convert.formats.megatron import megatron_lm
from convert.formats.megatron.cpm_writer import (
    check_ranks,
    check_writable,
    named_iteration,
    shard_bytes,
    write_megatron,
)
from convert.formats.megatron.megatron_lm_writer import check_config, padded_vocab_size, write_megatron_lm
from convert.formats.uer_layer_norm import with_layer_norm
from convert.source import open_source
from convert.tensors import DType
from support.errors import ConvertError
from tf_model.config import STANDARD

DESCRIPTION = """\
Writes a checkpoint again, split over another number of model-parallel ranks, as CPM's programs load it or, with
--layout megatron-lm, newer Megatron-LM. Weights keep their bits, or become another type (--dtype). Only weights are
taken: optimizer and random states are left out. The SHA-256 of all files is kept in manifest.json; the command check
compares them with it.
"""
EXAMPLES = ("{command} --checkpoint CPM-Generate --tensor-parallel 4 --output CPM-Generate-4",)


CPM = "cpm"
LAYOUTS = (CPM, megatron_lm.NAME)
_DIVISIBLE_BY = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    copying.add_arguments(parser)
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        required=True,
        metavar="P",
        help="number of model-parallel ranks, each with a file of its own; it divides heads and vocabulary",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=CPM,
        help="cpm: CPM's releases and DeepSpeed (default); megatron-lm: newer Megatron-LM, with args",
    )
    parser.add_argument(
        "--checkpoint-version",
        choices=megatron_lm.VERSIONS,
        help=f"of --layout {megatron_lm.NAME}, the order of Q, K and V (default: {megatron_lm.VERSIONS[-1]})",
    )
    parser.add_argument(
        "--make-vocab-size-divisible-by",
        type=int,
        metavar="N",
        help=f"of --layout {megatron_lm.NAME}: pad each rank's rows of the vocabulary to a multiple of N, with zeros "
        f"(default: {_DIVISIBLE_BY}, as there)",
    )


def run(args: argparse.Namespace) -> None:
    for option in ("checkpoint_version", "make_vocab_size_divisible_by"):
        if args.layout == CPM and (value := getattr(args, option)) is not None:
            name = f"--{option.replace('_', '-')}"
            raise ConvertError(f"{name} {value}: expected --layout {megatron_lm.NAME} too")
    version = args.checkpoint_version or megatron_lm.VERSIONS[-1]
    checkpoint = with_layer_norm(open_source(args), STANDARD)
    if args.layout == CPM:
        check_writable(checkpoint)
    else:
        check_config(checkpoint.config)
    p, config, divisible_by = args.tensor_parallel, checkpoint.config, args.make_vocab_size_divisible_by
    if args.layout != CPM:
        divisible_by = _DIVISIBLE_BY if divisible_by is None else divisible_by
        if not 1 <= divisible_by <= 1 << 20:
            raise ConvertError(f"--make-vocab-size-divisible-by {divisible_by}: expected a number from 1 to {1 << 20}")
        config = dataclasses.replace(config, vocab_size=padded_vocab_size(config, max(p, 1), divisible_by))
    check_ranks(config, p)
    dtypes = copying.dtypes_of(checkpoint, args.dtype)

    def write(folder: Path, dtypes: Mapping[str, DType], read: copying.Read) -> list[Path]:
        if args.layout == CPM:
            return write_megatron(folder, checkpoint, dtypes, p, read)
        return write_megatron_lm(folder, checkpoint, dtypes, p, version, divisible_by, read)

    size = shard_bytes(config, dtypes, p, lambda name: megatron_lm.source_name(name)[1])
    options: dict[str, Any] = {"tensor_parallel": p, "iteration": named_iteration(checkpoint)}
    if args.layout != CPM:
        options.update(layout=args.layout, checkpoint_version=version, make_vocab_size_divisible_by=divisible_by)
    copying.copy(
        args, checkpoint, dtypes, write, size=size, options=options
    )  # fmt: skip
