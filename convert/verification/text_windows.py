"""Files of text for ``verify``, as windows of token ids of the model's own tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from support.documents import read_documents, read_text_file
from support.errors import ConvertError
from tokenization import Tokenizer, TokenizerError, load_tokenizer

MAX_TOKENS = 8192
"""How many tokens of a file are used by default: more take hours with a large model and hardly say more."""

_CHARACTERS_PER_TOKEN = 32
"""How much of a text is encoded for each token that is wanted: many times what one token has."""


@dataclasses.dataclass(frozen=True)
class TextWindows:
    """A file of text as token ids.

    Attributes:
        windows: the token ids of each window, or of each prompt; none is empty.
        places: what each window belongs to, for reports, such as ``line 3``.
        notes: what a user should know about the file, one line each: what was cut or left out.
    """

    windows: list[list[int]]
    places: list[str]
    notes: list[str]


def read_prompts(path: Path, assets: Path, n_positions: int, max_tokens: int = MAX_TOKENS) -> TextWindows:
    """Read a prompt from each line that has any text, cut to ``n_positions`` tokens.

    Args:
        path: UTF-8, one prompt a line.
        assets: where the tokenizer is.
        n_positions: how many tokens the model takes.
        max_tokens: of all prompts together; one prompt of the model's full length is always allowed.

    Raises:
        ConvertError: the file cannot be used, has no prompt or too many tokens, or there is no tokenizer.
    """
    lines = read_text_file(path, ConvertError)[0].split("\n")
    if not any(line.strip() for line in lines):
        raise ConvertError(f"{path}: expected one prompt a line, found none")
    tokenizer = _load_tokenizer(assets)
    prompts, places, notes = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        ids = tokenizer.encode(line)
        if not ids:
            notes.append(f"{path}: line {number}: left out, because the tokenizer makes no tokens of it")
            continue
        if len(ids) > n_positions:
            notes.append(f"{path}: line {number}: {len(ids)} tokens, cut to the {n_positions} that the model takes")
        prompts.append(ids[:n_positions])
        places.append(f"line {number}")
    if not prompts:
        raise ConvertError(f"{path}: expected one prompt a line, found none that the tokenizer knows")
    tokens, limit = sum(map(len, prompts)), max(max_tokens, n_positions)
    if tokens > limit:
        raise ConvertError(
            f"{path}: {tokens} tokens in {len(prompts)} prompts: expected {limit} at most: give fewer, or --max-tokens"
        )
    return TextWindows(prompts, places, notes)


def read_text(path: Path, assets: Path, n_positions: int, max_tokens: int = MAX_TOKENS) -> TextWindows:
    """Read a text, or several documents, in windows of ``n_positions`` tokens.

    A document begins with the tokens that the model was trained to see before a text. A document of JSON lines is
    complete, so the end of text follows it. The windows of a document overlap by one token, so that each token but the
    document's first is predicted once.

    Args:
        path: UTF-8 text, one document; or JSON lines (``.jsonl``), a document a line.
        assets: where the tokenizer is.
        n_positions: the length of a window: how many tokens the model takes.
        max_tokens: how many tokens of the file are used; the rest is left out, with a note.

    Raises:
        ConvertError: the file cannot be used, has nothing to predict, or there is no tokenizer.
    """
    tokenizer: Tokenizer | None = None
    windows: list[list[int]] = []
    places: list[str] = []
    notes: list[str] = []
    left = max_tokens
    for document in read_documents(path, ConvertError, _CHARACTERS_PER_TOKEN * max_tokens):
        tokenizer = tokenizer or _load_tokenizer(assets)  # after the first text, so that a bad file is named first
        ends = document.is_complete and tokenizer.eos_token_id is not None
        try:
            encoded = tokenizer.encode(document.text, append_eod=ends) if left else []
        except TokenizerError as error:
            raise ConvertError(f"{document.place(path)}: {error}") from error
        ids = [*tokenizer.start_token_ids, *encoded]
        is_cut = document.is_cut or not left or len(ids) > left
        new = cut_windows(ids[:left], n_positions)
        windows += new
        places += [document.name or "text"] * len(new)
        left -= min(left, len(ids))
        if is_cut:
            notes.append(f"{path}: only its first {max_tokens - left} tokens are used; --max-tokens takes more")
            break
    longest = max(map(len, windows), default=0)
    if longest < 2:
        raise ConvertError(
            f"{path}: expected a text of 2 tokens or more, of which the first predict the next: found {longest}"
        )
    return TextWindows(windows, places, notes)


def cut_windows(ids: Sequence[int], size: int) -> list[list[int]]:
    """Cut ``ids`` into windows of at most ``size`` tokens; the last token of a window is the first of the next."""
    if len(ids) < 2:
        return [list(ids)] if ids else []
    step = max(1, size - 1)
    return [list(ids[start : start + size]) for start in range(0, len(ids) - 1, step)]


def _load_tokenizer(assets: Path) -> Tokenizer:
    try:
        return load_tokenizer(assets)
    except TokenizerError as error:
        raise ConvertError(f"{error}: convert with --tokenizer, or verify without --text and --prompts") from error
