"""Arguments that the commands of ``python -m inference`` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exports.generation_config import ALL_OPTIONS, OptionError
from exports.generation_options import Option
from inference.presets import PRESETS, Preset
from tokenization import Tokenizer


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a SavedModel made by python -m convert")


def add_options(parser: argparse.ArgumentParser, *left_out: str, presets: bool = True) -> None:
    """Every option of generation; what is not given is as ``generation_config.json`` in the SavedModel says."""
    group = parser.add_argument_group("how texts are generated (by default as the model's generation_config.json says)")
    for name, option in ALL_OPTIONS.items():
        if name not in left_out:
            group.add_argument(f"--{name.replace('_', '-')}", **_argument(option), help=option.help)
    group.add_argument("--max-length", type=int, metavar="N", help="most tokens of prompt and continuation together")
    group.add_argument(
        "--truncate",
        action="append",
        metavar="TEXT",
        help="a text ends before this; may be given several times ($'\\n' is a line feed in the shell)",
    )
    group.add_argument(
        "--window",
        choices=("line", "tokens"),
        help="when all positions are used, go on behind a whole line, or with the newest tokens (default: tokens)",
    )
    parser.set_defaults(preset=None)
    if not presets:
        return
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="as CPM-1-Text-Generation-Unlimit: lyrics (<eod> ends a line) of 1,500 tokens, or novels of 2,048, past "
        "the end of a document; --max-length says how many, and other options go before its own",
    )


def _argument(option: Option) -> dict[str, Any]:
    if option.is_list:
        return {"type": _ids, "metavar": "ID[,ID...]"}
    return {"type": float, "metavar": "X"} if option.is_real else {"type": int, "metavar": "N"}


def _ids(text: str) -> tuple[int, ...]:
    # Not nargs="*": that would take the prompts behind it.
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected token ids with commas between, -1 for none") from None


def preset_of(args: argparse.Namespace) -> Preset | None:
    return PRESETS[args.preset] if args.preset else None


def options_of(args: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, Any]:
    """What was said about generation, as options of ``TextGenerator``.

    Raises:
        OptionError: a window of lines, for a tokenizer that has no end of line.
    """
    names = [*ALL_OPTIONS, "max_length", "truncate"]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    preset = preset_of(args)
    base = preset.options(tokenizer) if preset else {}
    if "max_new_tokens" in given:
        base.pop("max_length", None)
    if given.get("num_beams", 1) > 1:
        base = {name: value for name, value in base.items() if name in ("max_length", "eos_token_id")}
    if args.window == "tokens":
        base["window_line_token_id"] = -1
    elif args.window == "line" and not (preset and preset.lines) and "window_line_token_id" not in given:
        if tokenizer.line_token_id is None:
            raise OptionError("the model's tokenizer has no end of line: give --window-line-token-id ID")
        base["window_line_token_id"] = tokenizer.line_token_id
    return {**base, **given}


def prompt_of(
    text: str, args: argparse.Namespace, tokenizer: Tokenizer, *, unfinished: bool = False
) -> str | list[int]:
    """A prompt as ``TextGenerator`` takes it; an ``unfinished`` one was cut within a line."""
    preset = preset_of(args)
    return preset.prompt(tokenizer, text, unfinished=unfinished) if preset else text


def echo(prompt: str, args: argparse.Namespace) -> str:
    """A prompt as it is printed in front of its text: as it was typed; a lyric's last line ends."""
    preset = preset_of(args)
    return f"{prompt.rstrip()}\n" if preset and preset.lines else prompt


def shown(text: str, args: argparse.Namespace, tokenizer: Tokenizer) -> str:
    """Generated text as it is to be printed."""
    preset = preset_of(args)
    return preset.text(tokenizer, text) if preset else text
