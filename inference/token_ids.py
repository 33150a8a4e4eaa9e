"""What stands in for the tokenizer of a SavedModel that has none: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from tokenization import StreamDecoder, TokenizerError
from tokenization.base import checked_ids


class TokenIds:
    """A ``Tokenizer`` that reads no text; the text of tokens is their numbers, with spaces between."""

    blank_ids: frozenset[int] = frozenset()
    start_token_ids: tuple[int, ...] = ()
    unknown_token_id: int | None = None
    line_token_id: int | None = None
    special_pieces: Mapping[str, int] = MappingProxyType({})
    reads_special_pieces = False
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, vocab_size: int, special: Mapping[str, Any]) -> None:
        """Take the place of the tokenizer that ``folder`` lacks.

        Args:
            folder: the SavedModel, for messages.
            vocab_size: the rows of the model.
            special: what may have ``eos_token_id`` and ``pad_token_id``.
        """
        self.vocab_size = vocab_size
        self.eos_token_id = _first_id(special.get("eos_token_id"))
        self.pad_token_id = _first_id(special.get("pad_token_id")) or 0
        self._folder = folder

    def refuse_text(self) -> NoReturn:
        """Raise the ``TokenizerError`` that a text gets."""
        raise TokenizerError(
            f"{self._folder}: has no tokenizer: convert the checkpoint again with --tokenizer, or give lists of token "
            "ids (generate --prompts ids.json, or generate([[1, 2, 3]]) in Python)"
        )

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        self.refuse_text()

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        self.refuse_text()

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, checked_ids(ids, self.vocab_size)))

    def unknown_parts(self, text: str) -> list[str]:
        return []

    def stream_decoder(self) -> StreamDecoder:
        return _Numbers(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Write nothing: there are no files."""
        return []


class _Numbers:
    """A ``StreamDecoder``: each number but the first has a space in front."""

    def __init__(self, tokenizer: TokenIds) -> None:
        self._tokenizer, self._has_any = tokenizer, False

    def push(self, token_id: int) -> str:
        number = self._tokenizer.decode([token_id])
        space, self._has_any = " " if self._has_any else "", True
        return f"{space}{number}"

    def finish(self) -> str:
        return ""


def _first_id(value: Any) -> int | None:
    """Return a token id of a configuration, the first of a list; None where there is none."""
    first = next(iter(value), None) if isinstance(value, list) else value
    return first if type(first) is int and first >= 0 else None
