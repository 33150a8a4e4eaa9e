"""Which pieces begin a model's texts, end them and end their lines, where the user says so.

They go into ``generation_config.json`` as ``start_token_ids``, ``eos_token_id`` and ``line_token_id``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from convert.formats.format import WriteOption
from support.errors import ConvertError
from support.messages import short_repr
from tokenization import Tokenizer
from tokenization.special_tokens import SpecialTokens

_START = WriteOption(
    "start_piece",
    "what stands in front of every prompt: pieces of the tokenizer, or token ids, such as [MASK] for models of "
    "GPT2-Chinese; none for nothing (default: as the tokenizer's own programs do)",
    metavar="PIECE[,PIECE...]",
)
_END = WriteOption(
    "end_piece",
    "the piece (or token id) that ends a text, such as [CLS] for models of GPT2-Chinese; none for no end (default: as "
    "the checkpoint or the tokenizer says)",
    metavar="PIECE",
)
_LINE = WriteOption(
    "line_piece",
    "the piece (or token id) that ends a line, such as [SEP] for models of GPT2-Chinese: prompts and texts have a line "
    "feed there (default: as the tokenizer has it)",
    metavar="PIECE",
)
PIECE_OPTIONS = (_START, _END, _LINE)
"""Options of the commands that write a ``generation_config.json``."""

_NONE = "none"


def with_pieces(
    tokens: SpecialTokens, options: Mapping[str, Any], tokenizer: Tokenizer | None, vocab_size: int
) -> SpecialTokens:
    """Return ``tokens`` with those that ``options`` name; an option that is None or absent changes nothing.

    Args:
        tokens: as the checkpoint or its tokenizer says.
        options: by the names of ``PIECE_OPTIONS``.
        tokenizer: what knows the pieces; None where there is none, and only ids can be named.
        vocab_size: the number of tokens that the model has.

    Raises:
        ConvertError: a piece that the tokenizer lacks, an id that the model lacks, or a line that ends as the text.
    """
    ids = {
        option: _token_ids(option, options[option.name], tokenizer, vocab_size)
        for option in PIECE_OPTIONS
        if options.get(option.name) is not None
    }
    defaults = dict(tokens.defaults)
    if _START in ids:
        defaults["start_token_ids"] = ids[_START]
        tokens = dataclasses.replace(tokens, bos_token_id=next(iter(ids[_START]), tokens.bos_token_id))
    if _END in ids:
        defaults.pop("eos_token_id", None)
        tokens = dataclasses.replace(tokens, eos_token_id=next(iter(ids[_END]), None))
    if _LINE in ids:
        defaults.pop("line_token_id", None)
        if ids[_LINE]:
            defaults["line_token_id"] = ids[_LINE][0]
    line = defaults.get("line_token_id")
    ends = [tokens.eos_token_id, *_listed(defaults.get("eos_token_id"))]
    if (_END in ids or _LINE in ids) and line is not None and line in ends:
        raise ConvertError(
            f"{_LINE.flag} is token {line}, which ends a text too: give {_END.flag} another piece, or {_NONE} for "
            "texts that end at their length"
        )
    return dataclasses.replace(tokens, defaults=defaults)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _token_ids(option: WriteOption, text: Any, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """Return the ids that the value of an option names; empty for ``none``."""
    option.check(text)
    if text == _NONE:
        return []
    whole = _find(text, tokenizer)
    names = text.split(",") if option is _START and whole is None else [text]
    found = []
    for name in names:
        token = _find(name, tokenizer)
        if token is None:
            raise ConvertError(f"{option.flag} {short_repr(text)}: {_missing(name, tokenizer)}")
        if not 0 <= token < vocab_size:
            raise ConvertError(
                f"{option.flag} {short_repr(text)}: token id {str(token)[:20]} is outside the vocabulary "
                f"(0 to {vocab_size - 1})"
            )
        found.append(token)
    return found


def _find(name: str, tokenizer: Tokenizer | None) -> int | None:
    """Return the id of a piece, or the number that ``name`` is; None for neither."""
    if name.removeprefix("-").isdecimal() and name.isascii():
        return int(name[:20])
    if tokenizer is None or not name:
        return None
    if name in tokenizer.special_pieces:
        return tokenizer.special_pieces[name]
    pieces: Any = getattr(tokenizer, "pieces", ())
    if name in pieces:
        return int(pieces[name]) if isinstance(pieces, Mapping) else list(pieces).index(name)
    ids = tokenizer.encode(name)  # not every tokenizer shows its pieces, but each knows a text that is one
    is_piece = len(ids) == 1 and ids[0] != tokenizer.unknown_token_id and tokenizer.decode(ids).strip() == name
    return ids[0] if is_piece else None


def _missing(name: str, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return "there is no tokenizer that knows pieces: give a token id, or --tokenizer"
    some = ", ".join(piece[:20] for piece in list(tokenizer.special_pieces)[:5])
    such_as = f" such as {some}" if some else ""
    return f"the vocabulary does not have {short_repr(name[:20])}: expected one of its pieces{such_as}, or a token id"
