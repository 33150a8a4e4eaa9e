"""Small tokenizers of transformers, with the files that they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tokenization.test_byte_bpe import END, symbols

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "1 2"]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "hello",
    "Hello",
    "wor",
    "##ld",
    "今",
    "天",
    "é",
    "e",
    "1",
    "##2",
]


def bpe(folder: Path, **options: Any) -> Any:
    """transformers' GPT-2 tokenizer of a small vocabulary."""
    folder.mkdir()
    pieces = [*sorted(symbols()), *(merge.replace(" ", "") for merge in MERGES), END]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), "utf-8")
    from transformers import GPT2TokenizerFast

    return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), **options)


def bert(folder: Path, **options: Any) -> Any:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*WORDS, ""]), "utf-8")
    from transformers import BertTokenizerFast

    return BertTokenizerFast(str(folder / "vocab.txt"), **options)
