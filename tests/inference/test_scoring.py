"""Scores, perplexity and choices against transformers, and model folders that cannot be used."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from exports.generation_config import OptionError
from exports.saved_model_folder import ModelError
from inference.text_generator import TextGenerator
from tests.helpers.text_models import POSITIONS, TextModel
from tokenization import TokenizerError


def windowed(model: TextModel, ids: list[int]) -> list[float]:
    """Each token's log-probability in the first of the windows 0, S/2, S, ... that has it; the first token's is NaN."""
    found = [math.nan]
    for place in range(1, len(ids)):
        start = max(0, math.ceil((place + 1 - POSITIONS) / (POSITIONS // 2))) * (POSITIONS // 2)
        found.append(model.logprobs(ids[start : start + POSITIONS])[place - start - 1, ids[place]])
    return found


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 47, 48, 49, 64, 65, 200])
def test_a_score_is_that_of_overlapping_windows(each: TextModel, tokens: int) -> None:
    letters = each.tokenizer.encode(each.prompt * 80)
    text = each.tokenizer.decode(letters[:tokens])
    ids = each.tokenizer.encode(text)
    start = list(each.tokenizer.start_token_ids)
    expected = windowed(each, [*start, *ids])[len(start) :]
    short, score = each.generator.score([each.prompt, text], batch_size=3)
    assert (short.text, score.text, score.tokens) == (each.prompt, text, tuple(ids))
    if not start:
        assert score.logprobs[0] is None
    known = [value for value in score.logprobs if value is not None]
    np.testing.assert_allclose(known, expected[len(expected) - len(known) :], atol=2e-3)
    if known:
        assert score.total == pytest.approx(sum(known))
        assert score.mean == pytest.approx(np.mean(expected[len(expected) - len(known) :]), abs=1e-3)
        assert score.perplexity == pytest.approx(math.exp(-score.mean))
    else:
        assert math.isnan(score.mean)
        assert math.isnan(score.perplexity)


def test_one_text_or_none_may_be_scored(bert: TextModel) -> None:
    assert bert.generator.score([]) == []
    assert len(bert.generator.score("hello")) == 1


def mean_nll(model: TextModel, prompt: str, text: str) -> float:
    before, after = model.tokenizer.encode_prompt(prompt), model.tokenizer.encode(text)
    ids = [*before, *after][:POSITIONS]
    known = model.logprobs(ids)
    return -float(np.mean([known[place - 1, ids[place]] for place in range(len(before), len(ids))]))


@pytest.mark.parametrize("times", [1, 20])
def test_choose_is_cpms_rule(each: TextModel, times: int) -> None:
    """The text's mean negative log-likelihood behind each prompt; of a long text its beginning."""
    candidates, text = ["今天", "天气", "hello", "a b"], each.prompt * times
    expected = [mean_nll(each, f"今{candidate}天", text) for candidate in candidates]
    choice = each.generator.choose("今{}天", candidates, text=text, batch_size=3)
    np.testing.assert_allclose(choice.scores, np.negative(expected), atol=2e-3)
    assert choice.index == int(np.argmin(expected))
    assert choice.candidate == candidates[choice.index]


def test_choose_takes_the_most_probable_continuation(each: TextModel) -> None:
    candidates = ["今天", "天气 hello", "a"]
    expected = [mean_nll(each, each.prompt, candidate) for candidate in candidates]
    choice = each.generator.choose(each.prompt, iter(candidates))
    np.testing.assert_allclose(choice.scores, np.negative(expected), atol=2e-3)
    assert choice.index == int(np.argmin(expected))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("今", []), OptionError, "no candidates"),
        (("今", "abc"), OptionError, "expected a list of texts"),
        (("今", ["a"], "b"), OptionError, "needs a {}"),
        (("今", ["a", ""]), TokenizerError, "without tokens"),
        (("今", ["a", 5]), TokenizerError, "type int: expected a text"),
        ((None, ["a"]), TokenizerError, "type NoneType: expected a text"),
        (("今{}", ["a"], ""), TokenizerError, "without tokens"),
        (("今" * POSITIONS, ["a"]), TokenizerError, "leave nothing of the model's 32 positions"),
    ],
)
def test_bad_choices_are_refused(cpm: TextModel, arguments: Any, error: type[Exception], words: str) -> None:
    prompt, candidates, *text = arguments
    with pytest.raises(error, match=words):
        cpm.generator.choose(prompt, candidates, text=text[0] if text else None)


@pytest.mark.parametrize("texts", ["", ["a", ""], [5], "\ud800"])
def test_texts_without_tokens_are_refused(bert: TextModel, texts: Any) -> None:
    with pytest.raises(TokenizerError):
        bert.generator.score(texts)


def config(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "assets" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        (path,) = folder.glob(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return apply


def somebody_elses(folder: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: x, input_signature=[tf.TensorSpec([])])
    shutil.move(folder / "assets", folder.parent / "assets")
    shutil.rmtree(folder)
    tf.saved_model.save(module, str(folder))
    shutil.copytree(folder.parent / "assets", folder / "assets", dirs_exist_ok=True)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (shutil.rmtree, "no SavedModel: expected a folder"),
    "no graph": (lambda folder: (folder / "saved_model.pb").unlink(), "no SavedModel"),
    "no assets": (lambda folder: shutil.rmtree(folder / "assets"), "config.json: cannot be read"),
    "config cut": (cut("assets/config.json"), "config.json: expected JSON"),
    "config deep": (write("assets/config.json", b"[" * 100_000), "config.json: expected JSON"),
    "config no UTF-8": (write("assets/config.json", b"\xff"), "config.json: not UTF-8: byte 0 is 0xff"),
    "config list": (write("assets/config.json", b"[1]"), "expected a JSON object, found a list"),
    "config null": (config(n_head=None), "it does not have n_head"),
    "config heads": (config(n_head=7), "7 heads do not divide"),
    "config text": (config(n_embd="24"), "n_embd is '24'"),
    "tokenizer cut": (write("assets/vocab.txt", b"[PAD]\n"), "not a vocabulary of BERT"),
    "no defaults": (lambda folder: (folder / "assets/generation_config.json").unlink(), "cannot be read"),
    "wrong defaults": (write("assets/generation_config.json", b'{"top_p": 2}'), "top_p is 2"),
    "graph empty": (write("saved_model.pb", b""), "cannot be loaded"),
    "graph cut": (cut("saved_model.pb"), "cannot be loaded: Cannot parse"),
    "graph text": (write("saved_model.pb", b"hello"), "cannot be loaded: Cannot parse"),
    "no weights": (lambda folder: shutil.rmtree(folder / "variables"), "cannot be loaded"),
    "index cut": (cut("variables/variables.index"), "cannot be loaded"),
    "weights cut": (cut("variables/variables.data-00000-of-*"), "python -m convert check"),
    "somebody else's": (somebody_elses, "has none of the signatures of this project"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line_that_names_it(bert: TextModel, name: str, tmp_path: Path) -> None:
    change, words = BROKEN[name]
    folder = tmp_path / "model"
    shutil.copytree(bert.folder, folder)
    change(folder)
    with pytest.raises((ModelError, OptionError, TokenizerError), match=words) as error:
        TextGenerator.load(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("path", ["", "a" * 300, "a\0b", "/dev/null"])
def test_what_is_no_folder_is_no_savedmodel(path: str) -> None:
    with pytest.raises(ModelError, match="no SavedModel"):
        TextGenerator.load(path)
