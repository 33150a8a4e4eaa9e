"""``finetune``: texts and a model in, a model that writes such texts out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from convert.commands.options import add_source_options, checkpoint_spec
from support.command_line import check_paths
from support.progress import TerminalProgress
from training.commands.options import add_inputs, add_settings, given_settings
from training.finetuning import finetune
from training.run.watching import TerminalWatcher
from training.settings import SETTINGS

DESCRIPTION = """\
Trains a model on texts, and writes a SavedModel that generates such texts. The model may be a checkpoint of any format,
or a SavedModel of this program. While it runs, its state is in DIR.training: the same command goes on where a run was
stopped, however it ended. DIR appears when it is complete.
"""
EXAMPLES = ("{command} --model out/song-ci --text demo/held-out.jsonl --output out/song-ci-4 --steps 2 --lora 4",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_inputs(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the result's folder, to be made")
    add_settings(parser, SETTINGS)
    add_source_options(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="start over, where DIR.training has the state of a run that was stopped"
    )
    parser.add_argument("--force", action="store_true", help="replace an older result in DIR, once the new is complete")
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes and no closing line")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    check_paths(args.text)
    with TerminalProgress(quiet=args.quiet) as progress, TerminalProgress(quiet=args.quiet, unit=" steps") as steps:
        result = finetune(
            None if args.checkpoint is None else checkpoint_spec(args),
            args.text,
            args.output,
            fresh=args.fresh,
            overwrite=args.force,
            watcher=TerminalWatcher(steps),
            progress=progress,
            **given_settings(args),
        )
    if args.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False))
    elif not args.quiet:
        print(result.summary())
