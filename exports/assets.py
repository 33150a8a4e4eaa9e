"""What a SavedModel carries beside its graph and weights: sizes, generation defaults, the tokenizer's own files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_model.config import GPT2Config
from tokenization import Tokenizer

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


GENERATION_DEFAULTS = {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "max_new_tokens": 100}
"""How a text is generated when nobody says how: temperature and top_p of CPM-LM-TF2's Python code."""


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids that generation needs.

    Attributes:
        eos_token_id: the end of a document; None where nobody knows one, and a text ends at its length only.
        pad_token_id: what stands behind it.
        bos_token_id: what stands in front, for programs that ask; None is the end, as in GPT-2.
        defaults: how texts are generated where the source says so, by the names of ``generation_config.json``.
    """

    eos_token_id: int | None
    pad_token_id: int
    bos_token_id: int | None = None
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, int | None]:
        """As ``config.json`` has them. Without ``bos_token_id`` transformers takes 50256, whatever the vocabulary."""
        bos = self.eos_token_id if self.bos_token_id is None else self.bos_token_id
        return {"bos_token_id": bos, "eos_token_id": self.eos_token_id, "pad_token_id": self.pad_token_id}


CPM_TOKENS = SpecialTokens(eos_token_id=7, pad_token_id=5)
"""``<eod>`` and ``<pad>`` of CPM's vocabulary, for a checkpoint of CPM's that comes without its tokenizer."""
NO_TOKENS = SpecialTokens(eos_token_id=None, pad_token_id=0)


def write_assets(
    folder: Path, config: GPT2Config, dtype: str, tokens: SpecialTokens, tokenizer: Tokenizer | None
) -> None:
    """Writes ``assets/`` of a SavedModel. The names are those of Hugging Face's files."""
    folder.mkdir(exist_ok=True)
    special = tokens.to_dict()
    _write_json(folder / CONFIG, {**config.to_dict(), "dtype": dtype, **special})
    _write_json(folder / GENERATION_CONFIG, {**special, **(tokens.defaults or GENERATION_DEFAULTS)})
    if tokenizer is not None:
        tokenizer.save(folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
