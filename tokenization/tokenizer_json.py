"""``tokenizer.json`` of the ``tokenizers`` library: what transformers 5 saves instead of a vocabulary's own files.

Source: the format has no description; the fields are those of the library's ``Tokenizer.to_str``. Only two of the many
things that such a file can say are taken: GPT-2's byte-level BPE and BERT's WordPiece, each with the steps that the
original has. Anything else would encode differently without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenization.base import TokenizerError, read_text

FILE, ADDED = "tokenizer.json", "added_tokens.json"
_STEPS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "BPE": {
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
        "model": {
            "dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "byte_fallback": False,
            "ignore_merges": False,
        },
    },
    "WordPiece": {
        "normalizer": {"type": "BertNormalizer", "clean_text": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    },
}  # fmt: skip
"""By the type of the model: what the other fields have to be. The library has left out some of them at times."""


def read_tokenizer_json(path: Path, kind: str) -> tuple[dict[str, int], Mapping[str, Any]]:
    """Return the pieces with their ids, those that were added among them, and the whole of the file.

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
        pieces = dict(values["model"]["vocab"])
        for added in values.get("added_tokens") or ():
            if pieces.setdefault(added["content"], added["id"]) != added["id"]:
                raise TokenizerError(f"{path}: the piece {added['content'][:40]!r} has two ids")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path}: expected model.vocab and added_tokens: damaged") from error
    return checked_vocabulary(path, list(pieces.items())), values


def with_added(folder: Path, pieces: dict[str, int]) -> tuple[dict[str, int], list[Path]]:
    """``pieces`` and those that ``added_tokens.json`` of transformers 4 has beside them; and that file, if it is there.

    Raises:
        TokenizerError: the file is damaged, or contradicts the pieces.
    """
    path = folder / ADDED
    if not path.is_file():
        return pieces, []
    try:
        added = json.loads(read_text(path))
        pairs = list(added.items())
    except (ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path}: expected a JSON object of pieces and their ids") from error
    new = [(piece, index) for piece, index in pairs if pieces.get(piece) != index]
    return checked_vocabulary(path, [*pieces.items(), *new]), [path]


def kind_of(path: Path) -> str:
    """Return the type of the model in the file.

    Raises:
        TokenizerError: it is damaged, or of a type that is not read.
    """
    kind = (_read(path).get("model") or {}).get("type")
    if kind not in _STEPS:
        raise TokenizerError(f"{path}: a tokenizer of the type {kind!r:.40}: expected {' or '.join(_STEPS)}")
    return str(kind)


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
        pieces[piece], owners[index] = index, piece
    return pieces
