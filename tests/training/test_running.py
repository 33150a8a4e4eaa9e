"""What ``training.running`` makes of the settings: each one reaches what it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convert
import training
from convert.formats.registry import open_checkpoint
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.small_vocabularies import write_tokenizer
from tf_model.config import GPT2Config
from training.own_folders import training_folder
from training.preparation import prepare
from training.settings import Settings

pytestmark = pytest.mark.tensorflow

CONFIG = GPT2Config(vocab_size=600, n_positions=64, n_embd=16, n_layer=2, n_head=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its tokenizer, and texts."""
    root = tmp_path_factory.mktemp("files")
    write_megatron(root / "model", random_state(CONFIG, np.random.default_rng(0)), 1, extras=False)
    write_tokenizer("bpe", root / "tokenizer")
    (root / "text.txt").write_text("".join(f"hello world {number}\n\n" for number in range(40)))
    return root


USUAL: dict[str, Any] = {
    "dropout": 0.25, "seed": 11, "recompute": True, "products": "bfloat16", "learning_rate": 0.02, "steps": 50,
    "schedule": "cosine", "warmup": 0.3, "weight_decay": 0.07, "clip": 0.4, "batch_size": 4,
}  # fmt: skip


def make(files: Path, **settings: Any) -> Any:
    from training.cluster.strategy import Cluster
    from training.running import make_model

    given = Settings.of({"tokenizer": files / "tokenizer", **USUAL, **settings})
    prepared = prepare(open_checkpoint(files / "model", heads=2), [files / "text.txt"], files / "out", given)
    return make_model(prepared, Cluster(), lambda *_: None)


def test_settings_of_the_forward_pass_and_the_optimizer_arrive(files: Path) -> None:
    model = make(files, freeze=["embeddings", "blocks:0"])
    optimizer, forward = model.optimizer, model.forward
    schedule = optimizer._learning_rate
    assert type(optimizer).__name__ == "AdamW"
    assert (schedule.peak, schedule.steps, schedule.warmup, schedule.kind) == (0.02, 50, 0.3, "cosine")
    assert (optimizer.weight_decay, optimizer.global_clipnorm) == (0.07, 0.4)
    assert (forward.maths.dropout, forward.seed, forward.maths.products.name) == (0.25, 11, "bfloat16")
    assert forward._with_dropout._recompute is True
    assert len(model.trainable_variables) == 12 + 2  # one block, and the last layer norm
    assert model.adapters is None


def test_other_settings_of_the_optimizer_arrive(files: Path) -> None:
    model = make(files, optimizer="muon", clip=0, recompute=False, products="float32", schedule="constant")
    assert type(model.optimizer).__name__ == "Muon"
    assert not model.optimizer.global_clipnorm
    assert model.optimizer._learning_rate.kind == "constant"
    assert model.forward._with_dropout._recompute is False
    assert model.forward.maths.products.name == "float32"


def test_settings_of_lora_arrive(files: Path) -> None:
    model = make(files, lora=3, alpha=12.0, lora_targets=["mlp.c_fc"])
    other = make(files, lora=3, alpha=12.0, lora_targets=["mlp.c_fc"], seed=12)
    assert model.adapters.scale == model.forward.maths.adapter_scale == 4.0
    pair = model.adapters.pair(0, "mlp.c_fc")
    assert [tuple(variable.shape) for variable in pair] == [(3, 16), (64, 3)]
    assert model.adapters.pair(0, "attn.c_attn") is None
    assert len(model.trainable_variables) == 4
    assert not np.array_equal(pair[0].numpy(), other.adapters.pair(0, "mlp.c_fc")[0].numpy())


def test_settings_of_losses_arrive(files: Path) -> None:
    import tensorflow as tf

    model = make(files, form_weight=2.5)
    assert model._losses._weight == 2.5
    assert tf.where(model._losses._of_form).numpy().size > 0
    write_teacher(files)
    taught = make(files, teacher=files / "teacher", teacher_weight=0.3, teacher_temperature=1.5)
    assert (taught.teaching.weight, taught.teaching.temperature) == (0.3, 1.5)


def write_teacher(files: Path) -> None:
    """A teacher of the same sizes, as a checkpoint that says its number of heads."""
    convert.to_checkpoint(
        open_checkpoint(files / "model", heads=2),
        files / "teacher",
        format="huggingface",
        tokenizer=files / "tokenizer",
    )


@pytest.fixture
def overfitted(files: Path, tmp_path: Path) -> tuple[Any, Path]:
    """A run whose validation loss is least before its last step."""
    settings: dict[str, Any] = {
        "tokenizer": files / "tokenizer", "steps": 40, "evaluate_every": 4, "learning_rate": 0.03, "dropout": 0.0,
        "sample": 0, "schedule": "constant", "warmup": 0.0, "validation": 3,
    }  # fmt: skip
    random = np.random.default_rng(0)
    words = ["".join(map(chr, random.integers(97, 123, 30))) for _ in range(12)]  # nothing to learn for other words
    (tmp_path / "words.txt").write_text("\n\n".join(words))
    model = open_checkpoint(files / "model", heads=2)
    return training.finetune(model, tmp_path / "words.txt", tmp_path / "model", **settings), tmp_path / "model"


@pytest.mark.slow
def test_the_best_weights_are_written_and_not_the_last(overfitted: tuple[Any, Path]) -> None:
    """``verify`` measures the result; the log says what each step's weights had."""
    from training.run.log import read_log

    result, folder = overfitted
    losses = {
        row["step"]: row["val_loss"] for row in read_log(training_folder(folder) / "log.csv") if "val_loss" in row
    }
    assert result.kept_step < 40
    measured = convert.verify(folder, folder, text=training_folder(folder) / "held-out.jsonl").perplexity
    assert measured is not None
    assert np.log(measured.converted) == pytest.approx(losses[result.kept_step], rel=1e-5)
    assert losses[40] > 1.01 * losses[result.kept_step]
    record = json.loads((folder / "assets.extra" / "training.json").read_text())
    assert record["measured_with"] == {"frozen_dtype": "float32", "products": "float32"}
