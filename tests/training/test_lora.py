"""LoRA against peft, which computes in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from convert.checkpoint import Checkpoint
from convert.formats.registry import open_checkpoint
from convert.savedmodel_conversion import to_savedmodel
from convert.tensors import BFLOAT16
from support.errors import UserError
from tests.helpers.huggingface import IDS, logits_of, model_of, random_model
from tests.helpers.in_memory import InMemory
from tf_model.config import GPT2Config
from training.model.lora import Adapters, LoraConfig
from training.model.trained_checkpoint import TrainedCheckpoint
from training.model.trained_gpt2 import TrainedGPT2
from training.model.weights import load_gpt2

ALL = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
LORA = LoraConfig(3, alpha=5.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    random_model(n_layer=2, n_inner=40).save_pretrained(folder)
    return folder


def trained_adapters(checkpoint: Checkpoint, lora: LoraConfig = LORA, dtype: str = "float32") -> tuple[Any, Adapters]:
    """Return a model and adapters whose matrices B are random, as after a training."""
    gpt2 = load_gpt2(checkpoint, dtype)
    adapters = Adapters(gpt2, lora, seed=1)
    rng = np.random.default_rng(4)
    for variable in adapters.trainable_variables[1::2]:
        variable.assign(rng.normal(size=variable.shape, scale=0.2))
    return gpt2, adapters


def peft_model(model: transformers.GPT2LMHeadModel, folder: Path, *, is_trainable: bool = False) -> peft.PeftModel:
    return peft.PeftModel.from_pretrained(model, folder, is_trainable=is_trainable).eval().double()


def load(folder: Path) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(folder)


def batch() -> dict[str, Any]:
    """Two micro-batches of two rows, a document each; in the last row eight tokens are predicted, in the others all."""
    ids = np.random.default_rng(0).integers(0, 96, (2, 2, 17)).astype(np.int32)
    weights = np.ones((2, 2, 16), np.float32)
    weights[1, 1, :8] = 0
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), weights.shape)
    segments = np.ones_like(positions)
    values = {"ids": ids[..., :-1], "labels": ids[..., 1:], "positions": positions, "segments": segments}
    return {**values, "weights": weights}


def gradients_of_peft(model: peft.PeftModel, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the gradients of the loss, summed over all predicted tokens, by peft's names of the matrices."""
    ids, labels = (torch.tensor(data[name].reshape(4, 16), dtype=torch.long) for name in ("ids", "labels"))
    losses = torch.nn.functional.cross_entropy(model(ids).logits.transpose(1, 2), labels, reduction="none")
    (losses * torch.tensor(data["weights"].reshape(4, 16))).sum().backward()
    return {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def gradients(gpt2: Any, adapters: Adapters, data: dict[str, Any], **options: Any) -> dict[str, np.ndarray]:
    """Return ours by the same names."""
    model = TrainedGPT2(gpt2, adapters=adapters, dropout=0.0, **options)
    found, _ = model.gradients(data)
    names = [
        f"base_model.model.transformer.h.{block}.{target}.lora_{letter}.weight"
        for block in range(2)
        for target in adapters.lora.targets
        for letter in "AB"
    ]
    return dict(zip(names, map(np.asarray, found), strict=True))


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], bound: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() <= bound * np.abs(value).max(), name


def test_a_merged_savedmodel_computes_what_peft_computes_with_the_written_adapter(base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    gpt2, adapters = trained_adapters(checkpoint)
    adapters.write(tmp_path)
    with torch.no_grad():
        wanted = peft_model(load(base), tmp_path)(torch.tensor(IDS)).logits.numpy()
        before = load(base).double()(torch.tensor(IDS)).logits.numpy()
    to_savedmodel(TrainedCheckpoint(checkpoint, gpt2, adapters), tmp_path / "merged", signatures=("logits",))
    assert np.abs(logits_of(tmp_path / "merged") - wanted).max() < 1e-4
    assert np.abs(before - wanted).max() > 0.1


def test_the_adapters_gradients_are_those_of_peft(base: Path, tmp_path: Path) -> None:
    gpt2, adapters = trained_adapters(open_checkpoint(base))
    adapters.write(tmp_path)
    wanted = gradients_of_peft(peft_model(load(base), tmp_path, is_trainable=True), batch())
    assert_close(gradients(gpt2, adapters, batch()), wanted, 1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_gradients_over_frozen_small_weights_are_those_over_the_same_weights_in_float64(
    base: Path, tmp_path: Path, dtype: str, recompute: bool
) -> None:
    checkpoint = open_checkpoint(base)
    gpt2, adapters = trained_adapters(checkpoint, dtype=dtype)
    adapters.write(tmp_path)
    weights = {name: rounded(name, checkpoint, dtype) for name in checkpoint.config.tensor_shapes()}
    model = model_of(InMemory(checkpoint.config, weights))
    wanted = gradients_of_peft(peft_model(model, tmp_path, is_trainable=True), batch())
    assert_close(gradients(gpt2, adapters, batch(), recompute=recompute), wanted, 1e-5)
    exact = gradients_of_peft(peft_model(load(base), tmp_path, is_trainable=True), batch())
    with pytest.raises(AssertionError):
        assert_close(exact, wanted, 1e-3)


def rounded(name: str, checkpoint: Checkpoint, dtype: str) -> np.ndarray:
    """Return a tensor as ``dtype`` stores it: the nearest of 255 levels of each row of a matrix, or bfloat16."""
    value = checkpoint.read(name, np.dtype(np.float32))
    if ".ln_" in f".{name}":
        return value
    if dtype == "bfloat16":
        return value.astype(BFLOAT16).astype(np.float32)
    if value.ndim == 1 or name == "wpe.weight":
        return value
    scale = (np.abs(value).max(axis=1, keepdims=True) / 127).astype(np.float32)
    return (np.rint(value / scale) * scale).astype(np.float32)


def test_the_written_files_have_the_names_and_options_of_pefts_own(base: Path, tmp_path: Path) -> None:
    own, ours = tmp_path / "peft", tmp_path / "ours"
    ours.mkdir()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=list(ALL), fan_in_fan_out=True)
    peft.get_peft_model(load(base), config).save_pretrained(own)
    _, adapters = trained_adapters(open_checkpoint(base))
    files = adapters.write(ours, base=str(base))
    assert {file.name for file in files} == {file.name for file in ours.iterdir()}
    wanted, found = (load_file(folder / "adapter_model.safetensors") for folder in (own, ours))
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in wanted.items()}
    theirs, mine = (json.loads((folder / "adapter_config.json").read_text()) for folder in (own, ours))
    assert sorted(mine.pop("target_modules")) == sorted(theirs.pop("target_modules"))
    assert mine == {key: theirs[key] for key in mine}


@pytest.mark.parametrize("targets", [ALL, ("c_attn",), ("mlp.c_proj", "c_fc")])
def test_an_adapter_merged_from_its_files_is_the_trained_checkpoint(
    base: Path, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    checkpoint = open_checkpoint(base)
    gpt2, adapters = trained_adapters(checkpoint, LoraConfig(2, targets=targets))
    adapters.write(tmp_path)
    trained, merged = TrainedCheckpoint(checkpoint, gpt2, adapters), open_checkpoint(base, adapter=tmp_path)
    for name in checkpoint.config.tensor_shapes():
        values = [found.read(name, np.dtype(np.float32)) for found in (trained, merged, checkpoint)]
        assert np.allclose(values[0], values[1], rtol=0, atol=1e-6), name
        is_changed = name.endswith(".weight") and any(name[:-7].endswith(target) for target in adapters.lora.targets)
        assert np.array_equal(values[0], values[2]) != is_changed, name


def test_a_new_adapter_begins_as_pefts_do_and_as_its_seed_says() -> None:
    checkpoint = InMemory(GPT2Config(vocab_size=96, n_positions=24, n_embd=48, n_layer=2, n_head=4, n_inner=40))
    first, again, other = (
        {variable.path: variable.numpy() for variable in Adapters(load_gpt2(checkpoint), LORA, seed).variables}
        for seed in (1, 1, 2)
    )
    layer = peft.tuners.lora.Linear(torch.nn.Linear(40, 48), "x", config=peft.LoraConfig(r=64), r=64)
    bound = layer.lora_A["x"].weight.abs().max().item()
    for name, value in first.items():
        assert np.array_equal(value, again[name])
        if name.endswith("_b"):
            assert not value.any()
            continue
        assert not np.array_equal(value, other[name])
        largest = bound * (40 / value.shape[1]) ** 0.5
        assert 0.9 * largest < np.abs(value).max() < 1.01 * largest, name
        assert value.std() == pytest.approx(largest / 3**0.5, rel=0.15)
    assert len({value[0, 0].item() for name, value in first.items() if name.endswith("_a")}) == len(first) // 2


def test_only_adapters_are_trained_and_only_where_they_are_wanted(base: Path) -> None:
    gpt2, adapters = trained_adapters(open_checkpoint(base), LoraConfig(2, targets=("c_proj",)))
    assert not gpt2.trainable_variables
    assert [variable.shape for variable in adapters.trainable_variables] == 2 * [(2, 48), (48, 2), (2, 40), (48, 2)]
    assert adapters.pair(0, "mlp.c_fc") is None
    assert len(TrainedGPT2(gpt2, adapters=adapters).trainable_variables) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "--lora 0: expected a rank"),
        ({"r": 2.5}, "--lora 2.5: expected a rank"),
        ({"r": 2, "alpha": 0}, "--alpha 0: expected a number above 0"),
        ({"r": 2, "alpha": float("nan")}, "--alpha nan: expected a number above 0"),
        ({"r": 2, "targets": ("c_attn", "q_proj")}, "--lora-targets 'q_proj': expected some of attn.c_attn"),
        ({"r": 2, "targets": ("proj",)}, "--lora-targets 'proj'"),
        ({"r": 2, "targets": ()}, "--lora-targets: none given"),
    ],
)
def test_an_impossible_adapter_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoraConfig(**options)


def test_a_target_is_named_as_peft_does_or_as_the_tensors_are() -> None:
    assert LoraConfig(4).alpha == 8
    assert LoraConfig(4).targets == ALL
    assert LoraConfig(4, targets=("c_proj", "c_attn")).targets == ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
    assert LoraConfig(4, targets=("mlp.c_proj",)).targets == ("mlp.c_proj",)
