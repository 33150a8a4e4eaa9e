"""Tokenizers of the upstream models, behind one small interface."""

from __future__ import annotations

from tokenization.base import StreamDecoder, Tokenizer, TokenizerError, decode_stream
from tokenization.bert import BertTokenizer
from tokenization.byte_bpe import ByteBPETokenizer
from tokenization.cpm import CPMTokenizer
from tokenization.cpm_transformers import CpmTransformersTokenizer
from tokenization.library import LibraryTokenizer
from tokenization.loading import KINDS, find_tokenizer_sources, has_tokenizer_files, load_tokenizer
from tokenization.punctuation import ChinesePunctuation, chinese_punctuation
from tokenization.sentencepiece_file import SentencePieceTokenizer

__all__ = [
    "KINDS",
    "BertTokenizer",
    "ByteBPETokenizer",
    "CPMTokenizer",
    "ChinesePunctuation",
    "CpmTransformersTokenizer",
    "LibraryTokenizer",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "chinese_punctuation",
    "decode_stream",
    "find_tokenizer_sources",
    "has_tokenizer_files",
    "load_tokenizer",
]
