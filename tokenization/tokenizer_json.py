"""``tokenizer.json`` of the ``tokenizers`` library: what transformers 5 saves instead of a vocabulary's own files.

Source: the format has no description; the fields are those of the library's ``Tokenizer.to_str``. Only two of the many
things that such a file can say are taken here: GPT-2's byte-level BPE and BERT's WordPiece, each with the steps that
the original has. ``library.py`` takes all others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenization.added_pieces import Declared, added_token, read_declared, whole_piece
from tokenization.base import TokenizerError, read_text

FILE = "tokenizer.json"
_BEGINNING = 1 << 20
"""Bytes within which such a file names its added pieces: they stand in front of the vocabulary."""
_STEPS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "BPE": {
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "byte_fallback": False,
            "ignore_merges": False,
        },
    },
    "WordPiece": {
        "normalizer": {"type": "BertNormalizer", "clean_text": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    },
}
"""By the type of the model: what the other fields have to be. The library has left out some of them at times."""


def read_tokenizer_json(path: Path, kind: str) -> tuple[dict[str, int], Declared, Mapping[str, Any]]:
    """Return the pieces with their ids, what is declared about them and others, and the whole of the file.

    Args:
        path: the file.
        kind: ``BPE`` or ``WordPiece``.

    Raises:
        TokenizerError: it is damaged, or another kind of tokenizer.
    """
    values = _read(path)
    for field, needed in _STEPS[kind].items():
        found = values.get(field) or {}
        for key, value in needed.items():
            said = found.get(key, value if key != "type" else None)
            if said != value and not (value == "" and said is None):
                raise TokenizerError(f"{path}: {field}.{key} is {said!r:.40}, expected {value!r}: another tokenizer")
    if kind == "BPE" and values.get("normalizer") is not None:
        raise TokenizerError(f"{path}: has a normalizer, which GPT-2's byte-level BPE has not: another tokenizer")
    try:
        pairs = list(values["model"]["vocab"].items())
        added = {value["id"]: added_token(path, value) for value in values.get("added_tokens") or ()}
    except (KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{path}: expected model.vocab and added_tokens: damaged") from error
    new = [(token.content, index) for index, token in added.items() if token.content not in dict(pairs)]
    pieces = checked_vocabulary(path, [*pairs, *new])
    for index, token in added.items():
        if pieces[token.content] != index:
            raise TokenizerError(f"{path}: the piece {token.content[:40]!r} has two ids")
    declared = read_declared(path.parent)
    declared = dataclasses.replace(declared, added={**added, **declared.added})
    return {piece: pieces[piece] for piece, _ in pairs}, declared, values


def is_tokenizer_json(path: Path) -> bool:
    """Whether ``path`` is JSON of the ``tokenizers`` library, whatever its name is, damaged or not."""
    if path.name == FILE:
        return True
    try:
        with path.open("rb") as file:
            if b'"added_tokens"' not in file.read(_BEGINNING):
                return False
        values = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):  # TokenizerError is a ValueError
        return False
    return isinstance(values, dict) and isinstance(values.get("model"), dict) and "added_tokens" in values


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
        if not isinstance(values, dict) or not all(
            isinstance(values.get(field) or {}, dict) for field in ("model", "normalizer", "pre_tokenizer")
        ):
            raise ValueError("expected an object of objects")
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path}: not JSON of the tokenizers library: {error}") from error
    return values


def checked_vocabulary(path: Path, pairs: list[tuple[Any, Any]]) -> dict[str, int]:
    """Piece -> id; the ids are 0 to the number of pieces, each once.

    Raises:
        TokenizerError: they are not.
    """
    pieces: dict[str, int] = {}
    owners: dict[int, str] = {}
    for piece, index in pairs:
        if not isinstance(piece, str) or type(index) is not int or not 0 <= index < len(pairs):
            raise TokenizerError(
                f"{path}: {piece!r:.40} has the id {str(index)[:40]}, expected a number from 0 to {len(pairs) - 1}"
            )
        if piece in pieces:
            raise TokenizerError(f"{path}: the piece {piece[:40]!r} is there twice")
        if index in owners:
            raise TokenizerError(f"{path}: {owners[index][:40]!r} and {piece[:40]!r} have the same id {index}")
        pieces[whole_piece(path, piece)], owners[index] = index, piece
    return pieces
