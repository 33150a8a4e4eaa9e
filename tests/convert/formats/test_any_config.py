"""Whatever JSON a configuration holds: fields of a GPT-2, or one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.formats import huggingface_config as huggingface
from convert.formats import uer_config as uer
from support.errors import CheckpointError
from tf_model.config import ConfigError, GPT2Config

SIZES = {"vocab_size": 96, "n_positions": 24, "n_embd": 48, "n_layer": 3, "n_inner": 192}
HUGGING_FACE = sorted({*huggingface.USED, *huggingface.MUST_BE_OFF, *huggingface.GENERATION, "x"})
UER = sorted({*uer.USED, *uer.MUST_BE, *uer.IRRELEVANT, "x"})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
USUAL = st.sampled_from([0, 1, 4, 12, 48, 1e-5, "gelu", "gelu_fast", "normal", "lm", "pre", ["word", "pos"], "gpt2"])
VALUES = USUAL | st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4)
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _check(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error).removeprefix("config.json: ")) < 300


@QUICK
@given(values=st.dictionaries(st.sampled_from(HUGGING_FACE), VALUES, max_size=5))
def test_any_config_of_hugging_face(values: dict[str, Any]) -> None:
    try:
        said = huggingface.read_fields(Path("config.json"), values, SIZES, has_heads=False)
        GPT2Config(**{**SIZES, **said.values}, n_head=said.heads or 4)
    except (CheckpointError, ConfigError) as error:
        _check(error)
    else:
        assert all("\n" not in note for note in said.notes)


@QUICK
@given(values=st.dictionaries(st.sampled_from(UER), VALUES, max_size=5))
def test_any_config_of_uer(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    try:
        said = uer.read_options(tmp_path / "config.json", SIZES, "uer")
        GPT2Config(**SIZES, n_head=said.heads or 4, **said.fields)
    except (CheckpointError, ConfigError) as error:
        _check(Exception(str(error).replace(str(tmp_path), "")))
    else:
        assert all("\n" not in note for note in said.notes)


@pytest.mark.parametrize("table", [huggingface.USED, huggingface.GENERATION, uer.MUST_BE])
def test_no_key_is_in_two_tables(table: Any) -> None:
    reasons = {key for keys in huggingface.REASONS.values() for key in keys} | uer.IRRELEVANT.keys()
    assert not set(table) & reasons
