"""Generation in the graph against transformers without a cache: the same weights, every token from a pass over all of
the row's window."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers

from tests.helpers.checkpoints import fill_transformers, random_state
from tests.tf_model.test_beam import assign, lists, vivid, whole
from tests.tf_model.test_sampling import splitmix
from tf_model import attention, cache, generation, layers
from tf_model.config import GPT2Config
from tf_model.generation import Generated, Request, generate, random_seeds
from tf_model.gpt2 import GPT2
from tf_model.logits_processors import Constraints
from tf_model.sampling import Sampling
from tf_model.window import Window

CONFIG = GPT2Config(vocab_size=60, n_positions=32, n_embd=24, n_layer=2, n_head=3)
PAD = 59
TYPES = {
    "temperature": tf.float32, "top_p": tf.float32, "min_p": tf.float32, "typical_p": tf.float32, "seed": tf.int64,
    "repetition_penalty": tf.float32,
}  # fmt: skip
DEFAULTS = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "seed": 0, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "min_new_tokens": 0, "tokens": 16, "line_token_id": -1, "max_new_tokens": 10,
}  # fmt: skip


def request(prompts: Sequence[Sequence[int]], **values: Any) -> Request:
    """Options are one value, or one per row; ``eos_token_id`` and ``suppress_tokens`` are one list per row."""
    rows = len(prompts)
    spread = {
        name: tf.constant(np.broadcast_to(values.pop(name, default), rows), TYPES.get(name, tf.int32))
        for name, default in DEFAULTS.items()
    }
    for name in ("eos_token_id", "suppress_tokens"):
        spread[name] = lists(values.pop(name, [[]] * rows), -1)
    assert not values, f"unknown: {values}"
    return Request(
        lists(prompts, 3),
        tf.constant([len(prompt) for prompt in prompts]),
        spread["max_new_tokens"],
        *(kind(**{field: spread[field] for field in kind._fields}) for kind in (Sampling, Constraints, Window)),
    )


class Pair:
    """The Keras model's ``generate``, traced once for all requests, and transformers' model with the same weights."""

    def __init__(self) -> None:
        state = vivid(random_state(CONFIG, np.random.default_rng(0)))
        self.theirs = fill_transformers(state, CONFIG)
        model = GPT2(CONFIG)
        assign(model, state)
        sample = request([[1]])
        self._generate = tf.function(
            lambda request: generate(model.step, model.allocate, CONFIG, request, PAD),
            autograph=False,
            input_signature=[
                tf.nest.map_structure(lambda x: tf.TensorSpec([None] * x.shape.rank, x.dtype), sample)
            ],
        )  # fmt: skip
        self._generate.get_concrete_function()

    def __call__(self, request: Request) -> Generated:
        return Generated(*(tensor.numpy() for tensor in self._generate(request)))

    def logits(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """What follows each text, float32 ``[B, V]``, in one pass without a cache."""
        ids = torch.from_numpy(lists(texts, 0).numpy()).long()
        with torch.inference_mode():
            logits = self.theirs(ids).logits.numpy()
        return logits[np.arange(len(texts)), [len(text) - 1 for text in texts]]


@pytest.fixture(scope="module", params=[(generation.PREFILL_CHUNK, cache.BLOCK), (5, 8)], ids=["at once", "in parts"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Prompts are shorter than what is read at a time; and they are read in several parts, each of which sees a part of
    the cache."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in zip((generation, cache), ("PREFILL_CHUNK", "BLOCK"), request.param, strict=True):
            patch.setattr(module, name, value)
        return Pair()


def texts(result: Generated) -> list[list[int]]:
    for sequence, length in zip(result.sequences, result.lengths, strict=True):
        assert (sequence[length:] == PAD).all()
    return [sequence[:length].tolist() for sequence, length in zip(result.sequences, result.lengths, strict=True)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def random_prompts(rng: np.random.Generator, rows: int, longest: int) -> list[list[int]]:
    return [rng.integers(0, 60, rng.integers(1, longest + 1)).tolist() for _ in range(rows)]


def slide(text: Sequence[int], start: int, keep: int, line: int) -> int:
    """Where the window starts: at the first line of the newest ``keep`` tokens, once the positions are used up."""
    if len(text) - start <= CONFIG.n_positions:
        return start
    oldest = len(text) - keep
    return next((i for i in range(max(oldest, 1), len(text)) if text[i - 1] == line), oldest)


def windowed(
    pair: Pair, prompts: Sequence[Sequence[int]], new: int, keep: Sequence[int], line: Sequence[int],
    constraints: Sequence[Sequence[transformers.LogitsProcessor]] = (),
) -> tuple[list[list[int]], np.ndarray, int]:  # fmt: skip
    """Greedy texts, the log-probabilities of their tokens, and how often a window started at a line.

    The constraints, if any, are one list per row and see the whole text.
    """
    result, logprobs, lines = [list(prompt) for prompt in prompts], [], 0
    start = [0] * len(prompts)
    for _ in range(new + 1):
        for i, text in enumerate(result):
            moved = slide(text, start[i], keep[i], line[i])
            lines += moved != start[i] and moved != len(text) - keep[i]
            start[i] = moved
        if len(logprobs) < new:
            logits = pair.logits([text[s:] for text, s in zip(result, start, strict=True)])
            chosen = np.empty(len(result), np.int64)
            for i, text in enumerate(result):
                scores = torch.from_numpy(logits[i : i + 1])
                for processor in constraints[i] if constraints else ():
                    scores = processor(torch.tensor([text]), scores)
                chosen[i] = int(scores.argmax())
                text.append(int(chosen[i]))
            logprobs.append(log_softmax(logits)[np.arange(len(result)), chosen])
    return result, np.array(logprobs).T, lines


@pytest.mark.parametrize("with_lines", [False, True])
def test_texts_longer_than_the_model(pair: Pair, with_lines: bool) -> None:
    """Prompts shorter and longer than the positions, every size of window, all in one batch."""
    rng = np.random.default_rng(1)
    n = CONFIG.n_positions
    prompts, keep = [], []
    for tokens in (1, 2, n // 2, n - 1, n):
        for size in (1, 5, n - 1, n, n + 1, 2 * n + 9):
            prompts.append(rng.integers(0, 60, size).tolist())
            keep.append(tokens)
    line = [-1] * len(keep)
    expected, logprobs, lines = windowed(pair, prompts, 80, keep, line)
    assert lines == 0
    if with_lines:
        usual = np.bincount(np.concatenate([text[-80:] for text in expected])).argsort()
        line = [int(usual[-1 - i % 4]) for i in range(len(keep))]
        expected, logprobs, lines = windowed(pair, prompts, 80, keep, line)
        assert lines > 50
    result = pair(request(prompts, temperature=0.0, max_new_tokens=80, tokens=keep, line_token_id=line))
    assert texts(result) == expected
    np.testing.assert_allclose(result.logprobs, logprobs, atol=2e-4)


def test_a_line_that_ends_at_the_last_token_is_not_a_window(pair: Pair) -> None:
    """Nothing follows it yet: a window has at least one token."""
    line = 7
    prompts = [[1] * 39 + [line], [1] * 24 + [line] + [2] * 14 + [line], [1] * 23 + [line] + [2] * 16]
    expected, _, _ = windowed(pair, prompts, 3, [16] * 3, [line] * 3)
    assert [slide(prompt, 0, 16, line) for prompt in prompts] == [24, 25, 24]
    assert texts(pair(request(prompts, temperature=0.0, max_new_tokens=3, line_token_id=line))) == expected


def test_constraints_see_what_the_window_has_lost(pair: Pair) -> None:
    prompts = random_prompts(np.random.default_rng(6), 6, 40)
    penalty, size = [1.0, 1.1, 1.3] * 2, [2, 0, 0, 2, 3, 1]
    constraints = [
        [
            transformers.RepetitionPenaltyLogitsProcessor(p),
            *([transformers.NoRepeatNGramLogitsProcessor(n)] if n else []),
        ]
        for p, n in zip(penalty, size, strict=True)
    ]
    new = 18  # without any token twice, more would use up the vocabulary
    expected, logprobs, _ = windowed(pair, prompts, new, [4] * 6, [-1] * 6, constraints)
    options = {"repetition_penalty": penalty, "no_repeat_ngram_size": size, "tokens": 4}
    result = pair(request(prompts, temperature=0.0, max_new_tokens=new, **options))
    assert texts(result) == expected
    np.testing.assert_allclose(result.logprobs, logprobs, atol=2e-4)


def random_request(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Options for every row, greedy and sampled, with any of the filters and constraints."""
    return {
        "max_new_tokens": rng.integers(0, 24, rows),
        "temperature": rng.choice([0.0, 0.7, 1.0, 1.5], rows),
        "top_k": rng.choice([0, 0, 5, 40], rows),
        "top_p": rng.choice([1.0, 0.9, 0.5], rows),
        "min_p": rng.choice([0.0, 0.0, 0.05], rows),
        "typical_p": rng.choice([1.0, 1.0, 0.9], rows),
        "seed": rng.integers(0, 2**62, rows),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.3], rows),
        "no_repeat_ngram_size": rng.choice([0, 0, 2, 3], rows),
        "min_new_tokens": rng.choice([0, 4, 30], rows),
        "eos_token_id": [rng.integers(0, 60, rng.integers(0, 4)).tolist() for _ in range(rows)],
        "suppress_tokens": [rng.integers(0, 60, rng.integers(0, 4)).tolist() for _ in range(rows)],
        "tokens": rng.integers(1, 33, rows),
        "line_token_id": rng.choice([-1, 5, 11], rows),
    }


def assert_rows_equal_single_runs(pair: Pair, seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng([2, seed])
        prompts = random_prompts(rng, 4, 40)
        options = random_request(rng, 4)
        together = pair(request(prompts, **options))
        for i, (text, logprobs) in enumerate(zip(texts(together), together.logprobs, strict=True)):
            alone = pair(request([prompts[i]], **{name: values[i : i + 1] for name, values in options.items()}))
            assert [text] == texts(alone), (seed, i)
            width = alone.logprobs.shape[1]
            np.testing.assert_allclose(logprobs[:width], alone.logprobs[0], atol=1e-3)
            assert (logprobs[width:] == 0).all()


def test_rows_of_a_batch_equal_single_runs(pair: Pair) -> None:
    assert_rows_equal_single_runs(pair, range(50))


@pytest.mark.slow
def test_rows_of_many_batches_equal_single_runs(pair: Pair) -> None:
    assert_rows_equal_single_runs(pair, range(50, 350))


def test_greedy_with_constraints_equals_transformers(pair: Pair) -> None:
    """Penalties, n-grams, several ends of text, some before their time, suppressed tokens; all rows in one batch."""
    rng = np.random.default_rng(3)
    rows = 24
    prompts = random_prompts(rng, rows, 10)
    plain = texts(pair(request(prompts, temperature=0.0)))
    options: dict[str, Any] = {
        "repetition_penalty": rng.choice([0.9, 1.0, 1.4], rows),
        "no_repeat_ngram_size": rng.integers(0, 4, rows),
        "min_new_tokens": rng.integers(0, 8, rows),
        # what would come, so that it matters
        "eos_token_id": [rng.choice(text, rng.integers(0, 4)).tolist() for text in plain],
        "suppress_tokens": [rng.choice(text, rng.integers(0, 4)).tolist() for text in plain],
        "max_new_tokens": rng.integers(1, 21, rows),
    }
    found = texts(pair(request(prompts, temperature=0.0, **options)))
    for i, prompt in enumerate(prompts):
        own = {name: values[i] for name, values in options.items()}
        config = transformers.GenerationConfig(
            do_sample=False,
            pad_token_id=PAD,
            repetition_penalty=float(own["repetition_penalty"]),
            no_repeat_ngram_size=int(own["no_repeat_ngram_size"]),
            min_new_tokens=min(int(own["min_new_tokens"]), int(own["max_new_tokens"])),
            max_new_tokens=int(own["max_new_tokens"]),
            eos_token_id=own["eos_token_id"] or None,
            suppress_tokens=own["suppress_tokens"] or None,
        )
        expected = pair.theirs.generate(**whole(prompt), generation_config=config)[0].tolist()
        assert found[i] == expected, (i, own)
    early = sum(len(t) < len(p) + n for t, p, n in zip(found, prompts, options["max_new_tokens"], strict=True))
    assert 3 < early < rows


def test_a_row_ends_at_any_of_its_ends_and_not_before_its_time(pair: Pair) -> None:
    prompts = [[1, 2, 3]] * 4
    plain = texts(pair(request(prompts[:1], temperature=0.0, max_new_tokens=12)))[0]
    first, second = plain[5], plain[8]
    options: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12}
    found = pair(
        request(prompts, eos_token_id=[[first], [second, first], [], [second]], min_new_tokens=[0, 0, 30, 0], **options)
    )
    ends = [plain.index(token, 3) + 1 for token in (first, second)]
    assert texts(found) == [plain[: ends[0]], plain[: min(ends)], plain, plain[: ends[1]]]
    for row, length in zip(found.logprobs, found.lengths, strict=True):
        assert (row[: length - 3] < 0).all()
        assert (row[length - 3 :] == 0).all()
    # An end that is new token k needs k - 1 before it.
    for least, same in ((ends[0] - 4, True), (ends[0] - 3, False)):
        text = texts(pair(request(prompts[:1], eos_token_id=[[first]], min_new_tokens=least, **options)))[0]
        assert (text == plain[: ends[0]]) == same
        assert len(text) >= 3 + least


def test_logprobs_are_the_models_own(pair: Pair) -> None:
    """Whatever the temperature, filters and constraints."""
    rng = np.random.default_rng(4)
    prompts = random_prompts(rng, 8, 12)
    options = random_request(rng, 8) | {"max_new_tokens": rng.integers(0, 20, 8)}
    result = pair(request(prompts, **options))
    for text, prompt, logprobs in zip(texts(result), prompts, result.logprobs, strict=True):
        new = text[len(prompt) :]
        for i, token in enumerate(new):
            expected = log_softmax(pair.logits([text[: len(prompt) + i]]))[0, token]
            assert logprobs[i] == pytest.approx(expected, abs=2e-4)
        assert (logprobs[len(new) :] == 0).all()


def test_sampled_texts_are_the_inverse_of_the_distribution(pair: Pair) -> None:
    """Every draw by the published random numbers, transformers' warpers and a sum in float64.

    Which number of a seed's sequence is drawn follows from the token's place in the text."""
    prompts = random_prompts(np.random.default_rng(5), 6, 12)
    seeds = [0, 1, 2**40, 77, 2**62, 3]
    found = texts(
        pair(request(prompts, temperature=0.9, top_k=20, top_p=np.float32(0.95), seed=seeds, max_new_tokens=15))
    )
    expected = [list(prompt) for prompt in prompts]
    for _ in range(15):
        scores = torch.from_numpy(pair.logits(expected))
        for warper in (
            transformers.TemperatureLogitsWarper(0.9),
            transformers.TopKLogitsWarper(20),
            transformers.TopPLogitsWarper(0.95),
        ):
            scores = warper(None, scores)
        cumulated = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1).numpy()
        for text, row, seed in zip(expected, cumulated, seeds, strict=True):
            text.append(int(np.searchsorted(row, splitmix(seed, len(text)), side="right")))
    assert found == expected


def test_what_is_read_and_looked_at_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = [], []
    config = dataclasses.replace(CONFIG, n_positions=800, n_layer=1)
    model = GPT2(config)

    def step(tokens: tf.Tensor, *more: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        read.append(tokens.shape[1])
        return model.step(tokens, *more)

    def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
        seen.append((visible.shape[-1], key.shape[2]))
        return attention.attend(query, key, value, visible)

    monkeypatch.setattr(layers, "attend", attend)
    prompts = request([[1] * 600, [2] * 3], max_new_tokens=[3, 90])
    result = generate(step, model.allocate, config, prompts, PAD)  # not in a graph: the shapes are known
    assert result.lengths.numpy().tolist() == [603, 93]
    assert read == [256, 256, 88] + [1] * 89
    assert seen == [(256, 704), (512, 704), (640, 704)] + [(704, 704)] * 89


def test_rows_without_new_tokens(pair: Pair) -> None:
    result = pair(request([[1, 2], [3], [4, 5, 6]], max_new_tokens=[0, 3, 0]))
    assert result.sequences.shape == (3, 6)
    assert result.lengths.tolist() == [2, 4, 3]
    assert [text[:n] for text, n in zip(texts(result), (2, 1, 3), strict=True)] == [[1, 2], [3], [4, 5, 6]]
    assert (result.logprobs[[0, 2]] == 0).all()
    result = pair(request([[1, 2], [3]], max_new_tokens=0))
    assert texts(result) == [[1, 2], [3]]
    assert result.logprobs.shape == (2, 0)


def test_a_seed_decides_the_text(pair: Pair) -> None:
    """On every call, in every row; and others give others."""
    prompts = [[1, 2, 3]] * 8
    seeds = [5, 6, 7, 8, 9, 10, 11, 5]
    first = texts(pair(request(prompts, seed=seeds, max_new_tokens=20)))
    pair(request([[9] * 30] * 3, max_new_tokens=40))  # what another call leaves behind must not matter
    assert texts(pair(request(prompts, seed=seeds, max_new_tokens=20))) == first
    assert first[0] == first[7]
    assert len({tuple(text) for text in first}) == 7


def test_random_seeds_are_new_at_every_call() -> None:
    tf.random.set_seed(1)  # must have no influence
    seeds = tf.function(random_seeds)
    numbers = np.concatenate([seeds(tf.constant(5)).numpy() for _ in range(3)])
    assert len(set(numbers.tolist())) == 15
    assert (numbers >= 0).all()


def test_single_tokens_are_read_by_themselves() -> None:
    """Another kernel reads them: a row of one token is never read with rows of several, whatever the batch."""
    read: list[tuple[list[list[int]], list[int]]] = []

    def step(tokens: tf.Tensor, start: tf.Tensor, count: tf.Tensor, cache: Any, capacity: tf.Tensor) -> Any:
        rows = [row[:n] for row, n in zip(tokens.numpy().tolist(), count.numpy(), strict=True)]
        read.append((rows, start.numpy().tolist()))
        # What follows is the number of tokens that have been read, up to the row's last one.
        return tf.one_hot(start + count, CONFIG.vocab_size, 100.0, 0.0), cache

    prompts = [[7] * 9, [8], [9, 9]]
    wanted = request(prompts, max_new_tokens=[2, 2, 1], temperature=0.0)
    result = generate(step, lambda batch, capacity: tf.zeros([1]), CONFIG, wanted, PAD)
    assert texts(Generated(*(tensor.numpy() for tensor in result))) == [[*prompts[0], 9, 10], [8, 1, 2], [9, 9, 2]]
    assert read == [
        ([[7] * 9, [], [9, 9]], [0, 0, 0]),
        ([[], [8], []], [9, 0, 2]),
        ([[9], [1], []], [9, 1, 2]),
    ]
