"""The options of ``TextGenerator`` for editors, type checkers and ``help()``.

``exports/generation_options.py`` is the table of what an option is. A type checker cannot read a table, so the names
and types are repeated in ``GenerationOptions``; a test compares the two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, TypeVar

from exports.generation_config import ALL_OPTIONS, PIECE_OPTIONS

PresetName = Literal["lyric", "novel"]
WindowName = Literal["line", "tokens"]
"""What is kept when all positions of the model are used: whole lines, or the newest tokens."""

Function = TypeVar("Function", bound=Callable[..., Any])


class GenerationOptions(TypedDict, total=False):
    """Keyword arguments of ``TextGenerator.generate`` and ``stream``; None stands for the model's default."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    suppress_tokens: int | Sequence[int] | None
    eos_token_id: int | Sequence[int] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    seed: int | Sequence[int] | None
    window_tokens: int | None
    window_line_token_id: int | None
    num_beams: int | None
    num_return_sequences: int | None
    length_penalty: float | None
    early_stopping: int | bool | Literal["never"] | None
    do_sample: bool | None
    max_length: int | None
    truncate: str | Sequence[str] | None
    start_token_ids: int | Sequence[int] | None
    line_token_id: int | None
    special_pieces: bool | None
    preset: PresetName | None
    window: WindowName | None


OTHER_OPTIONS = {
    "do_sample": "False takes the most probable token, as temperature 0 does",
    "max_length": "most tokens of prompt and continuation together, instead of max_new_tokens",
    "truncate": "the text ends before this string, or the first of several",
    **{name: option.help for name, option in PIECE_OPTIONS.items()},
    "special_pieces": "True: [SEP], <eod> and the like in a prompt are the pieces of these names; False: they are text",
    "preset": "lyric or novel: what CPM-1-Text-Generation-Unlimit's two scripts do",
    "window": "line or tokens: when all positions are used, keep whole lines or the newest tokens",
}
"""Options that the graph does not have, and their help."""

_DEFAULTS_FROM = "Options (left out, they are as the model's generation_config.json says, else as here):"


def document_options(function: Function) -> Function:
    """Show each option with type, default and help in the signature and docstring of a method with ``**options``."""
    signature = inspect.signature(function)
    types = GenerationOptions.__annotations__
    kinds = {name: getattr(value, "__forward_arg__", value) for name, value in types.items()}
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(name), annotation=kind)
        for name, kind in kinds.items()
    ]
    lines = [f"    {name}{_default_text(name)}: {option_help(name)}" for name in kinds]
    function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", _DEFAULTS_FROM, *lines])
    function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return function


def option_help(name: str) -> str:
    """Return the one line that says what an option does."""
    return ALL_OPTIONS[name].help if name in ALL_OPTIONS else OTHER_OPTIONS[name]


def _default(name: str) -> Any:
    return ALL_OPTIONS[name].default if name in ALL_OPTIONS else None


def _default_text(name: str) -> str:
    return f" (default: {_default(name)})" if name in ALL_OPTIONS else ""
