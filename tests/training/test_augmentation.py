"""Texts for labels: which are kept and why, with a model that says what it is told to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.augmentation import (
    CANDIDATES,
    AugmentationError,
    Candidate,
    Filters,
    LabelledText,
    NewText,
    Rejection,
    augment,
    normalize,
    read_labelled,
    write_texts,
)

SPRING, AUTUMN = "spring", "autumn"
LABELS = (SPRING, AUTUMN)
ANY = Filters(probability=0, overlap=1)


class Script:
    """A ``LabelModel`` that writes the texts of a list, over and over, with the likelihoods that stand there."""

    def __init__(self, texts: Mapping[str, Sequence[Candidate]], likelihoods: Mapping[str, Sequence[float]]) -> None:
        self.texts, self.likelihoods = texts, likelihoods
        self.seeds: dict[str, list[int]] = {label: [] for label in texts}

    def write(self, label: str, seeds: Sequence[int]) -> list[Candidate]:
        self.seeds[label] += seeds
        return [self.texts[label][seed % len(self.texts[label])] for seed in seeds]

    def log_likelihoods(self, candidates: Sequence[Candidate], labels: Sequence[str]) -> Any:
        even = [0.0] * len(labels)
        return np.log(np.exp([self.likelihoods.get(candidate.text, even) for candidate in candidates]))


def whole(*texts: str) -> list[Candidate]:
    return [Candidate(text, (1, 2), True) for text in texts]


def numbered(name: str) -> list[Candidate]:
    """As many different texts as are ever asked for, which share no four characters."""
    return whole(*(f"{name[0]}{chr(0x4E00 + 3 * n)}{chr(0x4E01 + 3 * n)}{chr(0x4E02 + 3 * n)}" for n in range(400)))


def script(spring: Sequence[Candidate], likelihoods: Mapping[str, Sequence[float]] | None = None) -> Script:
    return Script({SPRING: spring, AUTUMN: numbered(AUTUMN)}, likelihoods or {})


def kept(result: Any, label: str = SPRING) -> list[str]:
    return [text.text for text in result.texts if text.label == label]


def test_each_label_gets_as_many_texts_as_are_wanted_from_the_same_seeds() -> None:
    model = script(numbered(SPRING))
    result = augment(model, LABELS, 10, filters=ANY, seed=5, batch_size=4)
    assert result.counts() == {SPRING: 10, AUTUMN: 10}
    assert kept(result) == [candidate.text for candidate in numbered(SPRING)[5:15]]
    assert model.seeds[SPRING] == model.seeds[AUTUMN] == list(range(5, 17))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_texts_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    def texts(size: int) -> tuple[NewText, ...]:
        likelihoods = {candidate.text: (0, n % 3) for n, candidate in enumerate(numbered(SPRING))}
        return augment(script(numbered(SPRING), likelihoods), LABELS, 9, filters=Filters(0.4), batch_size=size).texts

    assert texts(batch_size) == texts(8)


def test_the_probability_is_bayes_rule_over_all_labels_with_the_shares_of_the_known_texts() -> None:
    known = [LabelledText("known one", SPRING), *(LabelledText(f"known {n}", AUTUMN) for n in (2, 3, 4))]
    text = whole("a new text")
    model = Script({SPRING: text, AUTUMN: numbered(AUTUMN)}, {"a new text": (math.log(0.02), math.log(0.001))})
    (first, *_) = augment(model, LABELS, 1, known=known, filters=ANY).texts
    assert first.probability == pytest.approx(0.02 * 0.25 / (0.02 * 0.25 + 0.001 * 0.75))
    (first, *_) = augment(model, LABELS, 1, filters=ANY).texts  # no known texts: labels are alike
    assert first.probability == pytest.approx(0.02 / 0.021)


def test_likelihoods_of_long_texts_do_not_underflow() -> None:
    model = script(whole("long"), {"long": (-2000.0, -2001.0)})
    model.log_likelihoods = lambda candidates, labels: np.array([[-2000.0, -2001.0]] * len(candidates))  # type: ignore[method-assign]
    (first, *_) = augment(model, LABELS, 1, filters=ANY).texts
    assert first.probability == pytest.approx(1 / (1 + math.exp(-1)))


KNOWN = [LabelledText("Spring rain, all night long.", SPRING), LabelledText("春江潮水连海平，海上明月共潮生。", AUTUMN)]
GOOD = "wholly new words"
REJECTED: dict[str, tuple[Candidate, Rejection]] = {
    "no end": (Candidate("wholly without an end", (1,), False), Rejection.UNFINISHED),
    "nothing but marks": (Candidate(" ...，。\n", (1,), True), Rejection.LENGTH),
    "too short": (Candidate("  ab\n ", (1,), True), Rejection.LENGTH),
    "too long": (Candidate("0123456789" * 5, (1,), True), Rejection.LENGTH),
    "a copy": (Candidate("Spring rain, all night long.", (1,), True), Rejection.COPY),
    "a copy in other marks and letters": (Candidate("spring rain\nALL night long", (1,), True), Rejection.COPY),
    "a copy of another label's": (Candidate("春江潮水连海平,海上明月共潮生.", (1,), True), Rejection.COPY),
    "most of it known": (Candidate("春江潮水连海平，海上生明月", (1,), True), Rejection.COPY),
    "written before": (Candidate("Wholly new words!", (1,), True), Rejection.DUPLICATE),
    "another label": (Candidate("winter is coming", (1,), True), Rejection.IMPROBABLE),
}


@pytest.mark.parametrize("case", REJECTED)
def test_a_text_is_left_out_and_counted(case: str) -> None:
    candidate, reason = REJECTED[case]
    spring = [*whole(GOOD), candidate, *numbered(SPRING)]
    model = script(spring, {"winter is coming": (0.0, 5.0)})
    result = augment(model, LABELS, 2, known=KNOWN, filters=Filters(0.25, 0.5, 3, 40), batch_size=2)
    assert kept(result) == [GOOD, numbered(SPRING)[0].text]
    assert {reason: 1}.items() <= {key: count for key, count in result.rejected.items() if count}.items()


def test_the_limit_of_overlap_is_a_share_of_pieces_of_four_characters() -> None:
    text = whole("明月共潮生处")  # 明月共潮 月共潮生 are known, 共潮生处 is not
    for limit, number in ((0.66, 0), (0.67, 1)):
        result = augment(script(text), LABELS, 1, known=KNOWN, filters=Filters(0, limit))
        assert len(kept(result)) == number


def test_what_is_left_of_a_label_without_good_texts_is_said() -> None:
    model = script(whole("one", "two"))
    result = augment(model, LABELS, 3, filters=ANY)
    assert kept(result) == ["one", "two"]
    assert len(model.seeds[SPRING]) == 3 * CANDIDATES
    assert result.notes == (f"{SPRING}: 2 of {3 * CANDIDATES} texts were good enough, 3 are wanted",)
    assert "2 of spring, 3 of autumn; left out: 28 written twice" in result.summary()
    assert json.loads(json.dumps(result.to_dict()))["rejected"]["duplicate"] == 28


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "one label": (lambda: augment(script(whole("a")), [SPRING], 1), "expected two or more"),
    "a label twice": (lambda: augment(script(whole("a")), [SPRING, SPRING], 1), "expected two or more, each once"),
    "no texts": (lambda: augment(script(whole("a")), LABELS, 0), "0 texts for each label"),
    "nothing good": (
        lambda: augment(Script({label: [Candidate("a", (), False)] for label in LABELS}, {}), LABELS, 1),
        "20 without an end",
    ),
    "probability": (lambda: Filters(probability=1.5), "probability 1.5: expected a number of 0 to 1"),
    "overlap": (lambda: Filters(overlap=math.nan), "overlap nan"),
    "lengths": (lambda: Filters(shortest=5, longest=4), "lengths of 5 to 4 characters"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_said_in_one_line(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(AugmentationError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


FILES = {
    "no label": ('{"text": "a"}\n', "line 1: expected an object with a text and 'label', found one with text"),
    "a number": ('{"text": "a", "label": 3}\n', "line 1: expected an object with a text and 'label', found 3"),
    "an empty label": ('{"text": "a", "label": " "}\n', "line 1: expected an object"),
    "a string": ('"a"\n', "line 1: expected an object"),
    "not JSON": ("{\n", "line 1: not JSON"),
    "no text": ('{"label": "a"}\n', "line 1: expected"),
    "nothing": ("", "found none"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_without_labels_is_named_with_the_line(case: str, tmp_path: Path) -> None:
    content, message = FILES[case]
    file = tmp_path / "texts.jsonl"
    file.write_text(content, "utf-8")
    with pytest.raises(AugmentationError, match="texts") as error:
        read_labelled(file)
    assert message in str(error.value)


def test_what_is_written_can_be_read_again_and_appears_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    texts = [NewText("春\n来", SPRING, 0.91), NewText("half \ud800", AUTUMN, 1.0)]

    def broken() -> Any:
        yield texts[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_texts(broken(), path)
    assert list(tmp_path.iterdir()) == []
    write_texts(texts, path)
    assert read_labelled(path) == [LabelledText(text.text, text.label) for text in texts]
    assert json.loads(path.read_text("utf-8").splitlines()[0])["probability"] == 0.91
    with pytest.raises(AugmentationError, match="there is no folder"):
        write_texts(texts, tmp_path / "nowhere" / "new.jsonl")


def test_normalized_texts_have_letters_digits_and_signs_alone() -> None:
    assert normalize("Ａ b，c。\n１+½!") == normalize("ab C1 + 1⁄2") == "abc1+1⁄2"
