"""Tokenizers of the upstream models, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenization.base import StreamDecoder, Tokenizer, TokenizerError, decode_stream
from tokenization.bert import BertTokenizer
from tokenization.byte_bpe import ByteBPETokenizer
from tokenization.cpm import CPMTokenizer
from tokenization.punctuation import ChinesePunctuation, chinese_punctuation
from tokenization.tokenizer_json import FILE, kind_of

__all__ = [
    "BertTokenizer",
    "ByteBPETokenizer",
    "CPMTokenizer",
    "ChinesePunctuation",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "chinese_punctuation",
    "decode_stream",
    "load_tokenizer",
]


def _from_json(path: Path) -> Tokenizer:
    file = path / FILE if path.is_dir() else path
    return BertTokenizer(file) if kind_of(file) == "WordPiece" else ByteBPETokenizer(file)


_KINDS: tuple[tuple[tuple[str, ...], str, Callable[[Path], Tokenizer]], ...] = (
    # The first that fits: CPM's folder has a merges.txt as well, and merges.txt is a *.txt as well.
    (("*.model",), "CPM", CPMTokenizer),
    (("merges.txt", "vocab.bpe"), "GPT-2", ByteBPETokenizer),
    (("vocab.txt",), "BERT", BertTokenizer),
    (("tokenizer.json",), "transformers", _from_json),
    (("*.txt",), "BERT", BertTokenizer),
)
"""Files, any of which identifies a tokenizer; its name; what loads it."""


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer whose files are in ``folder``, or which is the file ``folder`` itself.

    Raises:
        TokenizerError: no tokenizer is there, or its files cannot be used.
    """
    path = Path(folder)
    try:
        files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    except OSError as error:
        raise TokenizerError(f"{path}: no tokenizer: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise TokenizerError(f"{str(path)!a}: no tokenizer: not the name of a file or folder") from error
    for patterns, _, load in _KINDS:
        if any(file.match(pattern) for pattern in patterns for file in files):
            return load(path)
    wanted = ", ".join(f"{' or '.join(patterns)} ({name})" for patterns, name, _ in _KINDS)
    found = ", ".join(file.name for file in files[:5]) + ", ..." * (len(files) > 5) or "none"
    raise TokenizerError(f"{path}: no tokenizer: expected {wanted}, found {found}")
