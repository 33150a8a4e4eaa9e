"""``inspect-text``: a report of the texts as ``finetune`` would train on them."""

from __future__ import annotations

import argparse
import json

from convert.commands.options import add_source_options, checkpoint_spec, print_notes
from support.command_line import check_paths
from support.progress import TerminalProgress
from training.commands.options import add_inputs, add_settings, given_settings
from training.text_inspection import inspect_text

DESCRIPTION = """\
Reads texts as finetune does with the same options, and prints what a model would be trained on: documents, tokens, the
share that its vocabulary does not have, how full the rows are, and the first row. The weights are not read.
"""
EXAMPLES = (
    "{command} --model out/song-ci --text demo/held-out.jsonl",
    "{command} --model out/song-ci --text demo/held-out.jsonl --preset lyric --length 128 --json",
)

USED = ("preset", "prefix", "loss", "validation", "length", "batch_size", "seed", "init", "tokenizer", "tokenizer_kind")
"""The settings that decide what the texts become."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_inputs(parser)
    add_settings(parser, USED)
    add_source_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    check_paths(args.text)
    with TerminalProgress(quiet=args.quiet) as progress:
        report = inspect_text(
            None if args.checkpoint is None else checkpoint_spec(args),
            args.text,
            progress=progress,
            **given_settings(args),
        )
    if args.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
        return
    if not args.quiet:
        print_notes(report.notes)
    print("\n".join(report.lines()))
