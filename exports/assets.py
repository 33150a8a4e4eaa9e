"""What a SavedModel carries beside its graph and weights: sizes, generation defaults, the tokenizer's own files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tf_model.config import GPT2Config
from tokenization import Tokenizer

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


GENERATION_DEFAULTS = {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "max_new_tokens": 100}
"""How a text is generated when nobody says how: temperature and top_p of CPM-LM-TF2's Python code."""


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids that generation needs: the end of a document, and what stands behind it."""

    eos_token_id: int
    pad_token_id: int


CPM_TOKENS = SpecialTokens(eos_token_id=7, pad_token_id=5)
"""``<eod>`` and ``<pad>`` of CPM's vocabulary, for a checkpoint that comes without its tokenizer."""


def special_tokens(tokenizer: Tokenizer | None) -> SpecialTokens:
    """Those of the tokenizer, CPM's without one."""
    return CPM_TOKENS if tokenizer is None else SpecialTokens(tokenizer.eos_token_id, tokenizer.pad_token_id)


def write_assets(
    folder: Path, config: GPT2Config, dtype: str, tokens: SpecialTokens, tokenizer: Tokenizer | None
) -> None:
    """Writes ``assets/`` of a SavedModel. The names are those of Hugging Face's files."""
    folder.mkdir(exist_ok=True)
    special = dataclasses.asdict(tokens)
    _write_json(folder / CONFIG, {**config.to_dict(), "dtype": dtype, **special})
    _write_json(folder / GENERATION_CONFIG, {**special, **GENERATION_DEFAULTS})
    if tokenizer is not None:
        tokenizer.save(folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
