"""Settings that are possible by themselves, and not together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tf_model.config import LINEAR_LAYERS
from training.setting import flag

if TYPE_CHECKING:
    from training.settings import Settings

LARGEST_DECAY = 0.5
"""Learning rate times weight decay: near 1, AdamW would divide by almost nothing."""


def find_contradictions(settings: Settings) -> list[str]:
    """Return a line for each contradiction between settings whose values are possible by themselves."""
    wrong = []
    if settings.steps is not None and settings.epochs is not None:
        wrong.append("--steps and --epochs: expected one of them")
    if settings.lora is None:
        wrong += [
            f"{flag(name)}: needs --lora" for name in ("alpha", "frozen_dtype") if getattr(settings, name) is not None
        ]
        if settings.lora_targets != LINEAR_LAYERS:
            wrong.append("--lora-targets: needs --lora")
    elif not settings.lora_targets:
        wrong.append("--lora-targets: expected one or more")
    elif settings.freeze:
        wrong.append("--freeze: LoRA trains no weight of the model anyway: leave out --freeze or --lora")
    wrong += _contradictions_of_teaching(settings)
    if settings.init is not None and settings.tokenizer is None:
        wrong.append("--init: a model from nothing needs --tokenizer PATH")
    if settings.init is not None and (settings.lora is not None or settings.freeze):
        wrong.append("--init: all of a model from nothing has to be trained: leave out --lora and --freeze")
    if settings.tensor_parallel is not None and settings.format != "megatron":
        wrong.append("--tensor-parallel: needs --format megatron")
    if settings.micro_batch is not None and settings.micro_batch > settings.batch_size:
        wrong.append(f"--micro-batch {settings.micro_batch}: expected --batch-size {settings.batch_size} at most")
    if (settings.learning_rate or 0) * settings.weight_decay > LARGEST_DECAY:
        wrong.append(
            f"--weight-decay {settings.weight_decay:g}: expected {LARGEST_DECAY:g} at most, times --learning-rate "
            f"{settings.learning_rate:g}: the share of the weights that an update takes"
        )
    if settings.patience is not None and _is_zero(settings.validation):
        wrong.append("--patience: needs held-out documents: leave out --validation 0")
    return wrong


def _is_zero(validation: object) -> bool:
    """Whether no document is to be held out, however 0 is written."""
    try:
        return validation is not None and float(str(validation)) == 0
    except ValueError:
        return False


def _contradictions_of_teaching(settings: Settings) -> list[str]:
    if settings.teacher is None:
        theirs = [field for field in dataclasses.fields(settings) if field.name.startswith("teacher_")]
        changed = [field.name for field in theirs if getattr(settings, field.name) != field.default]
        return [f"{flag(name)}: needs --teacher" for name in changed]
    return ["--form-weight: no teacher teaches the form: leave out one of them"] if settings.form_weight else []
