"""``chat``: type a text, see it continued."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator

from inference.commands.options import add_model, add_options, options_of, prompt_of, shown
from inference.jsonl import RecordError
from inference.text_generator import TextGenerator
from tokenization import TokenizerError

DESCRIPTION = """\
Continues each line that is typed, and prints the text as it comes. An empty line goes on with the text. Ctrl-C stops
the text, Ctrl-D (or /quit) ends the program.
"""
EXAMPLES = ("{command} song-ci-savedmodel --temperature 0.8",)

_MARK = "> "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_options(parser, "num_beams", "num_return_sequences", "length_penalty", "early_stopping")


def run(args: argparse.Namespace) -> None:
    if sys.stdin is None:
        raise RecordError("stdin is closed: there is nowhere to type")
    generator = TextGenerator.load(args.model, max_batch_size=1)
    options = {**options_of(args, generator.tokenizer), "num_beams": 1, "num_return_sequences": 1}
    generator.resolve(**options)
    if isinstance(sys.stdin, io.TextIOWrapper):  # what is no UTF-8 is for the tokenizer to refuse
        sys.stdin.reconfigure(errors="surrogateescape")
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() has line editing and a history with it
        print(DESCRIPTION)
    text = ""
    for line in _lines():
        text = line or text
        before = len(text)
        try:
            try:
                for part in generator.stream(
                    prompt_of(text, args, generator.tokenizer, unfinished=not line), **options
                ):
                    text += part
                    print(shown(part, args, generator.tokenizer), end="", flush=True)
            except TokenizerError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
            else:
                print() if len(text) > before else print("(the text has ended: type another one)")
        except KeyboardInterrupt:
            print()


def _lines() -> Iterator[str]:
    """What is typed, until the end of input or ``/quit``; Ctrl-C begins the line anew."""
    while True:
        try:
            line = input(_MARK if sys.stdin.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            continue
        if line.strip() == "/quit":
            return
        yield line
