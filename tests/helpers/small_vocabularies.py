"""Small vocabularies of each kind of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import ROOT


def write_tokenizer(kind: str, folder: Path) -> Path:
    """The files of a small vocabulary."""
    if kind == "cpm":
        return ROOT / "demo" / "song-ci" / "tokenizer"
    folder.mkdir()
    if kind == "bert":
        words = ["hello", "world", "good", "day", "##ing", *",.!", *"今天气不错一曲新词酒杯"]
        letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters]
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    else:
        free = iter(range(0x100, 0x200))
        printed = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
        symbols = [chr(b) if b in printed else chr(next(free)) for b in range(256)]
        merges = ["h e", "l l", "he ll", "hell o", "Ġ hello"]
        pieces = [*symbols, *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), "utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    return folder
