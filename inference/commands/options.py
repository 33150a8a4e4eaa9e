"""Options that the commands of ``inference`` share, and what they do before a model is loaded.

Nothing but Python's standard library is imported for ``--help``.
"""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from exports.generation_config import ALL_OPTIONS, PIECE_NAMES, PIECE_OPTIONS
from exports.generation_options import Option
from inference.options import PresetName, WindowName
from support.command_line import utf8_text

if TYPE_CHECKING:
    from inference.request import EncodedPrompt, RequestReader, TextConfig
    from inference.text_generator import TextGenerator


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the SavedModel, which every command needs."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a SavedModel made by python -m convert")


def add_punctuation(parser: argparse.ArgumentParser) -> None:
    """Add how generated text is punctuated."""
    parser.add_argument(
        "--punctuation",
        choices=("auto", "chinese", "model"),
        default="auto",
        help="print ，。！？；： after Chinese characters, or the marks of the model (CPM's are ASCII); auto is "
        "chinese on a terminal and model in a pipe or file (default: auto)",
    )


def add_options(parser: argparse.ArgumentParser, *left_out: str, presets: bool = True) -> None:
    """Add every option of generation but those ``left_out``."""
    group = parser.add_argument_group(
        "generation options", "The model's generation_config.json goes before the defaults below."
    )
    for name, option in ALL_OPTIONS.items():
        if name not in left_out:
            text = f"{option.help} (default: {_default(option)})".replace("%", "%%")
            group.add_argument(f"--{name.replace('_', '-')}", **_argument(option), help=text)
    for name, option in PIECE_OPTIONS.items():
        text = f"{option.help} (default: as the tokenizer has it)"
        group.add_argument(f"--{name.replace('_', '-')}", **_argument(option), help=text)
    group.add_argument(
        "--special-pieces",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="read [CLS], [SEP], <eod> and the like in a prompt as the pieces of these names, or as text (default: as "
        "pieces, but for CPM's <eod>, which is text)",
    )
    group.add_argument("--max-length", type=int, metavar="N", help="most tokens of prompt and continuation together")
    group.add_argument(
        "--truncate",
        action="append",
        type=utf8_text,
        metavar="TEXT",
        help="end the text before TEXT; may be given several times ($'\\n' is a line feed in the shell)",
    )
    group.add_argument(
        "--window",
        choices=get_args(WindowName),
        help="when all positions are used, keep whole lines or the newest tokens (default: tokens)",
    )
    parser.set_defaults(preset=None)
    if presets:
        group.add_argument(
            "--preset",
            choices=get_args(PresetName),
            help="as CPM-1-Text-Generation-Unlimit: lyrics (<eod> ends a line) of 1,500 tokens, or novels of 2,048, "
            "past the end of a document; --max-length changes the length, other options replace the preset's own",
        )


def _argument(option: Option) -> dict[str, Any]:
    if option.is_list:
        return {"type": _ids, "metavar": "ID[,ID...]"}
    return {"type": float, "metavar": "X"} if option.is_real else {"type": int, "metavar": "N"}


def _default(option: Option) -> str:
    return "none" if option.is_list else str(option.default)


def _ids(text: str) -> tuple[int, ...]:
    # Not nargs="*": that would take the prompts after it.
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected token ids with commas between, -1 for none") from None


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of generation that were given, as ``TextGenerator`` has them."""
    names = [*ALL_OPTIONS, *PIECE_NAMES, "max_length", "truncate", "preset", "window"]
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def read_requests(args: argparse.Namespace) -> RequestReader:
    """Read what options and prompts are checked with; the model itself is not loaded yet."""
    from exports.saved_model_folder import SavedModelFolder
    from inference.request import RequestReader

    use_utf8()
    return RequestReader.read(SavedModelFolder(args.model))


def load_generator(
    args: argparse.Namespace, requests: RequestReader, max_batch_size: int, *, quiet: bool = False
) -> TextGenerator:
    """Load the model; on a terminal a line says so."""
    from inference.text_generator import TextGenerator

    if sys.stderr.isatty() and not quiet:
        print(f"Loading {args.model} ...", file=sys.stderr, flush=True)
    return TextGenerator.load(args.model, max_batch_size=max_batch_size, requests=requests)


def print_notes(requests: RequestReader, prompt: EncodedPrompt, config: TextConfig) -> None:
    """Print what the model cannot read of a prompt, a line each, on stderr."""
    for note in requests.notes(prompt, config):
        print(f"note: {note}", file=sys.stderr, flush=True)


def print_general_notes(requests: RequestReader, config: TextConfig) -> None:
    """Print what a user should know about every text, a line each, on stderr."""
    for note in requests.general_notes(config):
        print(f"note: {note}", file=sys.stderr, flush=True)


def wants_chinese_marks(args: argparse.Namespace) -> bool:
    """Return whether generated text is printed with Chinese punctuation."""
    return args.punctuation == "chinese" or (args.punctuation == "auto" and sys.stdout.isatty())


def use_utf8() -> None:
    """Let the standard streams have UTF-8 where the locale knows ASCII alone (``LC_ALL=C``), as Python does by default.

    Chinese text would be escapes otherwise, and typed text unreadable. ``PYTHONIOENCODING`` is obeyed.
    """
    if os.environ.get("PYTHONIOENCODING"):
        return
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name == "ascii":
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
