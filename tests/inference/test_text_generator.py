"""Text in, text out, for all three tokenizers; the oracle of numbers is transformers with the same weights."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exports.generation_config import OptionError
from exports.saved_model_folder import ModelError
from inference import GeneratedText
from inference.stop_strings import StopStringFilter
from inference.text_generator import TextGenerator
from tests.helpers.text_models import POSITIONS, TextModel, scripted
from tf_model.config import GPT2Config
from tokenization import TokenizerError


def greedy(model: TextModel, ids: list[int], number: int) -> list[int]:
    """transformers' most probable tokens, among those that the tokenizer has."""
    new: list[int] = []
    for _ in range(number):
        new.append(int(model.logprobs([*ids, *new])[-1, : model.tokenizer.vocab_size].argmax()))
    return new


def test_greedy_text_and_logprobs_are_those_of_transformers(each: TextModel) -> None:
    ids = each.tokenizer.encode_prompt(each.prompt)
    expected = greedy(each, ids, 12)
    (result,) = each.generator.generate(each.prompt, temperature=0, max_new_tokens=12, eos_token_id=-1)
    assert list(result.tokens) == expected
    known = each.logprobs([*ids, *expected])
    np.testing.assert_allclose(result.logprobs, [known[len(ids) - 1 + n, t] for n, t in enumerate(expected)], atol=1e-3)
    assert result.text == each.tokenizer.decode([*ids, *expected])[len(each.tokenizer.decode(ids)) :]
    assert (result.prompt, result.full_text) == (each.prompt, each.prompt + result.text)
    assert (result.finish_reason, result.score) == ("length", None)


def test_the_end_of_text_is_a_token_and_not_text(each: TextModel) -> None:
    """It is among the tokens, not in the text; min_new_tokens puts it off."""
    ids = each.tokenizer.encode_prompt(each.prompt)
    expected = greedy(each, ids, 12)
    end = expected[4]
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "eos_token_id": [end, -1]}
    (result,) = each.generator.generate(each.prompt, **options)
    assert list(result.tokens) == expected[: expected.index(end) + 1]
    assert result.finish_reason == "eos"
    before = [*ids, *result.tokens[:-1]]
    assert result.text == each.tokenizer.decode(before)[len(each.tokenizer.decode(ids)) :]
    (later,) = each.generator.generate(each.prompt, **options, min_new_tokens=9)
    assert end not in later.tokens[:9]


LONG = 2 * POSITIONS + 7
STREAMED: dict[str, dict[str, Any]] = {
    "plain": {"max_new_tokens": 25},
    "none": {"max_new_tokens": 0},
    "short total": {"max_length": 1},
    "total": {"max_length": 20},
    "greedy": {"do_sample": False, "max_new_tokens": 20},
    "window": {"max_new_tokens": LONG},
    "small window": {"max_new_tokens": LONG, "window_tokens": 5},
    "window of lines": {"max_new_tokens": LONG, "window_tokens": 20, "window_line_token_id": 10, "top_k": 3},
    "filters": {"max_new_tokens": 30, "top_k": 40, "top_p": 0.9, "temperature": 0.7},
    "penalties": {"max_new_tokens": LONG, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "endless n-gram": {"max_new_tokens": 3, "no_repeat_ngram_size": 10**9},
    "eos": {"max_new_tokens": 40, "eos_token_id": [*range(12, 40)], "min_new_tokens": 11},
    "suppressed": {"max_new_tokens": 20, "suppress_tokens": [*range(20, 70)]},
}


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("times", [1, 30])
def test_a_stream_gives_the_text_of_generate(each: TextModel, name: str, times: int) -> None:
    """With the same seed; of a prompt that is longer than the positions, too."""
    prompt = each.prompt * times
    options = {"eos_token_id": -1, "seed": 5, **STREAMED[name]}
    (whole,) = each.generator.generate(prompt, **options)
    parts = list(each.generator.stream(prompt, **options))
    assert "".join(parts) == whole.text
    assert all(parts)
    size = len(each.tokenizer.encode_prompt(prompt))
    most = options.get("max_new_tokens", max(0, options.get("max_length", 0) - size))
    assert len(whole.tokens) == len(whole.logprobs)
    assert len(whole.tokens) == most or whole.finish_reason == "eos"
    assert len(whole.tokens) >= min(most, options.get("min_new_tokens", 0))
    assert not set(whole.tokens) & set(options.get("suppress_tokens", []))
    assert max(whole.tokens, default=0) < each.tokenizer.vocab_size  # the padding of the vocabulary is never drawn


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_text_ends_before_the_first_stop_string(each: TextModel, size: int) -> None:
    """Before the first of several strings, wherever tokens begin; the tokens are those that the text needs."""
    options: dict[str, Any] = {"seed": 3, "max_new_tokens": 20, "eos_token_id": -1}
    (whole,) = each.generator.generate(each.prompt, **options)
    for at in range(2, len(whole.text) - size, 3):
        end = whole.text[at : at + size]
        ends = [whole.text[-1:] + "never", end]
        place = whole.text.find(end)
        (cut,) = each.generator.generate(each.prompt, **options, truncate=ends)
        assert (cut.text, cut.finish_reason) == (whole.text[:place], "truncate")
        assert "".join(each.generator.stream(each.prompt, **options, truncate=ends)) == cut.text
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
        assert len(cut.logprobs) == len(cut.tokens)
        ids = each.tokenizer.encode_prompt(each.prompt)
        if "\ufffd" not in whole.text:
            texts = [each.tokenizer.decode([*ids, *whole.tokens[:n]]) for n in range(21)]
            start = len(texts[0])
            assert len(cut.tokens) == next(n for n, text in enumerate(texts) if len(text) - start >= place)


def test_a_text_depends_on_its_own_prompt_and_seed_only(each: TextModel) -> None:
    """A row's text depends on its own prompt and seed only; the n-th result is drawn with seed + n."""
    prompts = [each.prompt, each.prompt * 3, each.prompt * 30]
    options: dict[str, Any] = {"max_new_tokens": 15, "temperature": 2.0}
    batch = each.generator.generate(prompts, seed=7, num_return_sequences=3, batch_size=4, **options)
    assert [result.prompt for result in batch] == [prompt for prompt in prompts for _ in range(3)]
    for i, n in itertools.product(range(3), range(3)):
        (alone,) = each.generator.generate(prompts[i], seed=7 + n, **options)
        assert (alone.text, alone.tokens) == (batch[3 * i + n].text, batch[3 * i + n].tokens)
    listed = each.generator.generate(prompts, seed=[7, 8, 9], **options)
    assert [result.tokens for result in listed] == [batch[i].tokens for i in (0, 4, 8)]
    assert len({result.tokens for result in each.generator.generate([each.prompt] * 5, **options)}) >= 3
    with pytest.raises(OptionError, match="seed has 2 values for 3 prompts"):
        each.generator.generate(prompts, seed=[1, 2])


def test_beam_search_returns_the_results_of_its_signature(each: TextModel) -> None:
    """As the signature says, each with the model's own log-probabilities and the score that follows from them."""
    prompts = [each.prompt, each.prompt[:3]]
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.7, "max_new_tokens": 6}
    results = each.generator.generate(prompts, **options)
    for i, prompt in enumerate(prompts):
        ids = each.tokenizer.encode_prompt(prompt)
        config = each.generator.resolve(**options)
        hidden = {"suppress_tokens": tuple(range(each.tokenizer.vocab_size, each.tokenizer.vocab_size + 5))}
        found = each.generator.model.call("beam_search", [ids], **{**config.inputs(), **hidden})
        for n, result in enumerate(results[3 * i : 3 * i + 3]):
            length = found["lengths"][0, n]
            assert list(result.tokens) == found["sequences"][0, n, len(ids) : length].tolist()
            known = each.logprobs([*ids, *result.tokens])
            logprobs = [known[len(ids) - 1 + k, token] for k, token in enumerate(result.tokens)]
            np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-3)
            assert result.score == pytest.approx(sum(logprobs) / len(logprobs) ** 0.7, abs=1e-3)
    with pytest.raises(OptionError, match="beam search has no window"):
        each.generator.generate(each.prompt, num_beams=2, max_new_tokens=POSITIONS)
    with pytest.raises(OptionError, match="a stream is one text"):
        each.generator.stream(each.prompt, num_beams=2)


def test_prompts_may_be_tokens(each: TextModel) -> None:
    ids = each.tokenizer.encode_prompt(each.prompt)
    options: dict[str, Any] = {"seed": 1, "max_new_tokens": 5, "eos_token_id": -1}
    (expected,) = each.generator.generate(each.prompt, **options)
    for prompt in (ids, tuple(ids), np.array(ids), [np.array(ids, np.int32)], (p for p in [ids]), np.array([ids])):
        (result,) = each.generator.generate(prompt, **options)
        assert (result.tokens, result.text) == (expected.tokens, expected.text)
        assert result.prompt == each.tokenizer.decode(ids)
    assert "".join(each.generator.stream(np.array(ids), **options)) == expected.text


def test_an_empty_prompt_begins_where_the_model_can(cpm: TextModel, bert: TextModel, bpe: TextModel) -> None:
    """A text begins with the token that the model was trained to see first, where there is one."""
    assert cpm.generator.generate([]) == []
    for model, start in ((bert, 2), (bpe, model_end(bpe))):
        expected = greedy(model, [start], 4)
        for prompt in ("", [[]]):
            (result,) = model.generator.generate(prompt, temperature=0, max_new_tokens=4, eos_token_id=-1)
            assert list(result.tokens) == expected
    for prompt in ("", "\t\u3000", [[]]):
        with pytest.raises(TokenizerError, match="the prompt has no tokens"):
            cpm.generator.generate(prompt)


def model_end(model: TextModel) -> int:
    return model.tokenizer.eos_token_id


@pytest.mark.parametrize(
    "prompts", [None, 5, [1, "a"], ["a", 1], [1.5], [[1.0]], [["1"]], b"abc", [b"abc"], [None], [[10**30]], [[-1]],
                [[10**6]], "\ud800", ["a", None], [[[1]]]]
)  # fmt: skip
def test_what_is_no_prompt_is_refused_in_one_line(bert: TextModel, prompts: Any) -> None:
    with pytest.raises(TokenizerError) as error:
        bert.generator.generate(prompts, max_new_tokens=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, -1, "8", 1.0, None])
def test_a_batch_size_is_a_whole_number(bert: TextModel, value: Any) -> None:
    for call in (bert.generator.generate, bert.generator.score, lambda p, **o: bert.generator.choose(p, ["a"], **o)):
        with pytest.raises(OptionError, match="batch_size is"):
            call("a", batch_size=value)


def test_stream_reports_errors_before_the_first_part(bert: TextModel) -> None:
    with pytest.raises(OptionError, match="did you mean 'temperature'"):
        bert.generator.stream("a", temprature=1)
    with pytest.raises(OptionError, match="outside the vocabulary"):
        bert.generator.stream("a", eos_token_id=10**6)
    with pytest.raises(TokenizerError):
        bert.generator.stream(["a"])


def test_a_failure_in_the_graph_is_one_line(bert: TextModel) -> None:
    with pytest.raises(ModelError, match="outside the vocabulary") as error:
        bert.generator.model.call("generate", [[10**6]])
    assert "\n" not in str(error.value)


def test_threads_may_share_a_generator(each: TextModel) -> None:
    def text(seed: int) -> str:
        if seed % 2:
            return "".join(each.generator.stream(each.prompt, seed=seed, max_new_tokens=12))
        return each.generator.generate(each.prompt, seed=seed, max_new_tokens=12)[0].text

    expected = [text(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(text, range(8))) == expected


def test_spaces_and_half_characters_come_with_their_neighbours(bert: TextModel, bpe: TextModel) -> None:
    words = bert.tokenizer.encode("world, good days")
    generator = scripted(bert.tokenizer, words)
    assert list(generator.stream("hello")) == [" world", ",", "good", " day", "s"]
    assert generator.generate("Hello")[0].full_text == "Hello world,good days"
    assert generator.generate("今天")[0].text == "world,good days"
    generator = scripted(bpe.tokenizer, bpe.tokenizer.encode("今天 hello"))
    assert list(generator.stream("a")) == ["今", "天", " hello"]
    half = bpe.tokenizer.encode("今")
    rest = scripted(bpe.tokenizer, half[1:])
    assert list(rest.stream(half[:1])) == ["今"]
    assert rest.generate(half[:1])[0].full_text == rest.generate(half[:1])[0].text == "今"
    cut = scripted(bpe.tokenizer, half[:2])
    assert list(cut.stream("a")) == ["\ufffd"]
    text = scripted(bpe.tokenizer, bpe.tokenizer.encode("天今b"))
    (result,) = text.generate("a", truncate="b")
    assert (result.text, len(result.tokens)) == ("天今", 6)  # all bytes of the last character, too


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tokens_stream_as_their_text_up_to_the_first_stop_string(each: TextModel, data: st.DataObject) -> None:
    """Whatever a model says: the stream is the text, and the text is what the tokens are, up to the first string."""
    tokenizer = each.tokenizer
    some = st.integers(0, min(tokenizer.vocab_size, 300) - 1) | st.integers(0, tokenizer.vocab_size - 1)
    tokens = data.draw(st.lists(some, max_size=12))
    generator = scripted(tokenizer, tokens)
    ids = tokenizer.encode_prompt(each.prompt)
    text = tokenizer.decode([*ids, *tokens])[len(tokenizer.decode(ids)) :]
    pieces = st.integers(0, max(0, len(text) - 1)).flatmap(lambda i: st.integers(1, 4).map(lambda n: text[i : i + n]))
    ends = data.draw(st.lists(pieces.filter(bool) | st.sampled_from(["\n", "a"]), max_size=3)) if text else []
    options: dict[str, Any] = {"max_new_tokens": len(tokens), "eos_token_id": -1, "truncate": ends or None}
    (result,) = generator.generate(each.prompt, **options)
    places = [text.find(end) for end in ends if end in text]
    assert result.text == text[: min(places, default=len(text))]
    assert "".join(generator.stream(each.prompt, **options)) == result.text
    assert (result.finish_reason == "truncate") == bool(places)


class Letters:
    """A decoder whose tokens are indices of parts."""

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts

    def push(self, token: int) -> str:
        return self.parts[token]

    def finish(self) -> str:
        return self.parts[-1]


@given(parts=st.lists(st.text("ab\n", max_size=4), min_size=1), ends=st.lists(st.text("ab\n", min_size=1), max_size=3))
def test_what_may_begin_a_stop_string_is_held_back(parts: list[str], ends: list[str]) -> None:
    """Joined it is the whole, cut; what is given is never more, and never less than what is certain."""
    text, given_so_far = StopStringFilter(Letters(parts), tuple(ends)), ""
    whole = "".join(parts)
    place = min((whole.find(end) for end in ends if end in whole), default=len(whole))
    seen = ""
    for token, part in enumerate(parts[:-1]):
        given_so_far += text.push(token)
        seen += part
        certain = next(
            (n for n in range(len(seen)) if any(seen[n:].startswith(e) or e.startswith(seen[n:]) for e in ends)),
            len(seen),
        )
        assert given_so_far == seen[:certain]
    assert given_so_far + text.finish() == whole[:place]


def test_results_hold_plain_values(bert: TextModel) -> None:
    (result,) = bert.generator.generate("a", max_new_tokens=2, eos_token_id=-1)
    assert isinstance(result, GeneratedText)
    assert {type(token) for token in result.tokens} == {int}
    assert {type(logprob) for logprob in result.logprobs} == {float}
    assert isinstance(bert.generator.config, GPT2Config)
    assert bert.generator.defaults["max_new_tokens"] == 100


def test_an_interrupt_cancels_what_tensorflow_does(song_ci: Path) -> None:
    """Ctrl-C in a call of minutes is there at once, and the generator is good afterwards."""
    generator = TextGenerator.load(song_ci)
    before = generator.generate("浣溪沙", max_new_tokens=5, seed=1)
    timer = threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    started = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        generator.generate("浣溪沙", max_new_tokens=50_000, eos_token_id=-1)
    assert time.monotonic() - started < 10
    assert generator.generate("浣溪沙", max_new_tokens=5, seed=1) == before


def test_constraints_that_leave_no_token_end_a_text(song_ci: Path) -> None:
    generator = TextGenerator.load(song_ci)
    nothing: dict[str, Any] = {"suppress_tokens": range(generator.config.vocab_size), "max_new_tokens": 5}
    assert list(generator.stream("浣溪沙", **nothing)) == []
    (result,) = generator.generate("浣溪沙", **nothing)
    assert (result.text, result.finish_reason) == ("", "constraints")


def test_long_prompts_cost_what_the_window_costs(song_ci: Path) -> None:
    """Decoding 11,250 tokens anew at each token would take 8 seconds."""
    generator = TextGenerator.load(song_ci)
    generator.generate("浣溪沙", max_new_tokens=2)
    started = time.monotonic()
    generator.generate("无可奈何花落去\n" * 1250, max_new_tokens=5)
    assert time.monotonic() - started < 5
