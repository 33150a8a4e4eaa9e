"""The recipes that train the demo: its texts are always the same, and one poet's poems become more probable."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from demo.__main__ import CHECKPOINT
from demo.corpus import SEED, split
from demo.forms import phrases
from demo.one_poet import POET, train_on_poet, write_poet
from demo.train import RECIPE, SIZES, write_corpus
from support.errors import UserError
from tests.conftest import ROOT, shared
from tokenization import CPMTokenizer
from training.settings import Settings


def read(file: Path) -> list[str]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_the_demo_is_trained_on_poems_without_unknown_characters_and_measured_on_others(tmp_path: Path) -> None:
    train, held_out = map(read, write_corpus(shared("corpora/song_ci.jsonl"), CHECKPOINT / "tokenizer", tmp_path))
    assert (len(train), len(held_out)) == (10_129, 297)
    assert not {*train} & {*held_out}
    assert held_out[:20] == read(ROOT / "demo" / "held-out.jsonl")
    tokenizer = CPMTokenizer(CHECKPOINT / "tokenizer")
    assert all(0 not in tokenizer.encode(text) for text in train[:500])


def test_the_recipe_is_one_of_finetune() -> None:
    settings = Settings.of({**RECIPE, "init": SIZES, "tokenizer": CHECKPOINT / "tokenizer"})
    assert (settings.optimizer, settings.form_weight) == ("muon", 5.0)


def test_a_poet_is_measured_on_poems_that_the_demo_does_not_know(tmp_path: Path) -> None:
    corpus = shared("corpora/song_ci.jsonl")
    train, held_out = map(read, write_poet(corpus, POET, tmp_path))
    assert (len(train), len(held_out)) == (556, 45)
    _, learnt = split(corpus, random.Random(SEED))
    known = {text.partition("\n")[2].strip() for text in learnt}
    texts = {poem["text"] for poem in held_out}  # type: ignore[index]
    assert not texts & known
    assert not texts & {poem["text"] for poem in train}  # type: ignore[index]


def test_a_poet_whom_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="poems by 李白 that the demo does not know: expected 2 or more"):
        write_poet(shared("corpora/song_ci.jsonl"), "李白", tmp_path)


def test_phrases_are_counted_without_the_name_of_the_tune() -> None:
    assert phrases("如梦令\n昨夜雨疏风骤，浓睡不消残酒。\n知否、知否。\n") == [6, 6, 2, 2]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_demo_learns_a_poet_in_a_minute_or_two(tmp_path: Path) -> None:
    result = train_on_poet(shared("corpora/song_ci.jsonl"), POET, tmp_path / "poet", sample=0)
    assert result.validation is not None
    before, after = result.validation
    assert after < 0.95 * before
    assert (tmp_path / "poet" / "saved_model.pb").exists()
