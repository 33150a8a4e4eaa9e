"""A report of the texts before hours are spent: documents, tokens, rows and the first of them. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from support.messages import pluralize
from support.progress import Progress, no_progress
from tokenization import Tokenizer
from training.choices import row_length
from training.preparation import Model, model_tokenizer, open_with_tokenizer
from training.settings import Settings
from training.texts.batches import Batches
from training.texts.documents import find_files, to_paths
from training.texts.packing import PackedRows
from training.texts.reading import read_texts

DOCUMENT_END, LOSS_OFF, LOSS_ON = "⏹", "«", "»"
"""Marks of the first row: after a document (or a window of a long one), and around what is read but not learned."""


@dataclasses.dataclass(frozen=True)
class TextReport:
    """The texts as ``finetune`` would train on them.

    Attributes:
        preset: how the files become documents.
        files: how many were read.
        documents, held_out: to train on, and held out.
        tokens: that are predicted in an epoch.
        read_tokens: of all documents to train on, those of prefixes and beginnings, too.
        unknown: tokens of all documents that the vocabulary does not have.
        unknown_share: the same as a part of them.
        longest: tokens of the longest document.
        longest_place: where it is.
        cut: documents that are longer than a row, and become several windows.
        length: tokens of a row.
        rows: of an epoch.
        fill: the part of them that is not padding.
        batch_size: rows of an update.
        steps_per_epoch: updates.
        validation_tokens: that are predicted of the held-out documents.
        first_row: its text, with ``⏹`` after each document and ``« »`` around what is not learned.
        notes: what a user should know, a line each.
    """

    preset: str
    files: int
    documents: int
    held_out: int
    tokens: int
    read_tokens: int
    unknown: int
    unknown_share: float
    longest: int
    longest_place: str
    cut: int
    length: int
    rows: int
    fill: float
    batch_size: int
    steps_per_epoch: int
    validation_tokens: int
    first_row: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    def lines(self) -> Iterator[str]:
        """Yield the report as text, without the notes."""
        facts = {
            "preset": f"{self.preset}, of {pluralize(self.files, 'file')}",
            "documents": f"{self.documents:,} to train on, {self.held_out:,} held out",
            "tokens": f"{self.tokens:,} of {self.read_tokens:,} learned an epoch; {self.validation_tokens:,} held out",
            "unknown": f"{self.unknown:,} tokens ({self.unknown_share:.2%})",
            "longest": f"{self.longest:,} tokens ({self.longest_place}); {self.cut:,} longer than a row",
            "rows": f"{self.rows:,} of {self.length} tokens, {self.fill:.1%} filled",
            "epoch": f"{pluralize(self.steps_per_epoch, 'step')} of {pluralize(self.batch_size, 'row')}",
        }
        yield from (f"{name:<10} {value}" for name, value in facts.items())
        yield ""
        yield f"first row ({DOCUMENT_END} ends a document, {LOSS_OFF}{LOSS_ON} is read, not learned):"
        yield self.first_row


def inspect_text(
    model: Model | None, text: str | Path | Sequence[str | Path], *, progress: Progress = no_progress, **settings: Any
) -> TextReport:
    """Read texts as ``finetune`` does with the same settings, and report documents, tokens and rows.

    Args:
        model: as for ``finetune``; its weights are not read.
        text: files and folders of texts.
        progress: called with the bytes that are encoded.
        settings: see ``training.Settings``.

    Raises:
        UserError: texts, model or settings cannot be used.
        TokenizerError: the tokenizer cannot be used, or is not the model's.
    """
    paths = to_paths(text)
    chosen = Settings.of(settings)
    checkpoint, tokenizer, tokens, notes = open_with_tokenizer(model, chosen)
    own = cast(Tokenizer, model_tokenizer(tokenizer, tokens))
    length = row_length(checkpoint.config, chosen)
    texts = read_texts(paths, chosen, own, length, progress)
    batches = Batches(texts.rows, chosen.batch_size, 1, chosen.seed)
    sizes = np.array([len(encoded.ids) for encoded in texts.encoded])
    longest = int(sizes.argmax())
    return TextReport(
        preset=texts.preset.name,
        files=len(find_files(paths)),
        documents=len(texts.train),
        held_out=len(texts.held_out),
        tokens=texts.rows.tokens,
        read_tokens=int(sizes.sum()),
        unknown=texts.unknown,
        unknown_share=texts.unknown_share,
        longest=int(sizes[longest]),
        longest_place=texts.train[longest].place,
        cut=texts.cut,
        length=length,
        rows=len(texts.rows.ids),
        fill=round(texts.rows.fill, 4),
        batch_size=batches.batch_size,
        steps_per_epoch=batches.steps_per_epoch,
        validation_tokens=texts.validation.tokens if texts.validation else 0,
        first_row=show_row(texts.rows, own),
        notes=(*checkpoint.info.notes, *notes, *texts.notes),
    )


def show_row(rows: PackedRows, tokenizer: Tokenizer, row: int = 0) -> str:
    """Decode a row; marks stand after each document, and around the tokens that are not predicted.

    The first token of a document, or of a window, has nothing to be predicted from. It is marked only where more tokens
    follow that are not predicted either, or where it begins no text of a document: BERT's ``[CLS]``.
    """
    ids, segments = rows.ids[row], rows.segments[row]
    predicted = np.concatenate([[False], rows.predicted[row]])
    parts = []
    for number in range(1, int(segments.max()) + 1):
        tokens, learned = ids[segments == number].tolist(), predicted[segments == number]
        prefix = int(learned.argmax())
        before = tokenizer.decode(tokens[:prefix]) if prefix > 1 else ""
        learned_from = prefix if prefix > 1 else 0
        parts.append((f"{LOSS_OFF}{before}{LOSS_ON}" if before else "") + tokenizer.decode(tokens[learned_from:]))
        parts.append(DOCUMENT_END)
    return "".join(parts)
