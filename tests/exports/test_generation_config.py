"""Options: names, values, defaults, contradictions; nothing is ever raised but ``OptionError``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from exports.generation_config import NAMES, GenerationConfig, OptionError, read_defaults, resolve
from tf_model.config import GPT2Config

SIZES = GPT2Config(vocab_size=100, n_positions=16, n_embd=8, n_layer=1, n_head=1)


def test_nothing_given() -> None:
    config = resolve({}, {})
    assert (config.values["temperature"], config.values["top_p"], config.values["top_k"]) == (1.0, 1.0, 0)
    assert (config.values["max_new_tokens"], config.max_length, config.truncate, config.beams) == (20, None, (), False)


def test_given_over_defaults_and_none_is_the_default() -> None:
    defaults = {"temperature": 0.9, "top_p": 0.8, "max_new_tokens": 100}
    config = resolve({"top_p": 0.5, "temperature": None}, defaults)
    assert [config.values[name] for name in ("temperature", "top_p", "max_new_tokens")] == [0.9, 0.5, 100]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("top-p", "top_p"),
        ("max_tokens", "max_new_tokens"),
        ("Temperature", "temperature"),
        ("eos_token", "eos_token_id"),
        ("beams", "num_beams"),
    ],
)
def test_a_misspelt_option(wrong: str, right: str) -> None:
    with pytest.raises(OptionError, match=f"unknown option '{wrong}': did you mean '{right}'"):
        resolve({wrong: 1}, {})


def test_a_name_like_no_other() -> None:
    with pytest.raises(OptionError, match=r"unknown option 'zzz': known are do_sample, early_stopping, .*top_k"):
        resolve({"zzz": 1}, {})


BAD: list[tuple[str, Any, str]] = [
    ("max_new_tokens", -1, "-1: expected 0 to 100000000"),
    ("max_new_tokens", 10**30, "expected 0 to"),
    ("max_new_tokens", 2.0, "2.0: expected a whole number"),
    ("max_new_tokens", "5", "'5': expected a whole number"),
    ("max_new_tokens", True, "True: expected a whole number"),
    ("max_length", 0, "expected 1 to"),
    ("temperature", -0.1, "expected 0 or more"),
    ("temperature", math.nan, "expected 0 or more"),
    ("temperature", math.inf, "expected 0 or more"),
    ("temperature", 1e39, "expected 0 or more"),  # infinite in float32
    ("temperature", 10**400, "expected 0 or more"),
    ("temperature", "hot", "'hot': expected a number"),
    ("top_p", 0, "more than 0, at most 1"),
    ("top_p", 1e-50, "more than 0, at most 1"),  # 0 in float32
    ("typical_p", 1e-39, "more than 0, at most 1"),  # not 0 in float32, but in TensorFlow's arithmetic
    ("top_p", 1 + 1e-12, "more than 0, at most 1"),  # 1 in float32
    ("typical_p", 1.5, "more than 0, at most 1"),
    ("min_p", -1, "0 to 1"),
    ("repetition_penalty", 1e-50, "more than 0"),
    ("top_k", 10**5000, "expected 0 or more"),
    ("top_k", 2**31, "expected 0 or more"),
    ("num_beams", 0, "1 or more"),
    ("num_return_sequences", 0, "1 or more"),
    ("seed", -2, "-1 or more"),
    ("seed", 2**63, "-1 or more"),
    ("seed", [1, -2], "-1 or more"),
    ("eos_token_id", "7", "'7': expected a whole number"),
    ("eos_token_id", b"7", "expected a whole number"),
    ("eos_token_id", [[7], [8]], "expected a whole number"),
    ("eos_token_id", 100, r"outside the vocabulary \(0 to 99\)"),
    ("suppress_tokens", [3, 100], "outside the vocabulary"),
    ("window_line_token_id", 100, "outside the vocabulary"),
    ("window_tokens", 17, "the model has 16 positions"),
    ("num_beams", 101, "the model has 100 tokens"),
    ("do_sample", 1, "expected True or False"),
    ("truncate", 5, "expected a text, or several"),
    ("truncate", "", "expected a text, or several"),
    ("truncate", [""], "expected a text, or several"),
    ("truncate", {"a": 1}, "expected a text, or several"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD, ids=[f"{n}-{bad[0]}" for n, bad in enumerate(BAD)])
def test_bad_values(name: str, value: Any, words: str) -> None:
    with pytest.raises(OptionError, match=f"^{name}.*{words}") as error:
        resolve({name: value}, {}, SIZES)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_length": 5, "max_new_tokens": 5}, "exclude each other"),
        ({"num_beams": 2, "temperature": 0.5}, "does not sample: leave out temperature$"),
        ({"num_beams": np.int64(2), "do_sample": True}, "does not sample: leave out do_sample"),
        ({"length_penalty": 2.0}, "give num_beams"),
        ({"num_beams": 1, "early_stopping": True}, "give num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "no more than that"),
        ({"num_beams": 2, "early_stopping": "always"}, "'always': expected False, True or 'never'"),
        ({"num_beams": 2, "length_penalty": -math.inf}, "float32"),
        ({"do_sample": False, "temperature": 0.5}, "leave out one"),
    ],
)
def test_contradictions(given: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        resolve(given, {}, SIZES)


def test_beams_by_default() -> None:
    """What contradicts the model's default is not silently without effect."""
    defaults = {"num_beams": 4, "length_penalty": 0.5}
    with pytest.raises(OptionError, match="leave out top_k, or set num_beams to 1"):
        resolve({"top_k": 5}, defaults)
    assert resolve({"length_penalty": 2.0}, defaults).values["length_penalty"] == 2.0
    assert resolve({"top_k": 5, "num_beams": 1}, defaults).inputs()["top_k"] == 5


def test_what_the_graph_is_given() -> None:
    sampling, beams = resolve({"seed": 3}, {}).inputs(), resolve({"num_beams": 2}, {}).inputs()
    assert "num_beams" not in sampling
    assert not {"seed", "temperature", "window_tokens"} & beams.keys()
    assert beams["num_beams"] == 2


def test_greedy() -> None:
    assert resolve({"do_sample": False}, {"temperature": 0.9}).values["temperature"] == 0
    assert resolve({}, {"do_sample": False, "temperature": 0.9}).values["temperature"] == 0
    assert resolve({"temperature": 0.5}, {"do_sample": False}).values["temperature"] == 0.5


def test_lengths() -> None:
    assert resolve({"max_length": 7}, {"max_new_tokens": 5}).max_length == 7
    assert resolve({"max_new_tokens": 7}, {"max_length": 5}).max_length is None
    both = resolve({}, {"max_length": 20, "max_new_tokens": 5})  # as in transformers, max_new_tokens counts
    assert (both.max_length, both.values["max_new_tokens"]) == (None, 5)


def test_numpy_and_lists() -> None:
    config = resolve(
        {"top_k": np.int32(5), "temperature": np.float32(0.5), "eos_token_id": np.array([7, 8]),
         "suppress_tokens": range(3), "seed": np.array([1, 2]), "do_sample": np.True_, "truncate": ("a", "b")}, {}
    )  # fmt: skip
    assert config.values["eos_token_id"] == (7, 8)
    assert config.values["suppress_tokens"] == (0, 1, 2)
    assert (config.seeds, config.truncate) == ((1, 2), ("a", "b"))
    assert type(config.values["top_k"]) is int
    assert resolve({"eos_token_id": -1}, {}).values["eos_token_id"] == (-1,)
    assert resolve({"num_beams": 2, "early_stopping": "never"}, {}).values["early_stopping"] == 2
    assert resolve({"num_beams": 2, "early_stopping": True}, {}).values["early_stopping"] == 1


def write(folder: Path, content: Any) -> Path:
    path = folder / "generation_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_transformers_file(tmp_path: Path) -> None:
    """With its 60 fields, most of them null or without meaning here, and options that have no effect."""
    full = transformers.GenerationConfig(do_sample=True, top_k=40, eos_token_id=[7, 8], max_new_tokens=9).to_dict()
    old = {"do_sample": False, "temperature": 1.0, "num_beams": 1, "length_penalty": 1.0, "early_stopping": False,
           "max_length": 20, "max_new_tokens": 5, "pad_token_id": 0, "transformers_version": "4.28.0"}  # fmt: skip
    defaults = read_defaults(write(tmp_path, json.dumps(full, default=str)))
    assert None not in defaults.values()
    config = resolve({}, defaults)
    assert [config.values[k] for k in ("top_k", "eos_token_id", "max_new_tokens")] == [40, (7, 8), 9]
    assert resolve({}, read_defaults(write(tmp_path, old))).values["temperature"] == 0
    transformers.GenerationConfig(top_p=0.5, do_sample=True).save_pretrained(tmp_path)
    assert resolve({}, read_defaults(tmp_path / "generation_config.json")).values["top_p"] == 0.5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ({"top_p": 2}, "top_p is 2: expected"),
        ({"top_k": 50.0}, "expected a whole number"),
        ({"truncate": 5}, "expected a text"),
        ({"seed": [1, 2]}, "expected a whole number"),
        ({"temperature": math.nan}, "expected 0 or more"),
    ],
)
def test_bad_files(content: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    with pytest.raises(OptionError, match=words) as error:
        read_defaults(path)
    assert str(error.value).startswith(f"{path}: ")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        read_defaults(tmp_path / "generation_config.json")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match="UTF-16 text"):
        read_defaults(tmp_path / "bytes")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=3)
SMALL = st.integers(-2, 20) | st.floats(-0.5, 1.5)
ANYTHING = SMALL | SCALARS | st.lists(SMALL | SCALARS, max_size=3) | st.dictionaries(st.text(), SCALARS, max_size=2)
ARRAYS = st.lists(st.integers(-5, 200), max_size=3).map(np.array) | st.floats(width=32).map(np.float32)
OPTIONS = st.dictionaries(st.sampled_from(NAMES), ANYTHING | ARRAYS, max_size=4)


@settings(max_examples=150, deadline=None)
@given(options=OPTIONS, defaults=OPTIONS)
def test_any_values(options: dict[str, Any], defaults: dict[str, Any]) -> None:
    """An error of one line, or values that the graph takes: finite in float32, whole numbers in range."""
    try:
        config = resolve(options, {k: v for k, v in defaults.items() if not isinstance(v, np.ndarray)}, SIZES)
    except OptionError:
        return
    assert isinstance(config, GenerationConfig)
    for name, value in config.values.items():
        for number in value if isinstance(value, tuple) else (value,):
            assert type(number) in (int, float), name
            assert np.isfinite(np.float32(number))
    assert 0 < np.float32(config.values["top_p"]) <= 1
    assert max((-1, *config.values["eos_token_id"], *config.values["suppress_tokens"])) < SIZES.vocab_size


@given(name=st.text(max_size=20), value=SCALARS)
def test_any_name(name: str, value: Any) -> None:
    if name not in NAMES:
        with pytest.raises(OptionError, match="unknown option"):
            resolve({name: value}, {})
