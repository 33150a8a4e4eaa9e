"""Pack encoded documents into rows of one length, so that no token sees another document."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.texts.presets import EncodedDocument


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows ``[R, S + 1]`` of token ids, several documents in each.

    Attributes:
        ids: int32 ``[R, S + 1]``; 0 in padding.
        segments: int32 ``[R, S + 1]``: which document of the row a token is of, from 1; 0 is padding.
        positions: int32 ``[R, S + 1]``: from 0 in each document, or window of one.
        predicted: bool ``[R, S]``: whether token ``j + 1`` is in the loss of the logits at ``j``.
    """

    ids: NDArray[np.int32]
    segments: NDArray[np.int32]
    positions: NDArray[np.int32]
    predicted: NDArray[np.bool_]

    @property
    def tokens(self) -> int:
        """How many tokens are predicted, padding not among them."""
        return int(self.predicted.sum())

    @property
    def fill(self) -> float:
        """The part of the rows that is not padding."""
        return float((self.segments > 0).mean()) if self.segments.size else 0.0


def pack(documents: Sequence[EncodedDocument], length: int, *, window: int | None = None) -> PackedRows:
    """Pack documents into rows of ``length + 1`` tokens, ``length`` of which go into the model.

    The longest come first, each into the row with the least room that has enough; so few rows have padding, and the
    same documents always make the same rows. A longer document is cut into windows that overlap by one token: every
    token but its first is predicted once. A window in which nothing is predicted is left out.

    Args:
        documents: token ids, and how many of the first are not predicted.
        length: tokens that the model is given at a time, ``S``.
        window: tokens of a window at most, from 2 to ``length + 1``, which is what None stands for.
    """
    flat = np.concatenate([np.asarray(document.ids, np.int32) for document in documents] or [np.zeros(0, np.int32)])
    windows = _windows(documents, length if window is None else window - 1)
    rows, offsets = _place(windows.sizes, length + 1)
    count = int(rows.max(initial=-1)) + 1
    # The number of a window in its row: windows by row, then by offset.
    order = np.lexsort((offsets, rows))
    first_of_row = np.searchsorted(rows[order], np.arange(count))
    numbers = np.empty_like(rows)
    numbers[order] = np.arange(len(rows)) - first_of_row[rows[order]] + 1

    within = _ranges(windows.sizes)  # of each token of each window: its place in the window
    place = np.repeat(rows * (length + 1) + offsets, windows.sizes) + within
    ids, segments, positions = (np.zeros(count * (length + 1), np.int32) for _ in range(3))
    ids[place] = flat[np.repeat(windows.starts, windows.sizes) + within]
    segments[place] = np.repeat(numbers, windows.sizes)
    positions[place] = within
    predicted = np.zeros(count * (length + 1), np.bool_)
    predicted[place] = within >= np.repeat(windows.first_predicted, windows.sizes)
    shape = (count, length + 1)
    return PackedRows(
        ids.reshape(shape), segments.reshape(shape), positions.reshape(shape), predicted.reshape(shape)[:, 1:]
    )


@dataclasses.dataclass(frozen=True)
class _Windows:
    """Windows of documents, int64 ``[W]`` each.

    Attributes:
        starts: the place of the first token among those of all documents.
        sizes: tokens.
        first_predicted: the place in the window of the first token that is predicted, 1 or more.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    first_predicted: NDArray[np.int64]


def _windows(documents: Sequence[EncodedDocument], step: int) -> _Windows:
    """Cut documents into windows of ``step + 1`` tokens, of which the last is the first of the next window."""
    sizes = np.array([len(document.ids) for document in documents], np.int64)
    unpredicted = np.array([document.unpredicted for document in documents], np.int64)
    starts = np.cumsum(sizes) - sizes
    counts = np.maximum(0, -(-(sizes - 1) // step))  # a document of one token has nothing to predict
    offsets = _ranges(counts) * step
    window_sizes = np.minimum(step + 1, np.repeat(sizes, counts) - offsets)
    first = np.maximum(1, np.repeat(unpredicted, counts) - offsets)
    kept = first < window_sizes
    return _Windows((np.repeat(starts, counts) + offsets)[kept], window_sizes[kept], first[kept])


def _ranges(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0 to ``count - 1`` for each count, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def _place(sizes: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row and the offset in it of each window, longest first, into the row with the least room."""
    rows, offsets = np.zeros_like(sizes), np.zeros_like(sizes)
    with_room: dict[int, list[int]] = {}  # room -> the rows that have it
    rooms: list[int] = []  # the keys, sorted
    count = 0
    for index in np.argsort(-sizes, kind="stable"):
        size = int(sizes[index])
        at = bisect.bisect_left(rooms, size)
        if at < len(rooms):
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        else:
            room, row = width, count
            count += 1
        rows[index], offsets[index] = row, width - room
        if room > size:
            if room - size not in with_room:
                with_room[room - size] = []
                bisect.insort(rooms, room - size)
            with_room[room - size].append(row)
    return rows, offsets
