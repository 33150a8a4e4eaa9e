"""Ids that generation needs: the end of a text, and padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids that generation needs.

    Attributes:
        eos_token_id: the end of a document; None where nobody knows one, and a text ends at its length only.
        pad_token_id: what stands behind it.
        bos_token_id: what stands in front, for programs that ask; None is the end, as in GPT-2.
        blank_ids: those that have no piece, which are never drawn.
        defaults: how texts are generated where the source says so, by the names of ``generation_config.json``.
    """

    eos_token_id: int | None
    pad_token_id: int
    bos_token_id: int | None = None
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    blank_ids: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, int | None]:
        """As ``config.json`` has them. Without ``bos_token_id`` transformers takes 50256, whatever the vocabulary."""
        bos = self.eos_token_id if self.bos_token_id is None else self.bos_token_id
        return {"bos_token_id": bos, "eos_token_id": self.eos_token_id, "pad_token_id": self.pad_token_id}


CPM_TOKENS = SpecialTokens(eos_token_id=7, pad_token_id=5)
"""``<eod>`` and ``<pad>`` of CPM's vocabulary, for a checkpoint of CPM's that comes without its tokenizer."""
NO_TOKENS = SpecialTokens(eos_token_id=None, pad_token_id=0)
