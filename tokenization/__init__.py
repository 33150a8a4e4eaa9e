"""Tokenizers of the upstream models, behind one small interface."""

from tokenization.base import Tokenizer, TokenizerError
from tokenization.cpm import CPMTokenizer

__all__ = ["CPMTokenizer", "Tokenizer", "TokenizerError"]
