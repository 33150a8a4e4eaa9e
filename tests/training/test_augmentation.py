"""Texts for labels: which are kept and why, with a model that says what it is told to."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.privileges import as_nobody
from training.augmentation.augmenting import (
    CANDIDATES_PER_TEXT,
    AugmentationError,
    Candidate,
    Filters,
    LabelledText,
    NewText,
    Rejection,
    augment,
    check_output,
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
    assert len(model.seeds[SPRING]) == 3 * CANDIDATES_PER_TEXT
    assert result.notes == (f"{SPRING}: 2 of {3 * CANDIDATES_PER_TEXT} texts were good enough, 3 are wanted",)
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
    "a string": ('"a"\n', "line 1: expected an object with a text and 'label', found a text without fields"),
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


OUTPUTS: dict[str, tuple[str, str]] = {
    "no folder": ("none/new.jsonl", "there is no folder"),
    "a file for a folder": ("known.jsonl/new.jsonl", "is a file, not a folder"),
    "a folder": ("folder", "folder: expected a file, found a folder"),
    "an input": ("./known.jsonl", "known.jsonl: is an input: choose another --output"),
    "a file that is there": ("old.jsonl", "old.jsonl: is there already: choose another --output, or give --force"),
    "too long a name": ("n" * 253, "File name too long"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_cannot_be_made_is_known_before_anything_is_written(case: str, tmp_path: Path) -> None:
    name, message = OUTPUTS[case]
    (tmp_path / "folder").mkdir()
    for file in ("known.jsonl", "old.jsonl"):
        (tmp_path / file).write_text("x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AugmentationError, match=message):
        check_output(tmp_path / name, [tmp_path / "known.jsonl"], overwrite=False)
    check_output(tmp_path / "old.jsonl", [], overwrite=True)
    check_output(tmp_path / "new.jsonl", [], overwrite=False)
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_in_a_closed_folder_is_known_before_anything_is_written(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "closed").mkdir(mode=0o555)
    with as_nobody(), pytest.raises(AugmentationError, match=r"new.jsonl: cannot be written: Permission denied in the"):
        check_output(tmp_path / "closed" / "new.jsonl", [], overwrite=False)


def test_normalized_texts_have_letters_digits_and_signs_alone() -> None:
    assert normalize("Ａ b，c。\n１+½!") == normalize("ab C1 + 1⁄2") == "abc1+1⁄2"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "bpe"])
def test_likelihoods_of_texts_after_labels_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    from tests.helpers.text_models import load, write
    from training.augmentation.label_model import GeneratorOfLabels

    write(kind, tmp_path)
    model = load(kind, tmp_path)
    end = model.tokenizer.eos_token_id
    labels = ("hello", "good day" if kind == "bert" else "no")
    writer = GeneratorOfLabels(
        model.generator, labels, 3, is_chinese=False, temperature=2.0, eos_token_id=end, max_new_tokens=99
    )
    texts = writer.write(labels[0], range(5))
    assert writer.write(labels[0], range(3, 5)) == texts[3:]
    found = writer.log_likelihoods(texts, labels)
    for text, row in zip(texts, found, strict=True):
        assert len(text.tokens) <= 32
        assert text.has_ended == (text.tokens[-1] == end)
        for label, value in zip(labels, row, strict=True):
            prompt = [*model.tokenizer.start_token_ids, *model.tokenizer.encode(f"{label}\n")]
            logprobs = model.logprobs([*prompt, *text.tokens])
            expected = sum(logprobs[place, token] for place, token in enumerate(text.tokens, len(prompt) - 1))
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.slow
def test_a_model_that_was_trained_on_labelled_texts_writes_more_of_them(
    tmp_path: Path, song_ci: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.cli import main

    flowers, boats = "红梅花杏", "江舟水渡"
    lines = [
        {"text": f"{a}{b}{c}落，{d}{a}{c}开。", "kind": kind}
        for kind, characters in (("花", flowers), ("舟", boats))
        for a, b, c, d in itertools.permutations(characters)
    ]
    known = tmp_path / "known.jsonl"
    known.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    trained, new = tmp_path / "trained", tmp_path / "new.jsonl"
    options = ["--prefix", "kind", "--validation", "0", "--steps", "40", "--length", "64", "--learning-rate", "1e-3"]
    words = ["finetune", "--model", str(song_ci), "--text", str(known), "--output", str(trained), "--quiet"]
    assert main([*words, *options, "--sample", "0"]) == 0
    words = ["augment", str(trained), "--labels-from", str(known), "--label-field", "kind", "--number", "5"]
    words += ["--output", str(new), "--max-overlap", "0.9", "--max-characters", "40"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    written = [json.loads(line) for line in new.read_text("utf-8").splitlines()]
    assert result["labels"] == {"花": 5, "舟": 5}
    assert len({line["text"] for line in written}) == 10
    assert not {normalize(line["text"]) for line in written} & {normalize(line["text"]) for line in lines}
    assert all(line["probability"] >= 0.9 and "," not in line["text"] for line in written)
    for line in written:  # the characters of the label's texts, not of the other's
        own, other = (flowers, boats) if line["label"] == "花" else (boats, flowers)
        assert sum(map(line["text"].count, own)) > sum(map(line["text"].count, other))
    before = new.read_bytes()
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--force", "--batch-size", "4", "--quiet"]) == 0
    assert new.read_bytes() == before
