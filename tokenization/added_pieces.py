"""What stands beside a vocabulary: pieces that were added to it, and which piece has which part.

Source: ``PreTrainedTokenizerBase._from_pretrained`` of transformers 5.24. ``tokenizer_config.json`` names the parts
(``eos_token`` and others); its ``added_tokens_decoder`` has the added pieces. Without that list, the files of
transformers 4 count: ``special_tokens_map.json`` for the parts, ``added_tokens.json`` for the pieces.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from tokenization.base import TokenizerError, read_text

CONFIG, SPECIAL_MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
PARTS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the files beside a vocabulary say about its pieces.

    Attributes:
        config: the content of ``tokenizer_config.json``.
        parts: which piece is the ``eos_token`` and so on, of ``PARTS``.
        special: the pieces that are special without an id of their own: those of ``parts``, and further ones.
        added: id -> a piece with the way in which the library looks for it.
        files: the files that were read.
        notes: what of it is not used.
    """

    config: Mapping[str, Any]
    parts: Mapping[str, str]
    special: Mapping[str, AddedToken]
    added: Mapping[int, AddedToken]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def within(self, vocab_size: int | None) -> Declared:
        """Return it without added pieces for which a model of ``vocab_size`` has no rows; None: all of them."""
        if vocab_size is None or max(self.added, default=0) < vocab_size:
            return self
        added = {index: token for index, token in self.added.items() if index < vocab_size}
        left_out = [token.content for index, token in self.added.items() if index >= vocab_size]
        return dataclasses.replace(self, added=added, notes=(left_out_note(left_out, vocab_size),))


def left_out_note(pieces: Sequence[str], vocab_size: int) -> str:
    """Say which pieces of a tokenizer are not used, as a model of ``vocab_size`` has no rows for them."""
    named = " ".join(pieces[:5]) + " ..." * (len(pieces) > 5)
    return f"tokenizer: left out {named}: added to it, but the model has no rows beyond {vocab_size}"


NOTHING_DECLARED = Declared({}, {}, {}, {}, ())


def read_declared(folder: Path) -> Declared:
    """Read the files beside a vocabulary in ``folder``; none of them has to be there.

    Raises:
        TokenizerError: one of them is damaged, or contradicts itself.
    """
    config_file, map_file, added_file = (folder / name for name in (CONFIG, SPECIAL_MAP, ADDED))
    config = read_object(config_file) if config_file.is_file() else {}
    named: dict[str, Any] = dict(config)
    namer = config_file
    decoder = config.get("added_tokens_decoder")
    if decoder is None and map_file.is_file():
        named.update(read_object(map_file))
        namer = map_file
    parts = {part: _content(namer, part, named[part]) for part in PARTS if named.get(part) is not None}
    special = {parts[part]: _special_token(namer, named[part]) for part in parts}
    for value in _further(named):
        special.setdefault(_content(namer, "additional_special_tokens", value), _special_token(namer, value))
    if decoder is not None:
        added = _numbered(config_file, decoder)
    elif added_file.is_file():
        added = {
            index: special.get(piece) or AddedToken(piece, normalized=True, special=False)
            for piece, index in _pairs(added_file)
        }
    else:
        added = {}
    files = tuple(file for file in (config_file, map_file, added_file) if file.is_file())
    return Declared(config, parts, special, added, files)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises:
        TokenizerError: it is something else.
    """
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path}: not a JSON object: {error}") from error
    if not isinstance(values, dict):
        raise TokenizerError(f"{path}: not a JSON object: found {str(values)[:40]!r}")
    return values


def added_token(path: Path, value: Mapping[str, Any]) -> AddedToken:
    """Return the piece of an object with ``content`` and flags.

    Raises:
        TokenizerError: it is damaged.
    """
    flags = {name: value[name] for name in _FLAGS if value.get(name) is not None}
    content = value.get("content")
    if not isinstance(content, str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise TokenizerError(f"{path}: {str(value)[:60]!a}: expected an added piece with a content: damaged")
    return AddedToken(whole_piece(path, content), **flags)


def whole_piece(path: Path, piece: str) -> str:
    """Return ``piece``, which no text has when half a surrogate pair is in it, as JSON allows."""
    try:
        piece.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(f"{path}: the piece {piece[:40]!a} has half a surrogate pair: damaged") from error
    return piece


def pieces_to_add(
    declared: Declared, vocabulary: Mapping[str, int], special: Iterable[str] = ()
) -> tuple[list[AddedToken], dict[str, int]]:
    """Return what the library is to look for in texts, in the order of the ids, and the ids beyond the vocabulary.

    Args:
        declared: what the files say.
        vocabulary: the pieces of the vocabulary itself.
        special: pieces of the vocabulary that are special without being declared.

    Raises:
        TokenizerError: the ids do not follow those of the vocabulary.
    """
    size = 1 + max(vocabulary.values(), default=-1)
    beyond: dict[str, int] = {}
    parts = set(declared.parts.values())
    tokens = {token.content: _special(token, parts) for _, token in sorted(declared.added.items())}
    for index, token in sorted(declared.added.items()):
        if vocabulary.get(token.content, size + len(beyond)) != index:
            where = declared.files[-1] if declared.files else "added pieces"
            raise TokenizerError(
                f"{where}: the added piece {token.content[:40]!r} has the id {index}, expected "
                f"{vocabulary.get(token.content, size + len(beyond))}: it belongs to another vocabulary"
            )
        if token.content not in vocabulary:
            beyond[token.content] = index
    for piece, token in {**declared.special, **{p: AddedToken(p, special=True) for p in special}}.items():
        if piece in vocabulary or piece in beyond:
            tokens.setdefault(piece, token)
    return list(tokens.values()), beyond


def _special(token: AddedToken, parts: set[str]) -> AddedToken:
    """``token``, which is special when it has a part, as transformers has it."""
    if token.special or token.content not in parts:
        return token
    return AddedToken(token.content, **{**{name: getattr(token, name) for name in _FLAGS}, "special": True})


def _content(path: Path, key: str, value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise TokenizerError(f"{path}: {key}: expected a piece, found {str(value)[:40]!a}")
    return whole_piece(path, content)


def _special_token(path: Path, value: Any) -> AddedToken:
    return added_token(path, {**(value if isinstance(value, dict) else {"content": value}), "special": True})


def _further(named: Mapping[str, Any]) -> list[Any]:
    """Return the special pieces beyond the parts: a list, or an object of names and pieces."""
    found = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
    return list(found.values()) if isinstance(found, dict) else list(found) if isinstance(found, list) else []


def _numbered(path: Path, decoder: Any) -> dict[int, AddedToken]:
    try:
        pairs = [(int(index), value) for index, value in decoder.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise TokenizerError(f"{path}: added_tokens_decoder: expected an object of ids and pieces") from error
    return {index: added_token(path, value if isinstance(value, dict) else {}) for index, value in sorted(pairs)}


def _pairs(path: Path) -> list[tuple[str, int]]:
    pairs = list(read_object(path).items())
    for piece, index in pairs:
        if type(index) is not int or index < 0:
            raise TokenizerError(f"{path}: {piece!a:.40} has the id {str(index)[:40]}, expected a number")
        whole_piece(path, piece)
    return sorted(pairs, key=lambda pair: pair[1])
