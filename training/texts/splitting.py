"""Which documents are held out from training, to see how well the model predicts what it did not learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from support.messages import pluralize
from training.texts.documents import Document

LARGEST_HELD_OUT = 200
"""Documents that are held out at most where a share is asked for."""


def split(documents: Sequence[Document], share: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Split documents into those to train on and those held out, both in their order.

    Args:
        documents: all of them.
        share: the part that is held out, below 1, at most 200 documents, and one at least where there are two; or how
            many, from 1 on. One document at least stays to train on.
        seed: which ones are held out is a function of it.
    """
    count = _count_held_out(share, len(documents))
    held_out = {*np.random.default_rng([seed, len(documents)]).permutation(len(documents))[:count].tolist()}
    train = [document for index, document in enumerate(documents) if index not in held_out]
    return train, [documents[index] for index in sorted(held_out)]


def _count_held_out(share: float, documents: int) -> int:
    """Return how many of ``documents`` are held out."""
    if share >= 1:
        wanted = int(share)
    elif share > 0:
        wanted = min(LARGEST_HELD_OUT, max(1, round(share * documents)))
    else:
        wanted = 0
    return max(0, min(wanted, documents - 1))


def split_notes(train: Sequence[Document], validation: Sequence[Document]) -> list[str]:
    """Return notes on a split: nothing is held out, or more than is left, or documents are in both parts."""
    if not validation:
        return ["nothing is held out: there is no validation loss, and the last weights are taken"]
    notes = []
    if len(train) < len(validation):
        left = pluralize(len(train), "document")
        notes.append(
            f"{left} to train on, {len(validation):,} held out: fewer than are held out; --validation holds out others"
        )
    known = {(document.prefix, document.text) for document in train}
    same = [document for document in validation if (document.prefix, document.text) in known]
    if not same:
        return notes
    return [
        *notes,
        f"{len(same)} of {len(validation)} held-out documents are in the training text, too ({same[0].place}): "
        "the validation loss is too low",
    ]
