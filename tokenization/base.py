"""What every tokenizer offers, and the checks that they share."""

from __future__ import annotations

import codecs
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

_LARGEST_TEXT = 200 << 20
"""Bytes of the largest text that is read: a tokenizer.json of 250,000 pieces has 20 MB."""


class TokenizerError(ValueError):
    """A vocabulary that cannot be used, or input that it cannot encode or decode; the message is one line.

    Attributes:
        exit_code: the exit code of a command that ends with this error.
    """

    exit_code = 2


class StreamDecoder(Protocol):
    """The text of one row of tokens, as they come: never half a character, and nothing that would change later.

    ``"".join(map(push, ids)) + finish()`` is ``decode(ids)``.
    """

    def push(self, token_id: int) -> str:
        """Return the text that ``token_id`` completes; often nothing, when it ends within a character."""
        ...

    def finish(self) -> str:
        """Return what was held back; no token may be pushed afterwards."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back, and the files that make it.

    Text never becomes a special id: ``<eod>``, ``[SEP]`` or ``<|endoftext|>`` typed in a text stays ordinary pieces.
    """

    vocab_size: int
    """The highest id and one."""
    blank_ids: frozenset[int]
    """The ids below ``vocab_size`` that have no piece: no text becomes them, and they become no text."""
    eos_token_id: int | None
    """The end of a text; None where the vocabulary has none: a text ends at its length only."""
    pad_token_id: int
    """What fills a row behind its end: the padding piece, else the end of a text, else 0."""
    start_token_ids: tuple[int, ...]
    """What the model was trained to see in front of every text; ``encode_prompt`` puts it there."""
    unknown_token_id: int | None
    """The id of whatever the vocabulary does not have; None where it has every byte."""
    line_token_id: int | None
    """The token that ends a line of a text; None where a text has no lines."""
    special_pieces: Mapping[str, int]
    """The pieces that no text becomes and that a prompt may name, ``[SEP]`` or ``<eod>``, and their ids."""
    reads_special_pieces: bool
    """Whether prompts do so when nobody says otherwise; of CPM's pieces ``<eod>`` is left out then."""
    notes: tuple[str, ...]
    """What a user should know of how the tokenizer was chosen and read, a line each."""

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing added in front; ``append_eod`` puts the end of a document behind them.

        Raises:
            TokenizerError: ``append_eod`` of a vocabulary without an end.
        """
        ...

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        """Return what generation starts from, never empty; without a start token an empty text is an error.

        Args:
            text: the prompt.
            special_pieces: whether the ``special_pieces`` in it become their ids; None: ``reads_special_pieces``. A
                prompt that begins with one of them gets no ``start_token_ids`` in front.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; padding is nothing, the end of a document stays visible."""
        ...

    def unknown_parts(self, text: str) -> list[str]:
        """Return the characters or words of ``text`` that become the unknown id, each once, in their order."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for the tokens of one row."""
        ...

    def save(self, folder: str | Path) -> list[Path]:
        """Copy the tokenizer's own files into ``folder``, unchanged."""
        ...


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of ``ids`` in parts, each as soon as its tokens are there; no part is empty."""
    decoder = tokenizer.stream_decoder()
    for token_id in ids:
        if part := decoder.push(token_id):
            yield part
    if part := decoder.finish():
        yield part


def checked_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """``ids`` as Python's own integers; an error names the first that is outside the vocabulary."""
    numbers = [int(i) for i in ids]
    for i in numbers:
        if not 0 <= i < vocab_size:
            raise TokenizerError(f"token id {i} is outside the vocabulary (0 to {vocab_size - 1})")
    return numbers


def checked_text(text: str) -> str:
    """``text``, which no tokenizer can encode when it has half a surrogate pair in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(f"text cannot be encoded: half a surrogate pair at character {error.start}") from error
    return text


def read_text(path: Path) -> str:
    """Read a UTF-8 file without its byte order mark, its line ends as line feeds.

    Raises:
        TokenizerError: it cannot be read, is larger than any vocabulary, or is not UTF-8.
    """
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise TokenizerError(f"{path}: not a file of a tokenizer: more than {_LARGEST_TEXT >> 20} MB")
        with path.open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise TokenizerError(f"{path}: UTF-16 text, which Notepad calls Unicode: save it as UTF-8")
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from error


def copy_files(files: Iterable[Path], folder: str | Path) -> list[Path]:
    """Copy ``files`` under their own names, as ``copy_as`` does; return the copies."""
    return copy_as({file: file.name for file in files}, folder)


def copy_as(names: Mapping[Path, str], folder: str | Path) -> list[Path]:
    """Copy files into ``folder``, each under the name that goes with it; return the copies.

    A byte order mark is left out: other programs take it for a part of the first piece, or for damaged JSON.
    """
    copies = []
    for file, name in names.items():
        copies.append(Path(folder) / name)
        with file.open("rb") as source, copies[-1].open("wb") as copy:
            start = source.read(len(codecs.BOM_UTF8))
            copy.write(start.removeprefix(codecs.BOM_UTF8))
            shutil.copyfileobj(source, copy)
    return copies


def with_start(tokenizer: Tokenizer, ids: list[int], *, special: bool) -> list[int]:
    """Put ``start_token_ids`` in front of a prompt, unless ``special`` pieces were read and it begins with one.

    The unknown piece and padding begin nothing.
    """
    begin = {*tokenizer.special_pieces.values()} - {tokenizer.unknown_token_id, tokenizer.pad_token_id}
    return ids if special and ids and ids[0] in begin else [*tokenizer.start_token_ids, *ids]


def with_end(ids: list[int], eos_token_id: int | None, *, append: bool) -> list[int]:
    """Put the end of a text behind ``ids`` if it is asked for.

    Raises:
        TokenizerError: there is none.
    """
    if not append:
        return ids
    if eos_token_id is None:
        raise TokenizerError("the vocabulary has no end of a text: no piece of it is known to be one")
    return [*ids, eos_token_id]


def prompt_or_end(ids: list[int], eos_token_id: int | None) -> list[int]:
    """Return ``ids``, or the end of a text where there are none: it stood between the texts in training.

    Raises:
        TokenizerError: there is none, either.
    """
    if not ids and eos_token_id is None:
        raise TokenizerError("the prompt has no tokens, and the vocabulary has none to start from: expected some text")
    return ids or [int(eos_token_id or 0)]
