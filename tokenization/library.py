"""Any ``tokenizer.json`` of the ``tokenizers`` library: the library does the work, and its ids are the ids here.

WordLevel, Unigram, BPE with any splitting, byte fallback, Metaspace: whatever the installed library loads. Two things
are not the library's: special pieces typed in a text stay text (``encode``), and what a post-processor adds is left
out, but for a token in front of a text, which a prompt gets as well.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from tokenization.added_pieces import Declared, left_out_note, pieces_to_add, read_declared
from tokenization.base import (
    StreamDecoder,
    TokenizerError,
    checked_ids,
    checked_text,
    copy_as,
    prompt_or_end,
    read_text,
    with_end,
    with_start,
)
from tokenization.growth import check_growth
from tokenization.library_errors import LibraryPanicError, library_errors, silent_panics
from tokenization.special_pieces import SpecialReader
from tokenization.streaming import GrowingText
from tokenization.usual_names import find_part

FILE = "tokenizer.json"
_MOST_PIECES = 1 << 24
"""An id that no vocabulary has: the ids below the highest one are listed."""
_CALM = {"ByteLevel", "Metaspace", "ByteFallback", "Fuse", "WordPiece", "BPEDecoder", "Replace", "Sequence"}
"""Decoders that take any tokens; others panic at those that are too short for them."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_PROBES = ("a", "的", "1", "ab cd")
"""Texts to find out with what a post-processor puts around one."""


def read_library_tokenizer(path: Path, vocab_size: int | None = None) -> LibraryTokenizer:
    """Return the tokenizer of a ``tokenizer.json``, which may have another name.

    Added pieces beyond ``vocab_size``, the number of the model's rows, are left out.

    Raises:
        TokenizerError: the library cannot load the file, or a file next to it is damaged.
    """
    text, left_out = read_text(path), list[str]()
    check_growth(path, _values(path, text))
    with library_errors(f"{path}: not a file of the tokenizers library"), silent_panics():
        backend = Backend.from_str(text)
        if vocab_size is not None and max(backend.get_vocab().values(), default=0) >= vocab_size:
            values = json.loads(text)
            left_out = [token["content"] for token in values["added_tokens"] if token["id"] >= vocab_size]
            values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < vocab_size]
            backend = Backend.from_str(json.dumps(values))
        declared = read_declared(path.parent)
        if vocab_size is not None:
            beside = [token.content for index, token in declared.added.items() if index >= vocab_size]
            left_out = list(dict.fromkeys([*left_out, *beside]))
        notes = (left_out_note(left_out, vocab_size),) if left_out and vocab_size is not None else ()
        declared = dataclasses.replace(declared.within(vocab_size), notes=notes)
        tokenizer = LibraryTokenizer(backend, declared, {path: FILE})
        _check_use(tokenizer)
    return tokenizer


def _values(path: Path, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not a file of the tokenizers library: {error}") from error
    if not isinstance(values, dict):
        raise TokenizerError(f"{path}: not a file of the tokenizers library: expected an object")
    return values


def _check_use(tokenizer: LibraryTokenizer) -> None:
    """Check that the library does not panic; that a text cannot be encoded is no damage."""
    for probe in _PROBES:
        try:
            tokenizer.decode(tokenizer.encode(probe))
            tokenizer.encode_prompt(probe)
        except LibraryPanicError:
            raise
        except TokenizerError:
            continue


class LibraryTokenizer:
    """Text to the ids that the ``tokenizers`` library gives, and back.

    >>> tokenizer = load_tokenizer("folder/with/tokenizer.json")
    >>> tokenizer.encode("今天天气不错")         # Tokenizer.from_file(...).encode(...).ids
    """

    def __init__(self, backend: Backend, declared: Declared, files: Mapping[Path, str]) -> None:
        """Take a tokenizer of the library.

        Args:
            backend: it. It is changed.
            declared: what the files next to it say.
            files: the tokenizer's own files, and the names under which ``save`` copies them.
        """
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):  # merges left out by chance, which is for training
            backend.model.dropout = None
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        file = next(iter(files), "tokenizer")
        if not vocabulary:
            raise TokenizerError(f"{file}: a vocabulary without pieces")
        if max(vocabulary.values()) > _MOST_PIECES:
            raise TokenizerError(f"{file}: an id of {max(vocabulary.values())}: damaged, or no vocabulary")
        added, _ = pieces_to_add(declared, vocabulary)
        model = json.loads(backend.to_str())
        self._front, self._behind = _surroundings(backend, model)
        self._reader = SpecialReader(backend, added)
        self._backend = backend
        self._files = {**files, **{file: file.name for file in declared.files}}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.pieces: Mapping[str, int] = vocabulary
        self._set_parts(vocabulary, declared, model["model"])
        self.options: dict[str, Any] = {}
        self.vocab_size = max(vocabulary.values()) + 1
        self.blank_ids = frozenset(range(self.vocab_size)) - {*vocabulary.values()}
        self.special_pieces: Mapping[str, int] = self._reader.special
        self.reads_special_pieces = True
        self._bytes = {index for piece, index in vocabulary.items() if _BYTE.fullmatch(piece)}
        self._may_panic = not _types(model.get("decoder")) <= _CALM
        self._joins_words = (model.get("decoder") or {}).get("type") in (None, "WordPiece")
        pad = () if self._pad is None else (self._pad,)
        starts = {*self.start_token_ids} & {*self.special_pieces.values()}
        self._invisible = starts.union(pad) - {self.eos_token_id, self.unknown_token_id}
        self.line_token_id: int | None = self._line_token()
        self.notes: tuple[str, ...] = declared.notes

    def _line_token(self) -> int | None:
        """Return the token that a line feed becomes, if one does, and it becomes a line feed again."""
        try:
            line = self._reader.encode("\n")
        except TokenizerError:
            return None
        is_line = line and self._backend.decode(line[-1:], skip_special_tokens=False) == "\n"
        return line[-1] if is_line else None

    def _set_parts(self, vocabulary: Mapping[str, int], declared: Declared, model: Mapping[str, Any]) -> None:
        """Find the pieces that have a part: what the files say, else what the post-processor adds, else usual names."""
        end = find_part("eos_token", declared.parts, vocabulary)
        if declared.parts.get("eos_token") not in vocabulary and len(self._behind) == 1:
            self.eos_token_id: int | None = self._behind[0]
        else:
            self.eos_token_id = None if end is None else vocabulary[end]
        pad = find_part("pad_token", declared.parts, vocabulary)
        self._pad = None if pad is None else vocabulary[pad]
        self.pad_token_id: int = self._pad if self._pad is not None else self.eos_token_id or 0
        begin = declared.parts.get("bos_token")
        if declared.config.get("add_bos_token") is True and begin is not None and begin in vocabulary:
            self.start_token_ids: tuple[int, ...] = (vocabulary[begin],)
        else:
            self.start_token_ids = () if declared.config.get("add_bos_token") is False else tuple(self._front)
        unknown = model.get("unk_token")
        index = model.get("unk_id") if model.get("type") == "Unigram" else vocabulary.get(str(unknown))
        self.unknown_token_id: int | None = index if unknown is not None or model.get("type") == "Unigram" else None

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing added in front; ``append_eod`` puts the end of a text behind them."""
        return with_end(self._reader.encode(checked_text(text)), self.eos_token_id, append=append_eod)

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        """Return the ids of ``text``, after the token that the post-processor puts in front of texts, if it does."""
        special = self.reads_special_pieces if special_pieces is None else special_pieces
        ids = with_start(self, self._reader.encode(checked_text(text), special=special), special=special)
        return prompt_or_end(ids, self.eos_token_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids`` as the library's decoder makes it; padding and a token in front become nothing.

        Where the library does not know which pieces make a word, it puts a space between any two. Chinese has none.
        """
        shown = [i for i in checked_ids(ids, self.vocab_size) if i not in self._invisible]
        if not shown:
            return ""
        with library_errors("ids cannot be decoded"), silent_panics() if self._may_panic else nullcontext():
            text: str = self._backend.decode(shown, skip_special_tokens=False)
        return _without_spaces(text) if self._joins_words else text

    def unknown_parts(self, text: str) -> list[str]:
        """Return the parts of ``text`` that become the unknown id, each once, in their order."""
        places = self._reader.places(checked_text(text))
        return list(dict.fromkeys(part for token, part in places if token == self.unknown_token_id))

    def stream_decoder(self) -> StreamDecoder:
        """Decode all again for each token: what a token becomes may depend on those before it.

        With byte fallback one byte too many makes replacement characters of all bytes before it.
        """
        return GrowingText(self.decode, held="\ufffd " if self._joins_words else "\ufffd", waits=self._bytes)

    def save(self, folder: str | Path) -> list[Path]:
        """Copy the tokenizer's own files into ``folder``, which can be loaded again."""
        return copy_as(self._files, folder)


def _types(decoder: Any) -> set[str]:
    """Return the types of a decoder and of those in it."""
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*map(_types, decoder.get("decoders") or ()))


def _surroundings(backend: Backend, values: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids that the post-processor puts in front of a text, and those behind it."""
    if values.get("post_processor") is None:
        return [], []
    for probe in _PROBES:
        try:
            with library_errors(probe):
                plain = backend.encode(probe, add_special_tokens=False).ids
                full = backend.encode(probe).ids
        except TokenizerError:
            continue
        for start in range(len(full) - len(plain) + 1):
            if plain and full[start : start + len(plain)] == plain:
                return full[:start], full[start + len(plain) :]
    return [], []


def _without_spaces(text: str) -> str:
    """Take out single spaces next to a character of Chinese writing or punctuation of it."""
    kept = [
        character
        for character, before, after in zip(text, "\0" + text, text[1:] + "\0", strict=False)
        if character != " " or not (_is_wide(before) or _is_wide(after))
    ]
    return "".join(kept)


def _is_wide(character: str) -> bool:
    return character != " " and unicodedata.east_asian_width(character) in ("W", "F")
