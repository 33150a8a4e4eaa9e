"""What a signature refuses: an InvalidArgumentError from inside the graph, which says what was expected and found."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.loaded import Loaded

GOOD: dict[str, Any] = {"input_ids": [[1, 2, 3, 4], [5, 6, 0, 0]], "input_lengths": [4, 2]}
NAN, INF = float("nan"), float("inf")
EMPTY = "a prompt needs at least one token"
OUTSIDE = "outside the vocabulary (0 to 59)"
LENGTHS = "input_lengths: expected 1 to the width of input_ids"
Case = tuple[dict[str, Any], str]

PROMPT: list[Case] = [
    ({"input_ids": np.zeros((2, 0))}, EMPTY),
    ({"input_ids": np.zeros((2, 0)), "input_lengths": [0, 0]}, EMPTY),
    ({"input_ids": np.zeros((0, 4)), "input_lengths": np.zeros(0)}, EMPTY),
    ({"input_ids": np.zeros((0, 0)), "input_lengths": np.zeros(0)}, EMPTY),
    ({"input_ids": [[1, 2, 3, 60], [5, 6, 0, 0]]}, OUTSIDE),
    ({"input_ids": [[1, 2, 3, -1], [5, 6, 0, 0]]}, OUTSIDE),
    ({"input_ids": [[1, 2**32, 3, 4], [5, 6, 0, 0]]}, OUTSIDE),
    ({"input_lengths": [4, 0]}, LENGTHS),
    ({"input_lengths": [5, 2]}, LENGTHS),
    ({"input_lengths": [-1, 2]}, LENGTHS),
    ({"input_lengths": [2**32 + 1, 2]}, LENGTHS),
    ({"input_lengths": [4]}, "input_lengths needs one value per row"),
    ({"input_lengths": [4, 2, 1]}, "input_lengths needs one value per row"),
    ({"input_lengths": np.zeros(0)}, "input_lengths needs one value per row"),
]


def numbers(name: str, expected: str, *bad: float) -> list[Case]:
    return [({name: value}, f"{name}: expected {expected}; found] [{value}") for value in bad]


def tokens(name: str) -> list[Case]:
    message = f"{name}: expected token ids, -1 for none, at most 59; found"
    return [
        *(({name: value}, message) for value in (60, -2, 2**32, [1, 60], [[1], [60]])),
        ({name: [[[1]]]}, f"{name} must be a list of tokens, or one per row; its rank is] [3"),
        ({name: [[1], [2], [3]]}, f"{name} must be one list or one per row; rows] [2] [lists] [3"),
    ]


SHARED: list[Case] = [
    *numbers("max_new_tokens", "0 to 100000000", -1, 100_000_001, 2**31, 2**62),
    ({"max_new_tokens": [1, 2, 3]}, "max_new_tokens must be one value or one per row; rows] [2] [values] [3"),
    ({"max_new_tokens": []}, "max_new_tokens must be one value or one per row; rows] [2] [values] [0"),
    *numbers("min_new_tokens", "0 or more", -1, 2**31),
    *numbers("repetition_penalty", "more than 0", 0, -1, NAN, INF),
    *numbers("no_repeat_ngram_size", "0 or more", -1, 2**31),
    *tokens("suppress_tokens"),
    *tokens("eos_token_id"),
]
WINDOW: list[Case] = [
    *numbers("window_tokens", "0 or more", -1, 2**31),
    ({"window_tokens": 33}, "window_tokens: expected 0 to 32, the positions of the model; found] [33"),
    *numbers("window_line_token_id", "-1 or more", -2, 2**31),
    ({"window_line_token_id": 60}, "window_line_token_id: expected a token id, at most 59, or -1 for none; found] [60"),
]
SAMPLING: list[Case] = [
    (
        {"max_new_tokens": 50_000_000},
        "rows * (width of input_ids + largest max_new_tokens): expected at most 100000000",
    ),
    *numbers("temperature", "0 or more", -0.5, NAN, INF),
    ({"temperature": [1.0, NAN]}, "temperature: expected 0 or more; found] [1 nan"),
    ({"temperature": [1.0] * 3}, "temperature must be one value or one per row; rows] [2] [values] [3"),
    *numbers("top_k", "0 or more", -1, 2**31),
    *numbers("top_p", "more than 0, at most 1", 0, 1.5, -1, NAN),
    *numbers("min_p", "0 to 1", -0.5, 1.5, NAN),
    *numbers("typical_p", "more than 0, at most 1", 0, 1.5, NAN),
    *numbers("seed", "-1 or more", -2, -(2**63)),
    *WINDOW,
]
BEAMS: list[Case] = [
    *numbers("num_beams", "1 or more", 0, -1, 2**31),
    ({"num_beams": 61}, "num_beams: expected 1 to 60; found] [61"),
    ({"num_beams": [2, 3]}, "num_beams must be the same for all rows; found] [2 3"),
    *numbers("num_return_sequences", "1 or more", 0, -1),
    ({"num_return_sequences": 5}, "num_return_sequences: expected at most num_beams,] [4] [; found] [5"),
    ({"num_return_sequences": [1, 2]}, "num_return_sequences must be the same for all rows; found] [1 2"),
    *numbers("length_penalty", "any number that float32 can hold", NAN, INF, -INF),
    *numbers("early_stopping", "0 to 2", -1, 3),
    ({"max_new_tokens": 29}, "together exceed the 32 positions of the model; beam search has no window"),
    ({"max_new_tokens": 100_000_000}, "together exceed the 32 positions of the model"),
]
CAPACITY: list[Case] = [
    *numbers("capacity", "0 to 32", -1, 33, 2**32),
    ({"capacity": [2, 3]}, "capacity must be the same for all rows; found] [2 3"),
    ({"capacity": [2] * 3}, "capacity must be one value or one per row; rows] [2] [values] [3"),
]
TABLE = {
    "generate": [*PROMPT, *SHARED, *SAMPLING],
    "decode": [*PROMPT, *SHARED, *SAMPLING],
    "beam_search": [*PROMPT, *SHARED, *BEAMS],
    "prefill": [*PROMPT, *WINDOW, *CAPACITY],
    "score": [*PROMPT, ({"input_ids": np.ones((2, 33)), "input_lengths": [1, 33]}, "the model has 32 positions")],
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in TABLE.items() for case in cases], ids=str)
def test_bad_requests(loaded: Loaded, name: str, case: Case) -> None:
    """At once, too: none of them allocates what it asks for."""
    change, words = case
    request = {**GOOD, **change}
    if name == "decode":
        state = loaded.call("prefill", **GOOD)
        del state["logits"]
        request |= state
    loaded.call(name, **GOOD | ({} if name != "decode" else state))  # the rest of the request is good
    started = time.monotonic()
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(words)):
        loaded.call(name, **request)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("name", TABLE)
def test_wrong_types_and_names(loaded: Loaded, name: str) -> None:
    """TensorFlow's own errors, which name what was expected.

    Of the signatures only: an attached function that TensorFlow calls with a wrong name or type keeps a lock of its own
    (``polymorphic_function.Function._call`` acquires it and then raises), and its next call in another thread waits for
    ever. That would be the test of threads, which uses the same model.
    """
    ids = tf.constant(GOOD["input_ids"], tf.int64)
    signature = loaded.model.signatures[name]
    for inputs in ({"input_ids": ids}, {"input_ids": tf.cast(ids, tf.float32)}, {"inputs": ids}):
        with pytest.raises((TypeError, ValueError), match="input_"):
            signature(**inputs)
