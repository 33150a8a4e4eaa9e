"""``to-tf``, ``pytorch-to-tf`` and ``tf-to-tf``: a checkpoint in, one SavedModel out."""

from __future__ import annotations

import argparse
from pathlib import Path

from convert.commands.options import (
    add_checkpoint_option,
    add_source_options,
    add_tokenizer_option,
    add_write_option,
    checkpoint_spec,
    print_notes,
)
from convert.dtype_choice import AUTO, OTHERWISE, wanted
from convert.formats.text_pieces import PIECE_OPTIONS
from convert.savedmodel_conversion import to_savedmodel
from exports.saved_model_folder import SIGNATURES
from support.progress import TerminalProgress
from tf_model.precision import DTYPES

DESCRIPTION = """\
Reads a checkpoint of any format, merges its model-parallel shards if it has some, and writes one TensorFlow SavedModel.
Sizes are read from the files; nothing inside them is run. The SavedModel appears when it is complete.
"""
EXAMPLES = (
    "{command} --checkpoint demo/song-ci --tokenizer demo/song-ci/tokenizer --heads 4 --output out/song-ci-2",
    "{command} --checkpoint demo/song-ci --tokenizer demo/song-ci/tokenizer --heads 4 --dtype auto --output "
    "out/song-ci-3",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the SavedModel's folder, to be made")
    add_tokenizer_option(parser, "to be stored in the SavedModel; without one, it takes token ids only")
    parser.add_argument(
        "--dtype",
        choices=(*DTYPES, AUTO),
        default=DTYPES[0],
        help=f"type of the weights written (default: %(default)s); {AUTO} takes the type that generates "
        "fastest on this "
        f"machine's CPU: {wanted()}, else {OTHERWISE}",
    )
    parser.add_argument(
        "--signatures",
        type=lambda text: tuple(text.split(",")),
        default=SIGNATURES,
        metavar="NAME[,NAME...]",
        help="write only these signatures, which makes a smaller graph; the commands that generate need theirs "
        f"(default: all: {', '.join(SIGNATURES)})",
    )
    add_source_options(parser)
    for option in PIECE_OPTIONS:
        add_write_option(parser, option)
    parser.add_argument(
        "--verify", action="store_true", help="verify the result before putting it in place: compare its logits"
    )
    parser.add_argument("--force", action="store_true", help="replace the SavedModel DIR, once the new one is complete")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no notes and no closing line")


def run(args: argparse.Namespace) -> None:
    with TerminalProgress(quiet=args.quiet) as progress:
        result = to_savedmodel(
            checkpoint_spec(args).open(),
            args.output,
            tokenizer=args.tokenizer,
            tokenizer_kind=args.tokenizer_kind,
            dtype=args.dtype,
            verify=args.verify,
            overwrite=args.force,
            signatures=args.signatures,
            options={option.name: getattr(args, option.name) for option in PIECE_OPTIONS},
            progress=progress,
        )
    if not args.quiet:
        print_notes(result.notes)
        if result.parity:
            print(result.parity)
        print(result.summary())
