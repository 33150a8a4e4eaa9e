"""What every tokenizer offers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class TokenizerError(ValueError):
    """A vocabulary that cannot be used, or input that it cannot encode or decode; the message is one line."""


class Tokenizer(Protocol):
    """Text to token ids and back, and the files that make it."""

    vocab_size: int
    eos_token_id: int
    pad_token_id: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def save(self, folder: str | Path) -> list[Path]: ...
