"""Files of text for ``verify``, as token ids of the SavedModel's own tokenizer."""

from __future__ import annotations

import codecs
import functools
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from support.errors import ConvertError
from tokenization import Tokenizer, TokenizerError, load_tokenizer

MAX_TOKENS = 8192
"""Of a file, all together: more take hours with a large model and tell little more."""

_JSON_SUFFIXES = (".jsonl", ".ndjson")
_CHARACTERS = 32
"""Of a text for each token that is wanted: many times what one has. A library of novels is not encoded for nothing."""


def read_prompts(path: Path, assets: Path, n_positions: int, max_tokens: int) -> list[list[int]]:
    """The token ids of each line that has any, cut to ``n_positions``.

    Args:
        path: UTF-8, one prompt a line.
        assets: where the tokenizer is.
        n_positions: what the model takes.
        max_tokens: of all prompts together; one of the model's full length is always taken.

    Raises:
        ConvertError: the file cannot be used, has no prompt or too many, or there is no tokenizer.
    """
    lines = _decoded(path, None)[0].split("\n")
    if not any(line.strip() for line in lines):
        raise ConvertError(f"{path}: expected one prompt a line, found none")
    tokenizer = _tokenizer(assets)
    prompts = []
    for number, line in enumerate(lines, 1):
        note = functools.partial(print, f"note: {path}: line {number}:", file=sys.stderr)
        ids = tokenizer.encode(line) if line.strip() else []
        if line.strip() and not ids:
            note("the tokenizer makes nothing of it, left out")
        if len(ids) > n_positions:
            note(f"{len(ids)} tokens, cut to the {n_positions} that the model takes")
        if ids:
            prompts.append(ids[:n_positions])
    if not prompts:
        raise ConvertError(f"{path}: expected one prompt a line, found none that the tokenizer knows")
    if (tokens := sum(map(len, prompts))) > (limit := max(max_tokens, n_positions)):
        raise ConvertError(
            f"{path}: {tokens} tokens in {len(prompts)} prompts: expected {limit} at most: give fewer, or --max-tokens"
        )
    return prompts


def read_text(path: Path, assets: Path, n_positions: int, max_tokens: int) -> list[list[int]]:
    """The token ids of a text, or of several documents, in windows.

    A document begins with what the model was trained to see in front of a text. Its windows overlap by one token, so
    that each token but the document's first is predicted once.

    Args:
        path: UTF-8; one document, or JSON lines (``.jsonl``), each a document and complete, so that the end of text
            stands behind it.
        assets: where the tokenizer is.
        n_positions: what the model takes; the length of a window.
        max_tokens: how many of the file are used; what is behind them is left out, with a note on stderr.

    Raises:
        ConvertError: the file cannot be used, has nothing to be predicted, or there is no tokenizer.
    """
    if path.suffix in _JSON_SUFFIXES:
        documents, cut = _json_texts(path), False
    else:
        text, cut = _decoded(path, _CHARACTERS * max_tokens)
        documents = iter([("", text)] if text.strip() else [])
    if (first := next(documents, None)) is None:
        raise ConvertError(f"{path}: expected a text, found none")
    tokenizer = _tokenizer(assets)
    windows: list[list[int]] = []
    left = max_tokens
    for where, text in itertools.chain([first], documents):
        try:
            encoded = tokenizer.encode(text, append_eod=bool(where)) if left else []
        except TokenizerError as error:
            raise ConvertError(f"{path}:{where} {error}") from error
        ids = [*tokenizer.start_token_ids, *encoded]
        cut = cut or not left or len(ids) > left
        ids = ids[:left]
        left -= len(ids)
        windows += _windows(ids, n_positions)
        if cut:
            print(
                f"note: {path}: its first {max_tokens - left} tokens are used; --max-tokens takes more", file=sys.stderr
            )
            break
    if not any(len(window) > 1 for window in windows):
        raise ConvertError(
            f"{path}: expected a text of 2 tokens or more, of which the first predict the next: found "
            f"{max(map(len, windows), default=0)}"
        )
    return windows


def _windows(ids: list[int], size: int) -> list[list[int]]:
    """Of ``size`` tokens at most; the last of one is the first of the next."""
    return [ids[at : at + size] for at in range(0, max(len(ids) - 1, min(len(ids), 1)), max(1, size - 1))]


def _json_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Each line's place, for messages, and its text; no more of the file is read than is asked for.

    Raises:
        ConvertError: a line has no text, or is not JSON.
    """
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConvertError(f"{path}: line {number}: not JSON: {error}") from error
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str) or not text.strip():
            raise ConvertError(f'{path}: line {number}: expected a string with a text, or an object with one as "text"')
        yield f" line {number}:", text


_MOST = 1 << 30
"""Bytes of a text that are read at most, whatever is asked for; of a file in lines, those of a line."""


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, as they are asked for.

    Raises:
        ConvertError: it cannot be read, or is not a text.
    """
    at = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(_MOST):
                yield _checked(path, line, at)
                at += len(line)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror}") from error


def _checked(path: Path, content: bytes, at: int = 0, *, final: bool = True) -> str:
    """The text of bytes that a file has from ``at`` on; ``final`` is False where they may end within a character.

    Raises:
        ConvertError: it is in another encoding, or not a text.
    """
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=final)
    except UnicodeDecodeError as error:
        found = f"another encoding at byte {at + error.start}"
        raise ConvertError(f"{path}: expected UTF-8 text, found {found}") from error
    if (zero := content.find(0)) >= 0:
        raise ConvertError(f"{path}: expected UTF-8 text, found a NUL at byte {at + zero}: not a text file")
    return text if at else text.removeprefix("\ufeff")


def _decoded(path: Path, characters: int | None) -> tuple[str, bool]:
    """What a UTF-8 file begins with, and whether there is more.

    Args:
        characters: at most; None for the whole file.

    Raises:
        ConvertError: it cannot be read, or is in another encoding.
    """
    try:
        with path.open("rb") as file:
            size = -1 if characters is None else min(4 * characters, _MOST)
            content, more = file.read(size), characters is not None and bool(file.read(1))
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror}") from error
    text = _checked(path, content, final=not more)
    cut = more or (characters is not None and len(text) > characters)
    return text[:characters].replace("\r\n", "\n"), cut


def _tokenizer(assets: Path) -> Tokenizer:
    try:
        return load_tokenizer(assets)
    except TokenizerError as error:
        raise ConvertError(f"{error}: convert with --tokenizer, or verify without --text and --prompts") from error
