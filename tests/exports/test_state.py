"""``prefill`` and ``decode`` of the loaded SavedModel: texts made in several calls, and what a state may be."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from exports.decode_state import DecodeState
from tests.helpers.loaded import (
    CONFIG,
    Loaded,
    Tensors,
    matrix,
    random_options,
    random_prompts,
    reference,
    row_of,
    texts,
)
from tf_model.generation import Context

PROMPTS = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10, 9, 8]]
WINDOW = ("window_tokens", "window_line_token_id")


def state_of(outputs: Tensors) -> Tensors:
    """Of the outputs of ``prefill`` or ``decode`` those that the next call takes."""
    return {
        name: value for name, value in outputs.items() if name.startswith(("cache", "window_")) and name not in WINDOW
    }


def in_calls(
    loaded: Loaded, prompts: list[list[int]], new: int, calls: list[int], capacity: int, options: dict[str, Any]
) -> list[list[int]]:
    """Texts of ``new`` more tokens, made in calls of so many tokens, again and again."""
    window = {name: options[name] for name in WINDOW if name in options}
    state = state_of(loaded("prefill", prompts, capacity=capacity, **window))
    rows, made = prompts, 0
    while made < new:
        number = min(calls[0], new - made)
        calls = [*calls[1:], calls[0]]
        outputs = loaded("decode", rows, max_new_tokens=number, **state, **options)
        state = state_of(outputs)
        rows, made = texts(outputs), made + number
        # all but the last token has been read, as far as it is in the window
        assert (state["window_start"] + state["cache_lengths"] <= [len(row) - 1 for row in rows]).all()
    return rows


@pytest.mark.parametrize("calls", [[1], [3], [7], [7, 1, 3], [64]])
def test_a_text_in_several_calls_is_that_of_one(loaded: Loaded, calls: list[int]) -> None:
    """Ragged rows, sampled and greedy, with constraints that look back over all calls and windows that move."""
    rng = np.random.default_rng(5)
    prompts = random_prompts(rng, 6, 40)
    options = random_options(rng, 6) | {"repetition_penalty": [1.3] * 6, "no_repeat_ngram_size": [3] * 6}
    for name in ("max_new_tokens", "eos_token_id", "min_new_tokens"):  # these are counted by the call
        del options[name]
    whole = texts(loaded("generate", prompts, max_new_tokens=64, **options))
    assert {len(text) - len(prompt) for text, prompt in zip(whole, prompts, strict=True)} == {64}
    assert in_calls(loaded, prompts, 64, calls, 0, options) == whole


@pytest.mark.parametrize("capacity", [1, 2, 9, 31])
def test_a_small_cache_is_a_small_window(loaded: Loaded, capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    prompts = random_prompts(rng, 4, 12)
    options: dict[str, Any] = {
        "seed": [1, 2, 3, 4], "temperature": [0.0, 1.0, 0.7, 1.0], "window_tokens": [5, 32, 1, 0],
        "window_line_token_id": [-1, 32, 7, -1],
    }  # fmt: skip
    found = in_calls(loaded, prompts, 30, [4], capacity, options)
    for i, prompt in enumerate(prompts):
        text, _ = reference(loaded, prompt, limit=capacity, max_new_tokens=30, **row_of(options, i))
        assert found[i] == text, i


@pytest.mark.parametrize("fed", [[1, 1, 1], [6, 1, 5], [4, 1, 2]])
def test_tokens_of_the_callers_own(loaded: Loaded, fed: list[int]) -> None:
    """The next distribution is that of transformers, whoever the tokens came from and however many are new."""
    rng = np.random.default_rng(9)
    rows = [prompt[:n] for prompt, n in zip(PROMPTS, fed, strict=True)]
    outputs = loaded("prefill", rows)
    for _ in range(4):
        for row, logits in zip(rows, outputs["logits"], strict=True):
            np.testing.assert_allclose(logits, loaded.logits(row)[-1], atol=1e-3)
        np.testing.assert_array_equal(outputs["cache_lengths"], [len(row) for row in rows])
        rows = [row + rng.integers(0, CONFIG.vocab_size, rng.integers(0, 7)).tolist() for row in rows]
        outputs = loaded("decode", rows, max_new_tokens=0, **state_of(outputs))
        assert texts(outputs) == rows
        assert outputs["logprobs"].shape == (3, 0)


def test_decode_gives_the_logits_that_its_last_token_came_from(loaded: Loaded) -> None:
    outputs = loaded("decode", PROMPTS, max_new_tokens=[5, 0, 2], seed=3, **state_of(loaded("prefill", PROMPTS)))
    for text, logits, new in zip(texts(outputs), outputs["logits"], (5, 0, 2), strict=True):
        np.testing.assert_allclose(logits, loaded.logits(text[: len(text) - (new > 0)])[-1], atol=1e-3)


def test_a_state_that_is_a_constant_of_the_callers_graph(loaded: Loaded) -> None:
    """A prompt that is always the same: what is folded into a constant must not be written to. Windows move here, so
    that what the state had is overwritten; and there are two twins."""
    state = state_of(loaded("prefill", PROMPTS))
    prompt = {"input_ids": matrix(PROMPTS, 0), "input_lengths": [6, 1, 5], "max_new_tokens": [CONFIG.n_positions] * 3}
    inputs = loaded.tensors("decode", {**prompt, **state, "eos_token_id": -1, "seed": [1, 2, 3]})
    fixed = {name: value.numpy() for name, value in inputs.items()}
    alone = loaded.model.decode(**inputs)["sequences"].numpy()

    @tf.function(autograph=False)
    def twice() -> list[tf.Tensor]:
        return [
            loaded.model.decode(**{name: tf.constant(value) for name, value in fixed.items()})["sequences"]
            for _ in range(2)
        ]

    for _ in range(3):
        for sequences in twice():
            np.testing.assert_array_equal(sequences, alone)


def test_a_state_is_good_for_many_branches(loaded: Loaded) -> None:
    """No call changes the caller's cache, not even as tensors that need no copy on their way in."""

    def fresh() -> dict[str, tf.Tensor]:
        outputs = loaded.model.prefill(**loaded.tensors("prefill", prompts))
        return {name: value for name, value in outputs.items() if name != "logits"}

    prompts: dict[str, Any] = {"input_ids": matrix(PROMPTS, 0), "input_lengths": [6, 1, 5]}

    def branch(state: dict[str, tf.Tensor], seed: int) -> tuple[list[Any], bytes]:
        inputs = loaded.tensors("decode", {**prompts, "max_new_tokens": 40, "seed": seed})
        outputs = loaded.model.decode(**inputs, **state)
        found = {name: value.numpy() for name, value in outputs.items()}
        return texts(found), b"".join(found[name].tobytes() for name in sorted(state))

    state = fresh()
    before = {name: value.numpy().tobytes() for name, value in state.items()}
    branches = [branch(state, seed) for seed in (1, 2, 1)]
    assert {name: value.numpy().tobytes() for name, value in state.items()} == before
    assert branches == [branch(fresh(), seed) for seed in (1, 2, 1)]
    assert branches[0] == branches[2]
    assert branches[0][0] != branches[1][0]


def test_what_lies_behind_the_lengths_of_a_cache_does_not_matter(loaded: Loaded) -> None:
    state = state_of(loaded("prefill", PROMPTS))
    spoilt = {name: value.copy() for name, value in state.items()}
    for row, prompt in enumerate(PROMPTS):
        assert np.abs(spoilt["cache"][:, row, :, : len(prompt)]).min(axis=-1).all()
        spoilt["cache"][:, row, :, len(prompt) :] = 1e3
    for new in (0, 30):
        first, second = (loaded("decode", PROMPTS, max_new_tokens=new, seed=1, **s) for s in (state, spoilt))
        assert texts(first) == texts(second)
        np.testing.assert_array_equal(first["logits"], second["logits"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window_start": [0, 1, 0]}, "window_start: expected 0 to input_lengths - 1"),
        ({"window_start": [-1, 0, 0]}, "window_start: expected 0 to input_lengths - 1"),
        ({"window_start": [2**62, 0, 0]}, "window_start: expected 0 to input_lengths - 1"),
        ({"window_start": [0, 0]}, "window_start must be one value or one per row"),
        ({"cache_lengths": [7, 1, 5]}, "cache_lengths: expected no more than the cache has"),
        ({"cache_lengths": [-1, 1, 5]}, "cache_lengths: expected no more than the cache has"),
        ({"cache_lengths": [2**62, 1, 5]}, "cache_lengths: expected no more than the cache has"),
        ({"cache_lengths": [0, 0, 0, 0]}, "cache_lengths must be one value or one per row"),
        ({"cache": (4, 2, 3, 33, 8)}, "cache: expected as many rows as input_ids has"),
        ({"cache": (4, 4, 3, 33, 8)}, "cache: expected as many rows as input_ids has"),
        ({"cache": (4, 0, 3, 33, 8)}, "cache: expected as many rows as input_ids has"),
        ({"cache": (4, 3, 3, 5, 8)}, "cache_lengths: expected no more than the cache has"),
        ({"cache": (4, 3, 3, 34, 8)}, "cache: expected 1 to 32 positions and a spare one; found] .33"),
        ({"cache": (4, 3, 3, 1, 8), "cache_lengths": [0] * 3}, "cache: expected 1 to 32 positions"),
        ({"cache": (4, 3, 3, 0, 8), "cache_lengths": [0] * 3}, "cache: expected 1 to 32 positions"),
    ],
    ids=str,
)
def test_bad_states(loaded: Loaded, change: dict[str, Any], words: str) -> None:
    state = state_of(loaded("prefill", PROMPTS))
    for name, value in change.items():
        state[name] = np.zeros(value, np.float32) if isinstance(value, tuple) else np.array(value)
    for donate_state in (False, True):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            loaded("decode", PROMPTS, **state, donate_state=donate_state)


def address(tensor: tf.Tensor) -> int:
    """Where the memory of an eager tensor begins."""
    return int(np.frombuffer(memoryview(tensor), np.uint8).ctypes.data)


def chain(loaded: Loaded, seeds: list[int], donate: list[bool]) -> tuple[list[list[int]], list[int]]:
    """Texts of as many calls as ``donate`` has flags, 5 tokens each, and where the cache of each call lies."""
    ids, lengths = (tf.constant(x, tf.int64) for x in (matrix(PROMPTS, 0), [6, 1, 5]))
    state = loaded.model.prefill(ids, lengths)
    del state["logits"]
    places = [address(state["cache"])]
    for given_away in donate:
        options = loaded.tensors("decode", {"seed": seeds, "max_new_tokens": 5, "eos_token_id": -1})
        outputs = loaded.model.decode(ids, lengths, **state, **options, donate_state=given_away)
        ids, lengths, state = outputs["sequences"], outputs["lengths"], {name: outputs[name] for name in state}
        places.append(address(state["cache"]))
    found = {name: outputs[name].numpy() for name in ("sequences", "lengths", "logprobs")}
    return texts(found), places


@pytest.mark.parametrize("donate", [[True] * 12, [True, False, False, True] * 3], ids=["always", "now and then"])
def test_a_state_that_is_given_away_makes_the_same_texts_in_its_own_memory(loaded: Loaded, donate: list[bool]) -> None:
    """12 calls, over which windows move."""
    expected, copies = chain(loaded, [1, 2, 3], [False] * 12)
    found, places = chain(loaded, [1, 2, 3], donate)
    assert found == expected
    assert [a == b for a, b in itertools.pairwise(places)] == donate
    assert all(a != b for a, b in itertools.pairwise(copies))


def test_states_that_are_given_away_at_the_same_time_do_not_meet(loaded: Loaded) -> None:
    alone = [chain(loaded, seeds, [False] * 8)[0] for seeds in ([1, 2, 3], [4, 5, 6])]
    found: list[list[Any]] = [[], []]

    def work(i: int) -> None:
        found[i].extend(chain(loaded, [1 + 3 * i, 2 + 3 * i, 3 + 3 * i], [True] * 8)[0] for _ in range(5))

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [[alone[0]] * 5, [alone[1]] * 5]


def test_constraints_with_a_state_get_inputs_and_outputs_of_their_own() -> None:
    specs = {"kind": tf.TensorSpec([None], tf.int32), "used": tf.TensorSpec([None, 4], tf.float32)}
    state = DecodeState(CONFIG, "float32", specs)
    names = {"constraint_kind": (tf.int64, [None]), "constraint_used": (tf.float32, [None, 4])}
    assert {name: (state.specs[name].dtype, state.specs[name].shape.as_list()) for name in names} == names
    batch, capacity = 3, 7
    rows = tf.constant([5, 1, 3])
    memory = {"kind": tf.constant([1, 0, 2]), "used": tf.reshape(tf.range(12.0), [3, 4])}
    cache = tf.random.stateless_uniform([2 * CONFIG.n_layer, batch * CONFIG.n_head * (capacity + 1), 8], [1, 2])
    outputs = state.to_outputs(Context(cache, rows * 0, rows - 1, memory), tf.constant(batch))
    assert set(outputs) == set(state.specs)
    request: Any = SimpleNamespace(input_ids=tf.zeros([3, 5], tf.int32), input_lengths=rows)
    found_capacity, context = state.from_inputs({**outputs, "donate_state": tf.constant(False)}, request)
    assert found_capacity == capacity
    tf.nest.map_structure(np.testing.assert_array_equal, context, Context(cache, rows * 0, rows - 1, memory))
    with pytest.raises(tf.errors.InvalidArgumentError, match="constraint_kind needs one value per row"):
        state.from_inputs({**outputs, "constraint_kind": [1, 2], "donate_state": tf.constant(False)}, request)
