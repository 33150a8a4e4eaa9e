"""Data augmentation: texts for the labels of a classifier, written by a model that was trained on labelled texts.

The model was fine-tuned with the label as a prefix (``finetune --prefix label``), so it writes a text of a label, and
knows how probable any text is after each label. A text is kept if it has an end and a length that is wanted, if it is
no copy of a text that the model was trained on, and if the model itself gives its label a high enough probability
p(label | text), which is p(text | label) p(label) divided by the sum of that over all labels.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.jsonl import json_line
from support.documents import read_documents
from support.errors import UserError
from support.files import check_is_file, describe_write_error, replacing
from support.messages import describe_json, list_names

CANDIDATES_PER_TEXT = 10
"""Texts that are written for each one that is wanted, at most."""
GRAM_CHARACTERS = 4
"""Characters of the pieces that two texts are compared by."""


class AugmentationError(UserError):
    """Labelled texts that cannot be used, or a model that writes none that could be kept."""


class LabelledText(NamedTuple):
    """A text of a class."""

    text: str
    label: str


class NewText(NamedTuple):
    """A text that was kept, and the probability of its label."""

    text: str
    label: str
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """Return a line of JSON."""
        return {"text": self.text, "label": self.label, "probability": round(self.probability, 4)}


class Candidate(NamedTuple):
    """A text as a model wrote it: its tokens with the end of text, and whether there is one."""

    text: str
    tokens: tuple[int, ...]
    has_ended: bool


class LabelModel(Protocol):
    """A model that writes texts of a label; ``label_model.GeneratorOfLabels`` is one."""

    def write(self, label: str, seeds: Sequence[int]) -> list[Candidate]:
        """Return a text for each seed."""

    def log_likelihoods(self, candidates: Sequence[Candidate], labels: Sequence[str]) -> NDArray[np.float64]:
        """Return log p(text | label), ``[texts, labels]``."""


class Rejection(enum.Enum):
    """Why a text is not kept."""

    UNFINISHED = "without an end"
    LENGTH = "too short or too long"
    COPY = "copies"
    DUPLICATE = "written twice"
    IMPROBABLE = "of an improbable label"


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which texts are kept.

    Attributes:
        probability: the least p(label | text); 0 keeps any.
        overlap: the greatest share of a text's pieces of 4 characters that known texts have; 1 refuses whole copies
            alone.
        shortest, longest: characters of a text, without white space at its ends.
    """

    probability: float = 0.9
    overlap: float = 0.5
    shortest: int = 1
    longest: int | None = None

    def __post_init__(self) -> None:
        for name in ("probability", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise AugmentationError(f"{name} {getattr(self, name)}: expected a number of 0 to 1")
        if self.shortest < 1 or (self.longest is not None and self.longest < self.shortest):
            raise AugmentationError(f"lengths of {self.shortest} to {self.longest} characters: no text has one")


@dataclasses.dataclass(frozen=True)
class AugmentationResult:
    """Texts for labels.

    Attributes:
        texts: those that were kept, label by label.
        rejected: how many were not, for each reason.
        notes: what a user should know, a line each.
    """

    texts: tuple[NewText, ...]
    rejected: Mapping[Rejection, int]
    notes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Return the number of texts of each label."""
        return dict(collections.Counter(text.label for text in self.texts))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        rejected = {reason.name.lower(): count for reason, count in self.rejected.items()}
        return {"texts": len(self.texts), "labels": self.counts(), "rejected": rejected, "notes": list(self.notes)}

    def summary(self) -> str:
        """Return one line for people."""
        of_labels = ", ".join(f"{count} of {label}" for label, count in self.counts().items())
        left_out = ", ".join(f"{count} {reason.value}" for reason, count in self.rejected.items())
        return f"{len(self.texts)} texts: {of_labels}" + (f"; left out: {left_out}" if left_out else "")


def read_labelled(path: Path, field: str = "label") -> list[LabelledText]:
    """Read JSON lines, or an array, of objects with a text and a label.

    Args:
        path: the file.
        field: the name of the label.

    Raises:
        AugmentationError: the file cannot be read, or an object has no text or no label.
    """
    labelled = []
    for document in read_documents(path, AugmentationError):
        label = document.fields.get(field)
        if not isinstance(label, str) or not label.strip():
            found = describe_json(label)
            if field not in document.fields:
                found = f"one with {list_names(document.fields)}" if document.fields else "a text without fields"
            raise AugmentationError(
                f"{document.place(path)}: expected an object with a text and {field!r}, found {found}"
            )
        labelled.append(LabelledText(document.text, label.strip()))
    return labelled


def augment(
    model: LabelModel,
    labels: Sequence[str],
    number: int,
    *,
    known: Sequence[LabelledText] = (),
    filters: Filters = Filters(),
    seed: int = 0,
    batch_size: int = 8,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> AugmentationResult:
    """Write texts for each label and keep ``number`` of them, or as many of 10 times ``number`` as are good enough.

    The n-th text of every label is drawn with the seed ``seed + n``.

    Args:
        model: writes texts and knows how probable they are.
        labels: two or more, each once.
        number: of texts for each label.
        known: texts that the model was trained on. Those of a label say how probable it is by itself; without any,
            all labels are alike.
        filters: which texts are kept.
        seed: of the first text.
        batch_size: texts that are written at once.
        on_progress: called with the texts that are kept, and wanted.

    Raises:
        AugmentationError: no labels to choose between, or no text was good enough.
    """
    if number < 1:
        raise AugmentationError(f"{number} texts for each label: expected 1 or more")
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise AugmentationError(f"labels {list_names(labels)}: expected two or more, each once")
    sieve = _Sieve(filters, known)
    prior = _log_prior(labels, known)
    kept: list[NewText] = []
    notes = []
    for index, label in enumerate(labels):
        before = len(kept)
        for start in range(0, CANDIDATES_PER_TEXT * number, batch_size):
            seeds = range(seed + start, seed + min(start + batch_size, CANDIDATES_PER_TEXT * number))
            written = sieve.sift(model.write(label, seeds))
            if written:
                probabilities = softmax(model.log_likelihoods(written, labels) + prior)[:, index]
                kept += sieve.keep(label, written, probabilities, number - len(kept) + before)
            on_progress(len(kept), number * len(labels))
            if len(kept) == before + number:
                break
        else:
            notes.append(
                f"{label}: {len(kept) - before} of {CANDIDATES_PER_TEXT * number} texts were good enough, "
                f"{number} are wanted"
            )
    if not kept:
        reasons = ", ".join(f"{count} {reason.value}" for reason, count in sieve.rejected.items())
        raise AugmentationError(f"no text was good enough ({reasons}): was the model trained with --prefix label?")
    return AugmentationResult(tuple(kept), dict(sieve.rejected), tuple(notes))


class _Sieve:
    """Keeps texts that are new and long enough, and counts the others."""

    def __init__(self, filters: Filters, known: Iterable[LabelledText]) -> None:
        self._filters = filters
        self._seen: dict[str, Rejection] = {}
        self._grams: set[str] = set()
        for text in map(normalize, (one.text for one in known)):
            self._seen[text] = Rejection.COPY
            self._grams |= grams(text)
        self.rejected: collections.Counter[Rejection] = collections.Counter()

    def sift(self, written: Iterable[Candidate]) -> list[Candidate]:
        """Return the texts that may be kept, whatever their labels' probability."""
        good = []
        for candidate in written:
            reason = self._reason(candidate)
            if reason is None:
                good.append(candidate)
                self._seen[normalize(candidate.text)] = Rejection.DUPLICATE
            else:
                self.rejected[reason] += 1
        return good

    def keep(
        self, label: str, candidates: Sequence[Candidate], probabilities: NDArray[np.float64], most: int
    ) -> list[NewText]:
        """Return the texts whose label is probable, ``most`` at most."""
        probable = [
            NewText(candidate.text, label, float(probability))
            for candidate, probability in zip(candidates, probabilities, strict=True)
            if probability >= self._filters.probability
        ]
        self.rejected.update([Rejection.IMPROBABLE] * (len(candidates) - len(probable)))
        return probable[:most]

    def _reason(self, candidate: Candidate) -> Rejection | None:
        size = len(candidate.text.strip())
        text = normalize(candidate.text)
        if not candidate.has_ended:
            return Rejection.UNFINISHED
        if not text or size < self._filters.shortest or size > (self._filters.longest or size):
            return Rejection.LENGTH
        if text in self._seen:
            return self._seen[text]
        return Rejection.COPY if self._overlap(text) > self._filters.overlap else None

    def _overlap(self, text: str) -> float:
        own = grams(text)
        return len(own & self._grams) / len(own) if own else 0.0


def normalize(text: str) -> str:
    """Return the letters, digits and signs of a text: no marks, no white space, one form of each."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(one for one in folded if unicodedata.category(one)[0] not in "PZC")


def grams(text: str) -> set[str]:
    """Return every 4 characters of a text that follow each other."""
    return {text[at : at + GRAM_CHARACTERS] for at in range(len(text) - GRAM_CHARACTERS + 1)}


def _log_prior(labels: Sequence[str], known: Sequence[LabelledText]) -> NDArray[np.float64]:
    """Return log p(label) ``[labels]``, as often as it is in the known texts; a label that is not there counts once."""
    counts = collections.Counter(one.label for one in known)
    shares = np.array([max(1, counts[label]) for label in labels], np.float64)
    return np.asarray(np.log(shares / shares.sum()))


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return exp of scores ``[texts, labels]`` over their sum in each row."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def check_output(path: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Check that ``write_texts`` can make a file, before hours are spent on its content.

    Args:
        path: of the file.
        inputs: what it must not be.
        overwrite: whether a file that is there is replaced.

    Raises:
        AugmentationError: it cannot be made.
    """
    try:
        if path.resolve() in [one.resolve() for one in inputs]:
            raise AugmentationError(f"{path}: is an input: choose another --output")
        check_is_file(path, AugmentationError)
        if path.exists() and not overwrite:
            raise AugmentationError(f"{path}: is there already: choose another --output, or give --force")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}."[-100:]):
            pass
        path.with_name(f"{path.name}.new").exists()  # raises where the name is too long
    except OSError as error:
        error.filename = str(path)  # not that of the temporary file
        raise AugmentationError(describe_write_error(error, path, "choose another --output")) from error


def write_texts(texts: Iterable[NewText], path: Path) -> None:
    """Write texts as JSON lines; the file appears when it is complete.

    Raises:
        AugmentationError: it cannot be written.
    """
    try:
        with replacing(path) as new:
            new.write_text("".join(json_line(text.to_dict()) for text in texts), "utf-8")
    except OSError as error:
        raise AugmentationError(describe_write_error(error, path, "choose another --output")) from error
