"""Another program's generation_config.json: what transformers means by its values, and what is said of the others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.formats.registry import open_checkpoint
from exports.generation_config import ALL_OPTIONS, NAMES, resolve
from exports.generation_defaults import select_defaults
from tests.helpers.huggingface import random_model
from tests.helpers.light import main
from tf_model.config import GPT2Config

PATH = Path("generation_config.json")
SIZES = GPT2Config(vocab_size=90, n_positions=24, n_embd=8, n_layer=1, n_head=1)
AS_THEY_ARE: list[dict[str, Any]] = [
    {"do_sample": True, "top_p": 0.85, "top_k": 30, "temperature": 0.6},
    {"do_sample": True, "typical_p": 0.7, "repetition_penalty": 1.3, "min_p": 0.05},
    {"do_sample": False, "max_new_tokens": 12, "no_repeat_ngram_size": 3},
    {"num_beams": 3, "early_stopping": True, "length_penalty": 0.5, "num_return_sequences": 2},
    {"max_length": 20, "eos_token_id": [7, 9], "pad_token_id": 0},
    {"top_k": None, "temperature": None, "early_stopping": None, "no_repeat_ngram_size": None},
    {"suppress_tokens": [3, 4], "min_new_tokens": 2, "temperature": 1, "transformers_version": "5.1.0"},
]
CHANGED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no nucleus": ({"top_p": 0}, {"top_p": 1.0}, "top_p 0 is read as 1.0 (off)"),
    "more than the nucleus": ({"top_p": 1.5}, {"top_p": 1.0}, "top_p 1.5 is read as 1.0 (off)"),
    "nothing typical": ({"typical_p": 0.0}, {"typical_p": 1.0}, "typical_p 0.0 is read as 1.0 (off)"),
    "a count with a point": ({"top_k": 50.0}, {"top_k": 50}, "top_k 50.0 is read as 50"),
    "no count": ({"top_k": -1}, {"top_k": 0}, "top_k -1 is read as 0 (off)"),
    "no penalty": ({"repetition_penalty": 0}, {"repetition_penalty": 1.0}, "repetition_penalty 0 is read as 1.0 (off)"),
    "no beams": ({"num_beams": 0}, {"num_beams": 1}, "num_beams 0 is read as 1 (off)"),
    "beams with a point": ({"num_beams": 1.0}, {"num_beams": 1}, "num_beams 1.0 is read as 1"),
    "no repeats": ({"no_repeat_ngram_size": -1}, {"no_repeat_ngram_size": 0}, "no_repeat_ngram_size -1 is read as 0"),
    "sampling by number": ({"do_sample": 0}, {"do_sample": False}, "do_sample 0 is read as false"),
    "sampling, too": ({"do_sample": 1}, {"do_sample": True}, "do_sample 1 is read as true"),
    "ends with points": ({"eos_token_id": [7.0, 8]}, {"eos_token_id": [7, 8]}, "[7.0, 8] is read as [7, 8]"),
    "a hot text": ({"temperature": "hot"}, {}, "temperature is left out: 'hot': expected a number"),
    "below zero": ({"temperature": -0.5}, {}, "temperature is left out: -0.5: expected 0 or more"),
    "not a number": ({"top_p": math.nan}, {}, "top_p is left out: nan: expected"),
    "without end": ({"top_k": math.inf}, {}, "top_k is left out: inf: expected a whole number"),
    "half a token": ({"max_new_tokens": 2.5}, {}, "max_new_tokens is left out: 2.5: expected a whole number"),
    "no limit": ({"max_length": -1}, {}, "max_length is left out: -1: expected 1 to"),
    "a list": ({"temperature": [0.7]}, {}, "temperature is left out: [0.7]: expected a number"),
    "a flag for a number": ({"top_k": True}, {}, "top_k is left out: True: expected a whole number"),
    "a word for a flag": ({"do_sample": "yes"}, {}, "do_sample is left out: 'yes': expected True or False"),
    "a piece for an id": ({"eos_token_id": "[SEP]"}, {}, "eos_token_id is left out: '[SEP]': expected"),
    "ids of another vocabulary": ({"suppress_tokens": [5, 50256]}, {"suppress_tokens": [5]}, "[5, 50256] is"),
    "an id of another vocabulary": ({"eos_token_id": 50256}, {}, "50256 is outside the vocabulary (0 to 89)"),
    "more texts than beams": (
        {"num_beams": 2, "num_return_sequences": 5}, {"num_beams": 2}, "sequences 5 is left out: 2 beams find",
    ),
    "beams that sample": (
        {"num_beams": 2, "do_sample": True}, {"num_beams": 2, "do_sample": True}, "do_sample has no effect",
    ),
    "what is not there": ({"min_length": 9, "bad_words_ids": [[3]]}, {}, "min_length is not used; bad_words_ids"),
}  # fmt: skip


@pytest.mark.parametrize("values", AS_THEY_ARE, ids=[", ".join(values) for values in AS_THEY_ARE])
def test_values_of_transformers_are_taken_as_they_are(values: dict[str, Any]) -> None:
    theirs = transformers.GenerationConfig(**values)
    defaults, notes = select_defaults(values, PATH, SIZES.vocab_size)
    assert not notes
    for name, value in defaults.items():
        assert value == getattr(theirs, name)
    ours = resolve({}, defaults, SIZES).values
    for name in ("top_p", "top_k", "typical_p", "repetition_penalty", "num_beams", "no_repeat_ngram_size"):
        said = getattr(theirs, name)
        assert ours[name] == (ALL_OPTIONS[name].default if said is None else said)


@pytest.mark.parametrize("case", CHANGED)
def test_a_value_that_the_graph_does_not_take_is_changed_with_a_note(case: str) -> None:
    values, expected, words = CHANGED[case]
    defaults, notes = select_defaults(values, PATH, SIZES.vocab_size)
    assert defaults == expected
    assert {name: type(value) for name, value in defaults.items()} == {n: type(v) for n, v in expected.items()}
    (note,) = notes
    assert note.startswith("generation_config.json: ")
    assert words in note
    assert len(note) < 400
    resolve({}, defaults, SIZES)


@pytest.mark.parametrize("off", [{"top_k": -1}, {"top_p": 1.5}, {"repetition_penalty": 0}, {"typical_p": 2}])
def test_off_changes_no_probability(off: dict[str, Any]) -> None:
    """As transformers' own processors, of the value that is off there."""
    (name, _), scores, ids = next(iter(off.items())), torch.randn(1, 90), torch.tensor([[3, 5]])
    defaults, _ = select_defaults(off, PATH)
    processor = {
        "top_k": lambda x: transformers.TopKLogitsWarper(x or 90),
        "top_p": transformers.TopPLogitsWarper,
        "repetition_penalty": lambda x: transformers.RepetitionPenaltyLogitsProcessor(float(x)),
        "typical_p": lambda x: transformers.TypicalLogitsWarper(x - 1e-12),
    }[name](defaults[name])
    np.testing.assert_allclose(processor(ids, scores).softmax(-1), scores.softmax(-1), atol=1e-6)


JUNK = st.none() | st.booleans() | st.integers(-3, 200) | st.floats() | st.text(max_size=3) | st.lists(
    st.integers(-2, 100) | st.floats() | st.text(max_size=2), max_size=3
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(values=st.dictionaries(st.sampled_from([*NAMES, "min_length", "stop_strings", "zzz"]), JUNK, max_size=5))
def test_whatever_a_file_says_the_weights_can_be_used(values: dict[str, Any]) -> None:
    defaults, notes = select_defaults(values, PATH, SIZES.vocab_size)
    config = resolve({}, defaults)
    tokens = [*config.values["eos_token_id"], *config.values["suppress_tokens"]]
    assert max([-1, *tokens]) < SIZES.vocab_size
    assert len(notes) <= 1
    assert all("\n" not in note for note in notes)


def test_a_file_of_nonsense_does_not_block_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model().save_pretrained(tmp_path / "theirs")
    said = {"top_p": 0, "top_k": 50.0, "temperature": "warm", "eos_token_id": [11.0, "x"], "do_sample": 1}
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(said))
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert checkpoint.tokens is not None
    assert checkpoint.tokens.eos_token_id == 11
    assert checkpoint.tokens.defaults == {"top_p": 1.0, "top_k": 50, "do_sample": True}
    arguments = ["to-huggingface", "--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]
    assert main(arguments) == 0
    assert "note: " in (err := capsys.readouterr().err)
    assert "top_p 0 is read as 1.0 (off); top_k 50.0 is read as 50; temperature is left out: 'warm'" in err
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "ours").top_k == 50
