"""Rows that pad a vocabulary, left out of a checkpoint: no text becomes them, so they must never be drawn.

Megatron-LM pads the embedding to a multiple of 128 for each rank (``_vocab_size_with_padding`` of its tokenizers),
nanoGPT to a multiple of 64, and training scripts of transformers to multiples of 8 and more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointAdapter, CheckpointInfo
from convert.tensors import Array, DType
from support.errors import CheckpointError
from support.messages import pluralize
from tokenization import Tokenizer
from tokenization.special_tokens import SpecialTokens

_MATRICES = ("wte.weight", "lm_head.weight")
"""Canonical tensors with a row for each token."""

_PADDED = "padded_vocab_size"
"""The detail of ``CheckpointInfo`` that says how many rows the files have."""

_KNOWN = {50257: "GPT-2's", 30000: "CPM's", 21128: "Chinese BERT's", 13317: "GPT2-Chinese's", 8021: "CLUE's small"}
"""Sizes of vocabularies that are in use, and whose they are."""

_MULTIPLES = (64, 128, 256, 512, 1024)
"""What programs pad a vocabulary to, for up to eight ranks."""

_SMALLEST_PADDED = 1024
"""Rows that a note is worth: of fewer, a multiple of 128 is a vocabulary of somebody's own."""


class _Trimmed(CheckpointAdapter):
    """A checkpoint without the last rows of its vocabulary.

    Args:
        checkpoint: the whole one.
        vocab_size: the number of rows that are left, fewer than it has.
        info: what is said about the trimmed one.
    """

    def __init__(self, checkpoint: Checkpoint, vocab_size: int, info: CheckpointInfo) -> None:
        config = dataclasses.replace(checkpoint.config, vocab_size=vocab_size)
        super().__init__(checkpoint, config=config, info=info)
        self._rows = checkpoint.config.vocab_size
        self.tokens = None if checkpoint.tokens is None else tokens_within(checkpoint.tokens, vocab_size)

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """Read a tensor as ``Checkpoint.read``; the rows that are left are a view of the whole matrix."""
        if name not in _MATRICES:
            return super().read(name, dtype, buffer)
        whole = self._rows * self.config.n_embd * dtype.itemsize
        fits = buffer is not None and buffer.nbytes >= whole
        return super().read(name, dtype, buffer if fits else None)[: self.config.vocab_size]


def trim_vocabulary(checkpoint: Checkpoint, vocab_size: int, note: str | None = None) -> Checkpoint:
    """Return ``checkpoint`` without the rows of its vocabulary from ``vocab_size`` on.

    Where its source can be opened again, the trimmed one is what that gives then. Special tokens that are left out
    are none any more.

    Args:
        checkpoint: any.
        vocab_size: the number of tokens; that of ``checkpoint`` gives the checkpoint itself.
        note: what is said about it; None: how many rows are left out.

    Raises:
        CheckpointError: the vocabulary has fewer rows than that.
    """
    rows, info = checkpoint.config.vocab_size, checkpoint.info
    if not 1 <= vocab_size <= rows:
        raise CheckpointError(f"{_where(info)}: --vocab-size {vocab_size}: expected 1 to {rows}, its rows of tokens")
    if vocab_size == rows:
        return checkpoint
    notes = [note or f"{_where(info)}: left out {_last_rows(rows, vocab_size)}, as --vocab-size {vocab_size} says"]
    if lost := _lost_end(checkpoint.tokens, vocab_size):
        notes.append(f"{_where(info)}: {lost}: texts end at their length only, unless the tokenizer has an end")
    trimmed = dataclasses.replace(
        info,
        details={_PADDED: rows, **info.details},
        notes=(*info.notes, *notes),
        source=None if info.source is None else info.source.with_vocab_size(vocab_size),
    )
    return _Trimmed(checkpoint, vocab_size, trimmed)


def has_chosen_size(checkpoint: Checkpoint) -> bool:
    """Whether the user has said how many tokens the checkpoint has."""
    source = checkpoint.info.source
    return source is not None and source.vocab_size is not None


def trim_to_tokenizer(checkpoint: Checkpoint, pieces: int, tokens: SpecialTokens) -> Checkpoint:
    """Return ``checkpoint`` without the rows that its tokenizer has no pieces for, unless the user chose a size.

    What begins a text, ends it and ends its lines stays, with everything in front of it: some trainings add one behind
    the tokenizer's pieces.

    Args:
        checkpoint: any.
        pieces: the tokenizer's highest id and one more.
        tokens: the special tokens that texts are generated with.
    """
    rows = checkpoint.config.vocab_size
    wanted = max([pieces, *(token + 1 for token in (*_ends(tokens), *_starts_and_lines(tokens)))])
    if wanted >= rows or has_chosen_size(checkpoint):
        return checkpoint
    which = f"row {wanted} is" if wanted == rows - 1 else f"rows {wanted} to {rows - 1} are"
    note = (
        f"{_where(checkpoint.info)}: the tokenizer has {pieces} pieces, the model {rows} rows: {which} left out, as "
        f"no text becomes them; --vocab-size {rows} keeps them"
    )
    if 2 * wanted < rows:
        note += "; so few pieces are perhaps not the model's tokenizer: --tokenizer PATH gives another"
    return trim_vocabulary(checkpoint, wanted, note)


def rows_without_text(
    checkpoint: Checkpoint, tokenizer: Tokenizer, tokens: SpecialTokens, *, is_chosen: bool
) -> tuple[int, ...]:
    """Return the ids that no text becomes and that generation must not draw, though their rows are there.

    An end of a text behind the tokenizer's pieces keeps the rows in front of it.

    Args:
        checkpoint: the model, trimmed.
        tokenizer: its tokenizer.
        tokens: the special tokens that texts are generated with.
        is_chosen: whether the user has chosen the size: then those rows are wanted.
    """
    behind = () if is_chosen else range(tokenizer.vocab_size, checkpoint.config.vocab_size)
    used = {*_ends(tokens), *_starts_and_lines(tokens), tokens.bos_token_id, tokens.pad_token_id}
    return tuple(sorted({*tokenizer.blank_ids, *(token for token in behind if token not in used)}))


def tokens_within(tokens: SpecialTokens, vocab_size: int) -> SpecialTokens:
    """Return the special tokens of a vocabulary of ``vocab_size``: others than its own are none."""

    def known(token: int | None) -> int | None:
        return token if token is not None and token < vocab_size else None

    end, pad = known(tokens.eos_token_id), known(tokens.pad_token_id)
    defaults = dict(_known_defaults(tokens, vocab_size))
    ends = defaults.get("eos_token_id")
    if end is None and ends:
        end = ends[0] if isinstance(ends, list) else ends
    if isinstance(ends, list) and len(ends) < 2:
        del defaults["eos_token_id"]
    if pad is None:
        pad = 0 if end is None else end
    bos = known(tokens.bos_token_id)
    return dataclasses.replace(tokens, eos_token_id=end, pad_token_id=pad, bos_token_id=bos, defaults=defaults)


def _known_defaults(tokens: SpecialTokens, vocab_size: int) -> Iterator[tuple[str, Any]]:
    """Yield the defaults of generation without the ids of tokens that are left out."""
    for name, value in tokens.defaults.items():
        if not name.endswith(("_token_id", "_token_ids", "_tokens")) or name in (
            "max_new_tokens",
            "min_new_tokens",
            "window_tokens",
        ):
            yield name, value
        elif isinstance(value, (list, tuple)):
            kept = [token for token in value if token < vocab_size]
            if kept or not value:
                yield name, kept
        elif value < vocab_size:
            yield name, value


def padding_note(checkpoint: Checkpoint) -> str | None:
    """Say that a vocabulary looks padded; None where it does not, or where the user has said its size.

    For checkpoints without a tokenizer: nothing else says which rows a text can become.
    """
    rows, info = checkpoint.config.vocab_size, checkpoint.info
    if has_chosen_size(checkpoint) or _PADDED in info.details or rows < _SMALLEST_PADDED or rows % _MULTIPLES[0]:
        return None
    for size, whose in _KNOWN.items():
        if any(rows == -(-size // multiple) * multiple for multiple in _MULTIPLES):
            return (
                f"{_where(info)}: {rows:,} rows of tokens, but {whose} vocabulary has {size:,} pieces: if it is that, "
                f"--vocab-size {size} leaves out the padding, which may be drawn otherwise"
            )
    if rows % 128:
        return None
    return (
        f"{_where(info)}: {rows:,} rows of tokens, a multiple of 128, and no tokenizer: if the last rows are padding, "
        "they may be drawn: --vocab-size with the number of pieces leaves them out"
    )


def unused_rows_note(checkpoint: Checkpoint, pieces: int) -> str | None:
    """Say that rows are kept that the tokenizer has no pieces for; None where it has pieces for all.

    A copy keeps them, and a SavedModel whose size the user has chosen.
    """
    rows = checkpoint.config.vocab_size
    if pieces >= rows:
        return None
    if has_chosen_size(checkpoint):
        kept = f"{_last_rows(rows, pieces)}, which no text becomes, are kept as --vocab-size {rows} says"
        return f"{_where(checkpoint.info)}: {kept}: signatures that are called with ids may draw them"
    kept = f"{_last_rows(rows, pieces)}, which no text becomes, are kept"
    return f"{_where(checkpoint.info)}: {kept}: --vocab-size {pieces} leaves them out"


def _ends(tokens: SpecialTokens) -> list[int]:
    """Return the tokens that end a text."""
    ends = tokens.defaults.get("eos_token_id", [])
    named = [] if tokens.eos_token_id is None else [tokens.eos_token_id]
    return [*named, *(ends if isinstance(ends, (list, tuple)) else [ends])]


def _starts_and_lines(tokens: SpecialTokens) -> list[int]:
    """Return the tokens that begin a text and end its lines, where the model names some."""
    start, line = tokens.defaults.get("start_token_ids", []), tokens.defaults.get("line_token_id", -1)
    return [*(start if isinstance(start, (list, tuple)) else [start]), line]


def _lost_end(tokens: SpecialTokens | None, vocab_size: int) -> str | None:
    """Say that a vocabulary of ``vocab_size`` lacks the end of a text; None where it has one, or there was none."""
    ends = [] if tokens is None else _ends(tokens)
    if not ends or min(ends) < vocab_size:
        return None
    return f"the end of a text, id {ends[0]}, is left out with them"


def _last_rows(rows: int, vocab_size: int) -> str:
    """Name the rows behind ``vocab_size``, for a note."""
    return f"the last {pluralize(rows - vocab_size, 'row')} of {rows:,} of the vocabulary"


def _where(info: CheckpointInfo) -> str:
    return info.where if info.source is None else str(info.source.path)
