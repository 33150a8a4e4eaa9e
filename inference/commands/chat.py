"""``chat``: type a text, see it continued."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from inference.commands.options import (
    add_model,
    add_options,
    add_punctuation,
    given_options,
    load_generator,
    print_general_notes,
    print_notes,
    read_requests,
    wants_chinese_marks,
)
from support.errors import UserError

if TYPE_CHECKING:
    from inference.commands.printer import Printer
    from inference.request import TextConfig
    from inference.text_generator import TextGenerator

DESCRIPTION = """\
Continues each line that is typed, and prints the text as it is generated. An empty line goes on with the text. Ctrl-C
stops the text, Ctrl-D (or /quit) ends the program.
"""
EXAMPLES = ("{command} out/song-ci --temperature 0.8 --max-new-tokens 100",)

_MARK = "> "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_punctuation(parser)
    add_options(parser, "num_beams", "num_return_sequences", "length_penalty", "early_stopping")


def run(args: argparse.Namespace) -> None:
    """Load the model, continue line after line."""
    from inference.commands.printer import Printer

    if sys.stdin is None:
        raise UserError("stdin is closed: there is nowhere to type")
    requests = read_requests(args)
    requests.check_reads_text()
    config = requests.resolve(**{**given_options(args), "num_beams": 1, "num_return_sequences": 1})
    print_general_notes(requests, config)
    generator = load_generator(args, requests, 1)
    if isinstance(sys.stdin, io.TextIOWrapper):  # what is not UTF-8 is for the tokenizer to refuse
        sys.stdin.reconfigure(errors="surrogateescape")
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() has line editing and a history with it
        print(DESCRIPTION)
    printer = Printer(chinese_marks=wants_chinese_marks(args))
    text = ""
    for line in _lines():
        text = line or text
        text += _continue(text, generator, config, printer, is_new=bool(line))


def _continue(text: str, generator: TextGenerator, config: TextConfig, printer: Printer, *, is_new: bool) -> str:
    """Print a continuation, until it ends or Ctrl-C; return it as the model made it."""
    from tokenization import TokenizerError

    made: list[str] = []

    def keep(parts: Iterator[str]) -> Iterator[str]:
        for part in parts:
            made.append(part)
            yield part

    try:
        prompt = generator.requests.encode(text, config, unfinished=not is_new)
        if is_new:
            print_notes(generator.requests, prompt, config)
        for part in printer.continuation(prompt, keep(generator.stream_encoded(prompt, config))):
            print(part, end="", flush=True)
        print("" if made else "(the text has ended: type another one)")
    except TokenizerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print()
    return "".join(made)


def _lines() -> Iterator[str]:
    """Yield what is typed, until the end of input or ``/quit``; Ctrl-C begins the line anew."""
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
