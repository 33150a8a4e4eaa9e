"""What a SavedModel carries beside its graph and weights: sizes, generation defaults, the tokenizer's own files."""

from __future__ import annotations

from pathlib import Path

from exports.generation_config import PIECE_NAMES
from exports.saved_model_folder import CONFIG, GENERATION_CONFIG
from support.files import write_json
from tf_model.config import GPT2Config
from tokenization import Tokenizer
from tokenization.special_tokens import SpecialTokens

GENERATION_DEFAULTS = {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "max_new_tokens": 100}
"""How a text is generated when nobody says how: temperature and top_p of CPM-LM-TF2's Python code."""


def write_assets(
    folder: Path, config: GPT2Config, dtype: str, tokens: SpecialTokens, tokenizer: Tokenizer | None
) -> None:
    """Write ``assets/`` of a SavedModel. The names are those of Hugging Face's files."""
    folder.mkdir(exist_ok=True)
    special = tokens.to_dict()
    write_json(folder / CONFIG, {**config.to_dict(), "dtype": dtype, **special})
    pieces = {name: value for name, value in tokens.defaults.items() if name in PIECE_NAMES}
    options = {name: value for name, value in tokens.defaults.items() if name not in PIECE_NAMES}
    write_json(folder / GENERATION_CONFIG, {**special, **(options or GENERATION_DEFAULTS), **pieces})
    if tokenizer is not None:
        tokenizer.save(folder)
