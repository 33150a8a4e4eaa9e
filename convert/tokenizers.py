"""Which tokenizer goes with a checkpoint, and its files under the names that another program looks for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from convert.checkpoint import Checkpoint
from tokenization import BertTokenizer, ByteBPETokenizer, Tokenizer, TokenizerError, load_tokenizer

TO_HUGGINGFACE = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
TO_OPENAI = {new: old for old, new in TO_HUGGINGFACE.items()}
"""The contents are the same."""
CONFIG = "tokenizer_config.json"
_CLASSES = ((ByteBPETokenizer, "GPT2Tokenizer"), (BertTokenizer, "BertTokenizer"))


def add_tokenizer_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="folder with the tokenizer's own files (CPM: chinese_vocab.model; BERT: vocab.txt; GPT-2: vocab.json and "
        f"merges.txt), {what}; default: those beside the checkpoint, where its format has them",
    )


def tokenizer_for(given: Path | None, checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer in the folder ``given``, else the checkpoint's own, if it has one.

    Raises:
        TokenizerError: it cannot be used, or has more pieces than the model.
    """
    path = given or checkpoint.tokenizer
    if path is None:
        return None
    tokenizer = load_tokenizer(path)
    vocab_size = checkpoint.config.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"{path}: a vocabulary of {tokenizer.vocab_size} pieces, but the model has {vocab_size}: not its tokenizer"
        )
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files of a tokenizer in ``folder``; whether it is sound, ``load_tokenizer`` says."""
    return any(any(folder.glob(pattern)) for pattern in ("*.model", "merges.txt", "vocab.bpe", "vocab.txt"))


def save_for_huggingface(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """The tokenizer's files as ``AutoTokenizer`` finds them; CPM's it does not know, they keep their names."""
    files = save_as(tokenizer, folder, TO_HUGGINGFACE)
    kind = next((name for cls, name in _CLASSES if isinstance(tokenizer, cls)), None)
    if isinstance(tokenizer, BertTokenizer):
        files = [file.rename(folder / "vocab.txt") if file.suffix == ".txt" else file for file in files]
    if kind is not None and not (folder / CONFIG).exists():
        (folder / CONFIG).write_text(json.dumps({"tokenizer_class": kind}) + "\n", "utf-8")
        files.append(folder / CONFIG)
    return files


def save_for_openai(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """The files of a byte-level BPE as OpenAI calls them; of others it knows none, they keep their names."""
    return save_as(tokenizer, folder, TO_OPENAI if isinstance(tokenizer, ByteBPETokenizer) else {})


def save_as(tokenizer: Tokenizer, folder: Path, names: Mapping[str, str]) -> list[Path]:
    """Copies the tokenizer's files, those that are in ``names`` under their other name."""
    return [file.rename(folder / names.get(file.name, file.name)) for file in tokenizer.save(folder)]
