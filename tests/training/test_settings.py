"""The table of settings: what is possible, and the one line that says what is not."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import training
from training.setting import SettingError
from training.settings import DEFAULTS, SETTINGS, Settings


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_help_and_a_default_that_it_may_have(name: str) -> None:
    assert 10 < len(SETTINGS[name].help) < 260
    assert not SETTINGS[name].help.endswith(".")
    if DEFAULTS[name] is not None:
        assert SETTINGS[name].check(name, DEFAULTS[name]) == DEFAULTS[name]


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no such setting": ({"lorra": 3}, "'lorra': not a setting; did you mean lora?"),
    "rank 0": ({"lora": 0}, "--lora 0: expected a whole number of at least 1 and of at most 4096"),
    "a rank that is True": ({"lora": True}, "--lora True: expected a whole number"),
    "a rank in words": ({"lora": "eight"}, "--lora 'eight': expected a whole number"),
    "steps below 0": ({"steps": -1}, "--steps -1: expected a whole number of at least 0"),
    "epochs 0": ({"epochs": 0}, "--epochs 0.0: expected a number above 0"),
    "steps and epochs": ({"steps": 3, "epochs": 2}, "--steps and --epochs: expected one of them"),
    "a rate of 0": ({"learning_rate": 0}, "--learning-rate 0.0: expected a number above 0 and of at most 1"),
    "a rate that is NaN": ({"learning_rate": float("nan")}, "--learning-rate nan: expected a number"),
    "dropout of all": ({"dropout": 1}, "--dropout 1.0: expected a number of at least 0 and of at most 0.9"),
    "warm-up in percent": ({"warmup": 10}, "--warmup 10.0: expected a number of at least 0 and of at most 1"),
    "a schedule": ({"schedule": "step"}, "--schedule 'step': expected one of linear, cosine, constant"),
    "a preset": ({"preset": "song"}, "--preset 'song': expected one of lyric, poem, novel, plain"),
    "a target": ({"lora": 2, "lora_targets": ["lm_head"]}, "--lora-targets 'lm_head': expected one of attn.c_attn"),
    "no target": ({"lora": 2, "lora_targets": []}, "--lora-targets: expected one or more"),
    "a target that is a number": ({"lora": 2, "lora_targets": 3}, "--lora-targets 3: expected a list"),
    "alpha alone": ({"alpha": 16}, "--alpha: needs --lora"),
    "targets alone": ({"lora_targets": ["attn.c_attn"]}, "--lora-targets: needs --lora"),
    "frozen weights without LoRA": ({"frozen_dtype": "int8"}, "--frozen-dtype: needs --lora"),
    "freeze and LoRA": ({"lora": 2, "freeze": ["embeddings"]}, "--freeze: LoRA trains no weight"),
    "a micro-batch above the batch": ({"micro_batch": 16}, "--micro-batch 16: expected --batch-size 8 at most"),
    "decay of all weights at once": (
        {"learning_rate": 0.5, "weight_decay": 2},
        "--weight-decay 2: expected 0.5 at most, times --learning-rate 0.5",
    ),
    "patience without validation": ({"patience": 2, "validation": 0}, "--patience: needs held-out documents"),
    "patience with 0.0": ({"patience": 2, "validation": "0.0"}, "--patience: needs held-out documents"),
    "patience with 00": ({"patience": 2, "validation": "00"}, "--patience: needs held-out documents"),
    "a validation of nothing": ({"validation": ""}, "--validation '': expected a share below 1"),
    "epochs without end": ({"epochs": 1e308}, "--epochs 1e+308: expected a number above 0 and of at most 1e+06"),
    "steps without end": ({"steps": 10**10}, "--steps 10000000000: expected a whole number of at least 0 and of at"),
    "an alpha without end": ({"lora": 2, "alpha": 1e300}, "--alpha 1e+300: expected a number above 0 and of at most"),
    "ranks of another format": ({"tensor_parallel": 2}, "--tensor-parallel: needs --format megatron"),
    "a format": ({"format": "onnx"}, "--format 'onnx': expected one of savedmodel, huggingface"),
    "init without a tokenizer": ({"init": "layers=1"}, "--init: a model from nothing needs --tokenizer PATH"),
    "init with LoRA": ({"init": "layers=1", "tokenizer": "x", "lora": 2}, "--init: all of a model from nothing"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_is_impossible_is_one_line(case: str) -> None:
    values, expected = IMPOSSIBLE[case]
    with pytest.raises(SettingError) as error:
        Settings.of(values)
    assert str(error.value).startswith(expected)


def test_values_are_kept_in_the_types_of_the_table() -> None:
    settings = Settings.of(
        {
            "epochs": 2,
            "validation": 0.1,
            "tokenizer": "files",
            "prefix": "style",
            "lora_targets": ["mlp.c_fc"],
            "lora": 4,
        }
    )
    assert (settings.epochs, type(settings.epochs)) == (2.0, float)
    assert (settings.validation, settings.prefix, settings.lora_targets) == ("0.1", ("style",), ("mlp.c_fc",))
    assert settings.tokenizer == Path("files")
    assert Settings.of({"validation": Path("held.jsonl")}).validation == "held.jsonl"


def test_settings_are_json_and_come_back_from_it() -> None:
    settings = Settings.of({"lora": 4, "alpha": 16, "tokenizer": "files", "recompute": True})
    assert Settings.of(json.loads(json.dumps(settings.to_dict()))) == settings


def test_the_function_shows_every_setting() -> None:
    shown = inspect.signature(training.finetune).parameters
    assert {field.name for field in dataclasses.fields(Settings)} <= set(shown)
    documentation = inspect.getdoc(training.finetune) or ""
    assert all(f"    {name}: {setting.help[:30]}" in documentation for name, setting in SETTINGS.items())
