"""The texts of a training: read, split, encoded and packed, with what a user should know about them. No TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from support.messages import pluralize
from support.progress import Progress, no_progress
from training.settings import Settings
from training.texts.documents import Document, TextError, find_files, read_documents
from training.texts.packing import PackedRows, pack
from training.texts.presets import EncodedDocument, Preset, default_preset, find_preset, preset_notes
from training.texts.splitting import split, split_notes

if TYPE_CHECKING:
    from tokenization import Tokenizer

DEFAULT_HELD_OUT_SHARE = 0.05
"""Of the documents, where no setting says otherwise."""
NOTED_UNKNOWN_SHARE = 0.01
"""With this share of unknown tokens and more there is a note."""
SAMPLE_TOKENS = 8192
"""About the tokens of ``Texts.sample``: as many as ``verify`` measures a model with."""
SHOWN_UNKNOWN_PARTS = 10
"""Characters or words that the note names."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts that a model is trained on and measured with.

    Attributes:
        preset: how the files became documents.
        train, held_out: the documents.
        rows: the packed documents to train on.
        validation: those held out, packed; None where there are none.
        encoded: those to train on, as token ids.
        cut: how many of them are longer than a row, and become several windows.
        unknown, unknown_share: number and share of tokens, of all documents, that the vocabulary does not have.
        sample: some of the documents to train on, as many as are held out, packed: their perplexity shows overfitting.
        sha256: of all token ids, segments and ``predicted``.
        notes: what a user should know, a line each.
    """

    preset: Preset
    train: Sequence[Document]
    held_out: Sequence[Document]
    rows: PackedRows
    validation: PackedRows | None
    encoded: Sequence[EncodedDocument]
    cut: int
    unknown: int
    unknown_share: float
    sample: PackedRows
    sha256: str
    notes: tuple[str, ...]

    @property
    def held_out_texts(self) -> list[str]:
        """The held-out documents as ``verify --text`` measures them; none where the preset has no such texts."""
        texts = [self.preset.whole_text(document) for document in self.held_out]
        return [text for text in texts if text is not None]


def read_texts(
    paths: Sequence[Path],
    settings: Settings,
    tokenizer: Tokenizer,
    length: int,
    progress: Progress = no_progress,
) -> Texts:
    """Read, split, encode and pack the texts at ``paths``.

    Args:
        paths: files and folders.
        settings: preset, prefix, validation and seed are used.
        tokenizer: the model's.
        length: tokens of a row.
        progress: called with the bytes of text that are encoded, as the stage ``encode``.

    Raises:
        UserError: a text cannot be used, or there is nothing to predict.
    """
    preset = find_preset(settings.preset) if settings.preset else default_preset(find_files(paths))
    documents = read_documents(paths, preset, settings.prefix)
    train, held_out, notes = _split(documents, preset, settings)
    every = _encode([*train, *held_out], preset, tokenizer, settings, progress)
    encoded = {"train": every[: len(train)], "held_out": every[len(train) :]}
    rows = pack(encoded["train"], length)
    if not rows.tokens:
        raise TextError(f"{paths[0]}: nothing to learn: expected a document of two tokens or more")
    validation = _pack_measured(encoded["held_out"], length)
    if held_out and not validation.tokens:
        raise TextError(f"{held_out[0].place}: nothing to predict in the held-out documents: give others, or 0 of them")
    sample = _sample(encoded["train"], len(held_out), settings.seed)
    unknown = sum(document.ids.count(tokenizer.unknown_token_id) for document in every)
    share = unknown / sum(len(document.ids) for document in every)
    return Texts(
        preset,
        train,
        held_out,
        rows,
        validation if held_out else None,
        encoded["train"],
        sum(len(document.ids) > length + 1 for document in encoded["train"]),
        unknown,
        share,
        _pack_measured(sample, length),
        _hash([rows, validation]),
        (*notes, *preset_notes(preset, tokenizer, documents), *_unknown_notes([*train, *held_out], share, tokenizer)),
    )


def _split(
    documents: Sequence[Document], preset: Preset, settings: Settings
) -> tuple[Sequence[Document], Sequence[Document], list[str]]:
    """Return the documents to train on, those held out, and notes about them."""
    share = held_out_share(settings.validation)
    if share is not None:
        if share > max(1, len(documents) - 1):
            raise TextError(
                f"--validation {settings.validation}: expected {pluralize(len(documents) - 1, 'document')} at most, as "
                f"there {'is' if len(documents) == 1 else 'are'} {len(documents)}"
            )
        train, held_out = split(documents, share, settings.seed)
        return train, held_out, split_notes(train, held_out)
    held_out = read_documents([Path(str(settings.validation))], preset, settings.prefix)
    return documents, held_out, split_notes(documents, held_out)


def held_out_share(validation: str | float | Path | None) -> float | None:
    """Return a share below 1, or a number of documents; None for a file.

    Raises:
        TextError: a number that is neither.
    """
    if validation is None:
        return DEFAULT_HELD_OUT_SHARE
    try:
        share = float(str(validation))
    except ValueError:
        return None
    if not 0 <= share < float("inf") or (share > 1 and not share.is_integer()):
        raise TextError(f"--validation {validation}: expected a share below 1, a number of documents, or a file")
    return share


def _encode(
    documents: Sequence[Document], preset: Preset, tokenizer: Tokenizer, settings: Settings, progress: Progress
) -> list[EncodedDocument]:
    sizes = [len(document.text.encode()) for document in documents]
    total, done = sum(sizes), 0
    encoded = []
    for document, size in zip(documents, sizes, strict=True):
        progress("encode", done, total)
        done += size
        try:
            encoded.append(preset.encode(tokenizer, document, predict_prefix=settings.loss == "all"))
        except ValueError as error:  # TokenizerError; imported only where a tokenizer is
            raise TextError(f"{document.place}: {error}") from error
    progress("encode", total, total)
    return encoded


def _pack_measured(documents: Sequence[EncodedDocument], length: int) -> PackedRows:
    """Pack documents that are measured, in the windows that ``verify`` has of a model with ``length`` positions."""
    return pack(documents, length, window=max(2, length))


def _sample(encoded: Sequence[EncodedDocument], count: int, seed: int) -> list[EncodedDocument]:
    """Choose as many documents as are held out, one at least, and none after ``SAMPLE_TOKENS`` tokens."""
    order = np.random.default_rng([seed, 1]).permutation(len(encoded))[: max(1, count)]
    before = np.cumsum([0, *(len(encoded[index].ids) for index in order[:-1])])
    return [encoded[index] for index in sorted(order[before < SAMPLE_TOKENS].tolist())]


def _hash(packed: Sequence[PackedRows]) -> str:
    digest = hashlib.sha256()
    for rows in packed:
        for values in (rows.ids, rows.segments, rows.predicted):
            digest.update(repr(values.shape).encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _unknown_notes(documents: Sequence[Document], share: float, tokenizer: Tokenizer) -> list[str]:
    """Say which characters the vocabulary does not have, where they are many."""
    if share < NOTED_UNKNOWN_SHARE:
        return []
    parts: dict[str, None] = {}
    for document in documents:
        parts.update(dict.fromkeys(tokenizer.unknown_parts(document.text)))
        if len(parts) >= SHOWN_UNKNOWN_PARTS:
            break
    shown = " ".join(list(parts)[:SHOWN_UNKNOWN_PARTS])
    return [
        f"{share:.1%} of the tokens are unknown to the vocabulary ({shown}): the model learns nothing of them; is it "
        "the right tokenizer?"
    ]
