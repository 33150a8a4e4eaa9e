"""A model in training as a checkpoint: what is trained comes from memory, the rest from the base, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.checkpoint import Checkpoint
from convert.conversion import to_checkpoint
from convert.formats.registry import open_checkpoint
from convert.formats.rows import ROWS
from convert.savedmodel_conversion import to_savedmodel
from convert.tensors import BFLOAT16
from support.errors import CheckpointError
from tests.helpers.in_memory import InMemory
from tf_model.config import UER, GPT2Config
from training.model.lora import Adapters, LoraConfig
from training.model.new_model import NewModel
from training.model.trained_checkpoint import TrainedCheckpoint
from training.model.weights import freeze, load_gpt2

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=2, n_head=6)
"""What every format can hold."""
UER_CONFIG = GPT2Config(48, 16, 24, 2, 6, layer_norm=UER, layer_norm_epsilon=1e-6)
FLOAT32 = np.dtype(np.float32)
OPTIONS: dict[str, dict[str, Any]] = {
    "savedmodel": {},
    "huggingface": {},
    "openai-tf1": {},
    "uer": {},
    "megatron-lm": {"tensor_parallel": 3},
    "megatron": {"tensor_parallel": 2},
}
WITHOUT_HEADS = "megatron"
"""The format whose files do not say how many heads there are."""


class Base(InMemory):
    """A float16 checkpoint, as CPM's are."""

    def __init__(self, config: GPT2Config = CONFIG) -> None:
        super().__init__(config)
        self.weights = {name: (value * 0.02).astype(np.float16) for name, value in self.weights.items()}
        self.dtypes = {name: value.dtype for name, value in self.weights.items()}


def trained(base: Checkpoint, dtype: str = "float32") -> tuple[TrainedCheckpoint, dict[str, np.ndarray]]:
    """Return a checkpoint whose last block and layer norm are trained, and its weights."""
    gpt2 = load_gpt2(base, dtype)
    freeze(gpt2, ["embeddings", "blocks:0"])
    weights = {name: base.read(name, FLOAT32) for name in base.config.tensor_shapes()}
    rng = np.random.default_rng(5)
    for name, variable in gpt2.named_variables().items():
        if name.startswith(("h.1.", "ln_f.")):
            weights[name] = rng.normal(size=variable.shape).astype(np.float32)
            variable.assign(weights[name])
    return TrainedCheckpoint(base, gpt2), weights


def with_adapters(base: Checkpoint, dtype: str = "float32") -> tuple[TrainedCheckpoint, dict[str, np.ndarray]]:
    """Return a checkpoint with two adapters in each block, and its weights by the formula in float64."""
    gpt2 = load_gpt2(base, dtype)
    adapters = Adapters(gpt2, LoraConfig(3, alpha=6.0, targets=("attn.c_attn", "mlp.c_proj")))
    weights = {name: base.read(name, FLOAT32) for name in base.config.tensor_shapes()}
    rng = np.random.default_rng(5)
    for block in range(base.config.n_layer):
        for target in ("attn.c_attn", "mlp.c_proj"):
            pair = adapters.pair(block, target)
            assert pair is not None
            a, b = (rng.normal(size=variable.shape) for variable in pair)
            pair[0].assign(a)
            pair[1].assign(b)
            weights[f"h.{block}.{target}.weight"] = weights[f"h.{block}.{target}.weight"] + 2.0 * (b @ a)
    return TrainedCheckpoint(base, gpt2, adapters), weights


def written(checkpoint: Checkpoint, format: str, folder: Path) -> Checkpoint:
    """Write a checkpoint as a user does who asks for no dtype, and open what is there."""
    if format == "savedmodel":
        to_savedmodel(checkpoint, folder, signatures=("logits",))
    else:
        to_checkpoint(checkpoint, folder, format=format, options=OPTIONS[format])
    return open_checkpoint(folder, heads=checkpoint.config.n_head if format == WITHOUT_HEADS else None)


def assert_weights(checkpoint: Checkpoint, weights: dict[str, np.ndarray], atol: float = 0) -> None:
    for name, value in weights.items():
        assert np.abs(checkpoint.read(name, FLOAT32) - value).max() <= atol, name


def test_every_format_that_is_written_is_in_these_tests() -> None:
    assert {row.name for row in ROWS if row.name == "savedmodel" or row.load().writer is not None} == OPTIONS.keys()


@pytest.mark.parametrize("format", OPTIONS)
def test_every_format_gets_the_trained_tensors_and_the_others_of_the_base_as_float32(
    format: str, tmp_path: Path
) -> None:
    checkpoint, weights = trained(Base(UER_CONFIG if format == "uer" else CONFIG))
    found = written(checkpoint, format, tmp_path / "copy")
    assert found.config == checkpoint.config
    assert_weights(found, weights)
    assert set(found.dtypes.values()) == {FLOAT32}


@pytest.mark.parametrize("format", OPTIONS)
def test_every_format_gets_merged_adapters(format: str, tmp_path: Path) -> None:
    checkpoint, weights = with_adapters(Base(UER_CONFIG if format == "uer" else CONFIG))
    assert_weights(written(checkpoint, format, tmp_path / "copy"), weights, atol=1e-5)


def test_a_savedmodel_of_a_uer_model_keeps_uers_layer_norms(tmp_path: Path) -> None:
    checkpoint, weights = trained(Base(UER_CONFIG))
    found = written(checkpoint, "savedmodel", tmp_path / "copy")
    assert found.config == UER_CONFIG
    assert_weights(found, weights)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_adapters_over_small_weights_in_memory_are_merged_with_the_base_in_full_precision(dtype: str) -> None:
    checkpoint, weights = with_adapters(Base(), dtype)
    assert_weights(checkpoint, weights, atol=1e-5)


def test_a_tensor_is_read_into_the_given_memory_in_the_type_asked_for() -> None:
    checkpoint, weights = with_adapters(NewModel(CONFIG, seed=3))
    buffer = np.empty(4 * 24 * 96, np.uint8)
    for name, value in weights.items():
        for dtype in (FLOAT32, BFLOAT16, np.dtype(np.float16)):
            found = checkpoint.read(name, dtype, buffer)
            assert np.shares_memory(found, buffer)
            assert (found.dtype, found.shape) == (dtype, value.shape)
            assert np.allclose(found.astype(np.float32), value, rtol=8e-3, atol=1e-3), name


def test_what_the_optimizer_changes_later_is_read_then() -> None:
    base = Base()
    gpt2 = load_gpt2(base)
    checkpoint = TrainedCheckpoint(base, gpt2)
    gpt2.ln_f.gamma.assign(np.full(24, 3.0))
    assert np.array_equal(checkpoint.read("ln_f.weight", FLOAT32), np.full(24, 3.0))


def test_the_base_lends_tokens_tokenizer_and_files_but_cannot_be_opened_in_place_of_the_result(tmp_path: Path) -> None:
    written(Base(), "huggingface", tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    checkpoint, _ = trained(base)
    assert (checkpoint.tokens, checkpoint.tokenizer) == (base.tokens, base.tokenizer)
    assert checkpoint.info.files == base.info.files
    assert checkpoint.info.source is None
    assert checkpoint.info.is_changed


def test_a_manifest_and_a_model_card_say_what_was_trained(tmp_path: Path) -> None:
    written(Base(), "huggingface", tmp_path / "base")
    checkpoint, _ = with_adapters(open_checkpoint(tmp_path / "base"))
    to_savedmodel(checkpoint, tmp_path / "copy", signatures=("logits",))
    manifest = json.loads((tmp_path / "copy" / "assets.extra" / "manifest.json").read_text())
    assert manifest["source"]["trained"] == "LoRA adapters of rank 3"
    card = " ".join((tmp_path / "copy" / "assets.extra" / "README.md").read_text("utf-8").split())
    assert "a huggingface checkpoint of 1 file, trained further (LoRA adapters of rank 3), by" in card


def test_a_model_from_nothing_has_no_base_on_disk(tmp_path: Path) -> None:
    base = NewModel(CONFIG, seed=3)
    gpt2 = load_gpt2(base)
    checkpoint = TrainedCheckpoint(base, gpt2)
    weights = {name: variable.numpy() for name, variable in gpt2.canonical_variables().items()}
    assert_weights(written(checkpoint, "savedmodel", tmp_path / "copy"), weights)
    assert "random weights, trained further (all weights), by" in (
        (tmp_path / "copy" / "assets.extra" / "README.md").read_text("utf-8").replace("\n", " ")
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_tensor_is_one_line_and_leaves_nothing(value: float, tmp_path: Path) -> None:
    base = Base()
    gpt2 = load_gpt2(base)
    gpt2.h[1].mlp.c_fc.bias.assign([value] * 96)
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.bias: 96 of 96 values are NaN or infinite") as error:
        to_checkpoint(TrainedCheckpoint(base, gpt2), tmp_path / "copy", format="huggingface")
    assert "training diverged" in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_trained_value_that_float16_cannot_hold_is_one_line() -> None:
    base = Base()
    gpt2 = load_gpt2(base)
    gpt2.ln_f.gamma.assign(np.full(24, 1e5))
    with pytest.raises(CheckpointError, match=r"float16 cannot hold 24 of 24 values .*: convert to float32"):
        TrainedCheckpoint(base, gpt2).read("ln_f.weight", np.dtype(np.float16))
