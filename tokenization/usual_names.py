"""Pieces that usually have a part in a vocabulary, where no file says which piece has it."""

from __future__ import annotations

from collections.abc import Container, Mapping

_USUAL: Mapping[str, tuple[str, ...]] = {
    "eos_token": (
        "<|endoftext|>", "</s>", "<eos>", "[EOS]", "<EOS>", "<eod>", "[EOD]", "<|eos|>", "<|end|>", "<eop>", "<end>",
        "[SEP]", "<sep>",
    ),
    "pad_token": ("<pad>", "[PAD]", "<PAD>", "<|pad|>", "<|padding|>", "[pad]"),
    "unk_token": ("<unk>", "[UNK]", "<UNK>", "<|unk|>", "[unk]"),
    "bos_token": ("<s>", "<bos>", "[BOS]", "<BOS>", "<|startoftext|>", "<|endoftext|>"),
    "cls_token": ("[CLS]", "<cls>", "<s>", "<bos>", "[BOS]", "<BOS>", "<|startoftext|>"),
    "sep_token": ("[SEP]", "<sep>", "</s>", "<eos>", "[EOS]", "<EOS>", "<eod>", "<|endoftext|>"),
    "mask_token": ("[MASK]", "<mask>", "<MASK>"),
}  # fmt: skip
"""A part -> the names of its piece; the first one that a vocabulary has is it."""


def usual_piece(part: str, vocabulary: Container[str]) -> str | None:
    """Return the piece of ``vocabulary`` that usually has this part, such as ``eos_token``; None if it has none."""
    return next((name for name in _USUAL.get(part, ()) if name in vocabulary), None)


def usual_pieces(vocabulary: Container[str]) -> list[str]:
    """Return the pieces of ``vocabulary`` that usually have a part, one for each part."""
    found = (usual_piece(part, vocabulary) for part in _USUAL)
    return list(dict.fromkeys(piece for piece in found if piece is not None))


def is_usual(piece: str) -> bool:
    """Whether it is a usual name of any part."""
    return any(piece in names for names in _USUAL.values())


def find_part(part: str, declared: Mapping[str, str], vocabulary: Container[str]) -> str | None:
    """Return the piece that is declared to have a part, else the usual one; only a piece that is in ``vocabulary``."""
    piece = declared.get(part)
    return piece if piece is not None and piece in vocabulary else usual_piece(part, vocabulary)
