"""``verify``: compare a SavedModel, or a copy in another format, with what it was made from."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from convert.commands.options import CHECKPOINT_HELP, add_source_options, checkpoint_spec
from convert.verification.checkpoint_logits import check_torch
from convert.verification.compare import spare_memory, verify
from convert.verification.metrics import MIN_TOKENS_FOR_PERPLEXITY
from convert.verification.text_windows import MAX_TOKENS
from support.progress import TerminalProgress

DESCRIPTION = f"""\
Runs both models on the same prompts and compares the logits: a SavedModel in TensorFlow, a checkpoint in float32 by
PyTorch. A checkpoint of CPM is run as Megatron would run it, every shard by itself. The command fails where the logits
differ by more than the dtype of CONVERTED explains. With --text or --prompts the perplexity of both models is reported,
too; it has to be the same within 0.5 % (float32: 0.01 %) where {MIN_TOKENS_FOR_PERPLEXITY:,} tokens or more are
predicted. Both models take the same number of heads: only the perplexity shows whether --heads is right.
"""
EXAMPLES = ("{command} demo/song-ci out/song-ci --heads 4",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument(
        "converted", type=Path, metavar="CONVERTED", help="what was made from it: a SavedModel, or any checkpoint"
    )
    add_source_options(parser)
    file = parser.add_mutually_exclusive_group()
    file.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="file of prompts, one per line, in UTF-8 (default: random token ids, the same in every run, from 1 token "
        "to as many as the model takes)",
    )
    file.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text as one document, cut into windows of as many tokens as the model takes; or .jsonl, a document "
        'per line: a string, or an object with "text". Such a document is complete: the end of text follows it',
    )
    parser.add_argument(
        "--max-tokens",
        type=_positive,
        metavar="N",
        help=f"how many tokens of FILE to use at most (default: {MAX_TOKENS}), from the beginning of a longer --text. "
        "Each takes 4 bytes times the vocabulary in TMPDIR, and more time than generating a token",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, with every prompt")


def run(args: argparse.Namespace) -> None:
    check_torch()
    spare_memory()
    with TerminalProgress() as progress:
        report = verify(
            checkpoint_spec(args).open(),
            args.converted,
            text=args.text,
            prompts=args.prompts,
            max_tokens=args.max_tokens,
            progress=progress,
        )
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(report.to_dict(), allow_nan=False) if args.json else report.table())
    report.check(args.converted)


def _positive(text: str) -> int:
    if not text.isdecimal() or not (number := int(text)):
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: expected a number of tokens, 1 or more")
    return number
