"""``to-huggingface``, ``to-uer``, ...: write a checkpoint in another format. The options follow from the format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convert.commands.options import (
    add_checkpoint_option,
    add_source_options,
    add_tokenizer_option,
    add_write_option,
    checkpoint_spec,
    print_notes,
)
from convert.conversion import DTYPES, find_writer, to_checkpoint
from convert.formats.format import WriteOption, resolve_options
from support.errors import ConvertError
from support.progress import TerminalProgress

DESCRIPTION = "Writes a checkpoint in another format."
EXAMPLES: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser, format: str, layouts: tuple[str, ...] = ()) -> None:
    """Add the options of a command that writes ``format``, or the one of ``layouts`` that is chosen."""
    formats = layouts or (format,)
    writers = [find_writer(name) for name in formats]
    default = writers[0].default_dtype
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the new checkpoint's folder")
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help=f"type of all weights written (default: {default or 'each tensor keeps its own'})",
    )
    if layouts:
        parser.add_argument(
            "--layout",
            choices=layouts,
            default=layouts[0],
            help=f"which of these formats is written (default: {layouts[0]})",
        )
    for option, owners in _options(formats).items():
        if not option.is_shared:
            only = f"with --layout {' or '.join(owners)}: " if len(owners) < len(formats) else ""
            add_write_option(parser, option, only)
    if any(writer.save_tokenizer is not None for writer in writers):
        add_tokenizer_option(parser, "saved with the weights")
    add_source_options(parser)
    parser.add_argument(
        "--force", action="store_true", help="replace an older checkpoint in DIR that gpt2-savedmodel wrote"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes and no closing line")
    parser.set_defaults(formats=formats, layout=formats[0])


def _options(formats: tuple[str, ...]) -> dict[WriteOption, list[str]]:
    """Return the options of all ``formats``, and which of these have each."""
    owners: dict[WriteOption, list[str]] = {}
    for name in formats:
        for option in find_writer(name).options:
            owners.setdefault(option, []).append(name)
    return owners


def run(args: argparse.Namespace) -> None:
    options = _given_options(args)
    resolve_options(find_writer(args.layout).options, options, args.layout)  # before the checkpoint is looked at
    checkpoint = checkpoint_spec(args).open()
    with TerminalProgress(quiet=args.quiet) as progress:
        result = to_checkpoint(
            checkpoint,
            args.output,
            format=args.layout,
            dtype=args.dtype,
            tokenizer=getattr(args, "tokenizer", None),
            tokenizer_kind=getattr(args, "tokenizer_kind", None),
            overwrite=args.force,
            options=options,
            progress=progress,
        )
    if not args.quiet:
        print_notes(result.notes)
        print(result.summary())


def _given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the format that is written.

    Raises:
        ConvertError: an option of another layout is given.
    """
    given = {}
    for option, owners in _options(args.formats).items():
        value = getattr(args, option.name)
        if args.layout in owners:
            given[option.name] = value
        elif value is not None:
            raise ConvertError(f"{option.flag} {value}: expected --layout {' or '.join(owners)} too")
    return given
