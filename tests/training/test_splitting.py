"""Which documents are held out."""

from __future__ import annotations

import pytest

from training.texts.documents import Document
from training.texts.splitting import split, split_notes


def documents(count: int) -> list[Document]:
    return [Document(str(number), place=f"a.txt, line {number}") for number in range(count)]


@pytest.mark.parametrize(
    ("count", "share", "held_out"),
    [
        (100, 0.05, 5),
        (10_000, 0.05, 200),
        (2, 0.05, 1),
        (1, 0.05, 0),
        (10, 0, 0),
        (10, 3, 3),
        (1000, 500, 500),
        (3, 9, 2),
    ],
)
def test_how_many_are_held_out(count: int, share: float, held_out: int) -> None:
    train, validation = split(documents(count), share, 0)
    assert (len(train), len(validation)) == (count - held_out, held_out)
    assert sorted([*train, *validation], key=lambda document: int(document.text)) == documents(count)


def test_both_parts_keep_their_order_and_the_seed_says_which() -> None:
    train, validation = split(documents(100), 0.2, 1)
    for part in (train, validation):
        assert [int(document.text) for document in part] == sorted(int(document.text) for document in part)
    assert split(documents(100), 0.2, 1) == (train, validation)
    assert split(documents(100), 0.2, 2)[1] != validation


def test_documents_in_both_parts_are_said() -> None:
    train, validation = documents(5), [Document("3", place="b.txt, line 1"), Document("x")]
    (note,) = split_notes(train, validation)
    assert note.startswith("1 of 2 held-out documents")
    assert "b.txt, line 1" in note
    assert split_notes(train, [Document("3", prefix="of another kind\n")]) == []


def test_that_nothing_is_held_out_is_said() -> None:
    (note,) = split_notes(documents(1), [])
    assert "nothing is held out" in note
