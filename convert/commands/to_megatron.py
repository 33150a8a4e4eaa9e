"""``to-megatron`` and ``reshard``: a checkpoint in, CPM's shards for any number of model-parallel ranks out."""

from __future__ import annotations

import argparse

from convert import conversion as copying
from convert.formats.format import WriteRequest, resolve_options
from convert.formats.megatron import cpm, megatron_lm
from convert.formats.megatron.layout import MEGATRON_LM, VERSIONS
from convert.formats.megatron.megatron_lm_writer import DIVISIBLE_BY
from convert.formats.uer_layer_norm import with_layer_norm
from convert.source import open_source
from support.errors import ConvertError

DESCRIPTION = """\
Writes a checkpoint again, split over another number of model-parallel ranks, as CPM's programs load it or, with
--layout megatron-lm, newer Megatron-LM. Weights keep their bits, or become another type (--dtype). Only weights are
taken: optimizer and random states are left out. The SHA-256 of all files is kept in manifest.json; the command check
compares them with it.
"""
EXAMPLES = ("{command} --checkpoint demo/song-ci --heads 4 --tensor-parallel 4 --output out/song-ci-4",)


CPM = "cpm"
LAYOUTS = (CPM, MEGATRON_LM)


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
        choices=VERSIONS,
        help=f"of --layout {MEGATRON_LM}, the order of Q, K and V (default: {VERSIONS[-1]})",
    )
    parser.add_argument(
        "--make-vocab-size-divisible-by",
        type=int,
        metavar="N",
        help=f"of --layout {MEGATRON_LM}: pad each rank's rows of the vocabulary to a multiple of N, with zeros "
        f"(default: {DIVISIBLE_BY.default}, as there)",
    )


def run(args: argparse.Namespace) -> None:
    for option in ("checkpoint_version", "make_vocab_size_divisible_by"):
        if args.layout == CPM and (value := getattr(args, option)) is not None:
            name = f"--{option.replace('_', '-')}"
            raise ConvertError(f"{name} {value}: expected --layout {MEGATRON_LM} too")
    writer = (cpm if args.layout == CPM else megatron_lm).FORMAT.writer
    assert writer is not None
    checkpoint = with_layer_norm(open_source(args), writer.layer_norm)
    names = [option.name for option in writer.options]
    options = resolve_options(writer.options, {name: getattr(args, name) for name in names}, args.layout)
    request = WriteRequest(checkpoint, copying.dtypes_of(checkpoint, args.dtype), options)
    writer.check(request)

    copying.copy(
        args,
        checkpoint,
        request.dtypes,
        lambda folder, dtypes, read: writer.write(request, folder, read),
        size=writer.size(request),
        options={**options, **writer.record(request)},
    )
