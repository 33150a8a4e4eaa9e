"""``to_checkpoint`` as a function: any ``Checkpoint`` in, a result out, nothing printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.conversion import to_checkpoint
from convert.formats.registry import CheckpointSpec, open_checkpoint
from convert.formats.rows import ROWS
from convert.output.manifest import check
from support.errors import ConvertError
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.in_memory import InMemory, required_options
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=60, n_positions=16, n_embd=24, n_layer=2, n_head=4)
WRITTEN = {row.name: row for row in ROWS if row.load().writer is not None}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_megatron(tmp_path / "shards", random_state(CONFIG, np.random.default_rng(1)), 2, dtype=torch.float16)
    return tmp_path / "shards"


@pytest.mark.parametrize("format", WRITTEN)
def test_a_model_in_memory_can_be_written_in_every_format(format: str, tmp_path: Path) -> None:
    model = InMemory(CONFIG)
    result = to_checkpoint(model, tmp_path / "new", format=format, options=required_options(format))
    found = open_checkpoint(tmp_path / "new", heads=None if format != "megatron" else CONFIG.n_head)
    assert (found.info.format, result.format, result.parameters) == (format, format, CONFIG.parameter_count)
    for name, value in model.weights.items():
        if format != "uer" or (".ln_" not in name and "ln_f" not in name):
            assert np.array_equal(found.read(name, value.dtype), value), name
    assert check(tmp_path / "new").intact


def test_an_opened_checkpoint_is_written_without_naming_its_path_again(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = open_checkpoint(shards, heads=4)
    done = []
    result = to_checkpoint(
        checkpoint, tmp_path / "new", format="huggingface", dtype="bfloat16", progress=lambda *call: done.append(call)
    )
    assert (result.folder, result.dtypes, result.format) == (tmp_path / "new", ("bfloat16",), "huggingface")
    assert [file.name for file in result.files] == ["model.safetensors"]
    assert result.nbytes == sum(file.stat().st_size for file in result.files)
    assert result.summary().startswith(f"{CONFIG.parameter_count:,} parameters as bfloat16 in 1 file, ")
    assert json.loads(json.dumps(result.to_dict()))["folder"] == str(tmp_path / "new")
    assert [call[0] for call in done] == ["convert"] * (1 + len(checkpoint.dtypes))
    assert (done[0][1], done[-1][1]) == (0, done[-1][2])
    assert any("left out: " in note for note in result.notes)
    assert capfd.readouterr() == ("", "")


def test_a_result_never_replaces_what_it_is_made_of(shards: Path) -> None:
    checkpoint = open_checkpoint(shards, heads=4)
    for folder in (shards, shards / "80000", shards.parent):
        with pytest.raises(ConvertError, match="choose another --output"):
            to_checkpoint(checkpoint, folder, format="uer", overwrite=True)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such format": ({"format": "onnx"}, "'onnx': not a format: expected one of megatron, megatron-lm, huggingface"),
    "a format that another function writes": ({"format": "savedmodel"}, "use to_savedmodel"),
    "no such type": ({"format": "uer", "dtype": "int4"}, "dtype 'int4': expected one of float16, bfloat16, float32"),
    "an option that is missing": ({"format": "cpm"}, "--tensor-parallel: the format megatron requires it"),
    "an option of another format": (
        {"format": "uer", "options": {"tensor_parallel": 2}},
        "'tensor_parallel': not an option of the format uer: possible: uer_layer_norm",
    ),
    "an option of another type": (
        {"format": "megatron", "options": {"tensor_parallel": "2"}},
        "--tensor-parallel '2': expected a whole number",
    ),
    "an option out of its range": (
        {"format": "megatron-lm", "options": {"tensor_parallel": 2, "make_vocab_size_divisible_by": 0}},
        "--make-vocab-size-divisible-by 0: expected a number from 1 to 1048576",
    ),
    "an option that is not one of the choices": (
        {"format": "megatron-lm", "options": {"tensor_parallel": 2, "checkpoint_version": "4.0"}},
        "--checkpoint-version '4.0': expected one of 0, 1.0, 2.0, 3.0",
    ),
    "a tokenizer for a format without a place for one": (
        {"format": "megatron", "options": {"tensor_parallel": 1}, "tokenizer": "somewhere"},
        "somewhere: the format megatron has no place for a tokenizer",
    ),
    "ranks that do not divide the heads": ({"format": "cpm", "options": {"tensor_parallel": 3}}, "heads 4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_one_line_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    arguments, words = WRONG[case]
    with pytest.raises(ConvertError) as error:
        to_checkpoint(InMemory(CONFIG), tmp_path / "new" / "folder", **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_spec_opens_the_same_checkpoint_in_another_process(shards: Path) -> None:
    spec = CheckpointSpec(shards, 4, "80000", "cpm")
    again = CheckpointSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    checkpoint = again.open()
    assert (checkpoint.config, checkpoint.info.source) == (CONFIG, spec)
