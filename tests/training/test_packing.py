"""Packed rows: each token predicted once, and none from another document."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from convert.verification.text_windows import cut_windows
from training.texts.packing import PackedRows, pack
from training.texts.presets import EncodedDocument

LENGTHS = st.integers(1, 9)


@st.composite
def documents_of_distinct_tokens(draw: st.DrawFn) -> list[EncodedDocument]:
    """Documents in which no token is there twice, so that a token of a row tells where it is from."""
    sizes = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=12))
    documents, first = [], 1
    for size, unpredicted in sizes:
        documents.append(EncodedDocument(tuple(range(first, first + size)), min(unpredicted, size)))
        first += size
    return documents


def predictions(rows: PackedRows) -> list[tuple[list[int], int]]:
    """What each predicted token is predicted from, as attention with the mask of segments sees it, and the token."""
    found = []
    for ids, segments, predicted in zip(rows.ids, rows.segments, rows.predicted, strict=True):
        for place in np.flatnonzero(predicted):
            seen = [
                int(i) for i, s in zip(ids[: place + 1], segments[: place + 1], strict=True) if s == segments[place]
            ]
            found.append((seen, int(ids[place + 1])))
    return found


@given(documents_of_distinct_tokens(), LENGTHS)
def test_every_token_but_first_ones_and_prefixes_is_predicted_once(
    documents: list[EncodedDocument], length: int
) -> None:
    expected = Counter(token for document in documents for token in document.ids[max(1, document.unpredicted) :])
    rows = pack(documents, length)
    assert Counter(token for _, token in predictions(rows)) == expected
    assert rows.tokens == expected.total()


@given(documents_of_distinct_tokens(), LENGTHS)
def test_a_token_is_predicted_from_what_stands_before_it_in_its_document_alone(
    documents: list[EncodedDocument], length: int
) -> None:
    places = {token: (document.ids, at) for document in documents for at, token in enumerate(document.ids)}
    for seen, token in predictions(pack(documents, length)):
        ids, at = places[token]
        first = (at - 1) // length * length  # where its window begins
        assert tuple(seen) == ids[first:at]


@given(documents_of_distinct_tokens(), st.integers(2, 9))
def test_measured_windows_are_those_of_verify(documents: list[EncodedDocument], length: int) -> None:
    rows = pack([EncodedDocument(document.ids) for document in documents], length, window=length)
    found = []
    for ids, segments in zip(rows.ids, rows.segments, strict=True):
        found += [ids[segments == number].tolist() for number in range(1, int(segments.max()) + 1)]
    expected = [window for document in documents for window in cut_windows(document.ids, length) if len(window) > 1]
    assert sorted(found) == sorted(expected)


@given(documents_of_distinct_tokens(), LENGTHS)
def test_positions_are_from_0_in_each_segment_and_padding_is_empty(
    documents: list[EncodedDocument], length: int
) -> None:
    rows = pack(documents, length)
    assert rows.ids.shape == rows.segments.shape == rows.positions.shape == (len(rows.ids), length + 1)
    assert rows.predicted.shape == (len(rows.ids), length)
    for ids, segments, positions in zip(rows.ids, rows.segments, rows.positions, strict=True):
        sizes = [int((segments == number).sum()) for number in range(1, int(segments.max()) + 1)]
        assert all(sizes)
        padding = length + 1 - sum(sizes)
        assert segments.tolist() == [n for n, size in enumerate(sizes, 1) for _ in range(size)] + [0] * padding
        assert positions.tolist() == [at for size in sizes for at in range(size)] + [0] * padding
        assert not ids[segments == 0].any()


@given(documents_of_distinct_tokens(), LENGTHS)
def test_the_same_documents_make_the_same_rows(documents: list[EncodedDocument], length: int) -> None:
    first, second = pack(documents, length), pack(list(documents), length)
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("ids", "segments", "predicted"))


@given(st.lists(st.integers(2, 20), min_size=1, max_size=60))
def test_no_two_rows_would_fit_into_one(sizes: list[int]) -> None:
    rows = pack([EncodedDocument((1,) * size) for size in sizes], 19)
    used = sorted((rows.segments > 0).sum(-1).tolist())
    assert sum(used) == sum(sizes)
    assert len(used) == 1 or used[0] + used[1] > 20


def test_fill_is_the_part_of_the_rows_that_is_not_padding() -> None:
    rows = pack([EncodedDocument((1, 2, 3)), EncodedDocument((4, 5))], 7)
    assert rows.ids.tolist() == [[1, 2, 3, 4, 5, 0, 0, 0]]
    assert rows.fill == 5 / 8


def test_nothing_to_predict_makes_no_rows() -> None:
    rows = pack([EncodedDocument(()), EncodedDocument((5,)), EncodedDocument((5, 6, 7), 3)], 4)
    assert rows.ids.shape == (0, 5)
    assert (rows.tokens, rows.fill) == (0, 0.0)


def test_twenty_megabytes_of_poems_are_packed_in_seconds() -> None:
    sizes = np.random.default_rng(0).integers(20, 200, 60_000)
    documents = [EncodedDocument(tuple(range(size))) for size in sizes]
    started = time.process_time()
    rows = pack(documents, 255)
    assert time.process_time() - started < 10
    assert rows.fill > 0.97
