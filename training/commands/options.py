"""Options that the commands of ``training`` share: model, texts, and the rows of the table of settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convert.commands.options import CHECKPOINT_HELP
from support.command_line import utf8_text
from training.setting import Setting, flag
from training.settings import SETTINGS, shown_default


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the model and the texts."""
    parser.add_argument("--model", dest="checkpoint", type=Path, metavar="PATH", help=CHECKPOINT_HELP)
    parser.add_argument(
        "--text",
        type=Path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="what to learn: text files, JSON lines (strings, or objects with a text), or folders of them; UTF-8",
    )


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add the options of settings."""
    for name in names:
        _add(parser, name, SETTINGS[name])


def _add(parser: argparse.ArgumentParser, name: str, setting: Setting) -> None:
    """Add the option of a setting. One that is left out is None: the table of settings has the defaults."""
    shown = f"{setting.help} (default: {shown_default(name)})".replace("%", "%%")
    if setting.kind is bool:
        parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=shown)
        return
    parser.add_argument(
        flag(name),
        type=utf8_text if setting.kind is str else setting.kind,
        nargs="+" if setting.is_list else None,
        choices=setting.choices or None,
        metavar=setting.metavar,
        help=shown,
    )


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given, by name."""
    values = {name: getattr(args, name, None) for name in SETTINGS}
    return {name: value for name, value in values.items() if value is not None}
