"""Values that the settings leave open, decided for a model, its texts and this machine. No TensorFlow."""

from __future__ import annotations

from convert.dtype_choice import cpu_flags, runs_here
from support.messages import pluralize
from tf_model.config import GPT2Config
from training.memory import Plan, Work
from training.model.freezing import count_weights, frozen_tensors
from training.setting import SettingError
from training.settings import FLOAT32, Settings
from training.texts.reading import Texts

DEFAULT_EPOCHS = 3.0
LARGEST_DEFAULT_LENGTH = 1024
"""Tokens of a row where no setting says how many, if the model has as many positions."""
LEARNING_RATES = ((1e9, 1e-5), (20e6, 5e-5), (0, 3e-4))
"""(Parameters, learning rate): the rate of models with so many parameters or more."""
LORA_RATE_FACTOR = 10
PROMPT_CHARACTERS = 12
"""Of a document's text, for the sample prompt that is taken from it."""
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def row_length(config: GPT2Config, settings: Settings) -> int:
    """Return how many tokens the model is given at a time.

    Raises:
        SettingError: the setting is larger than the model's positions.
    """
    if settings.length is not None and settings.length > config.n_positions:
        raise SettingError(f"--length {settings.length}: expected {config.n_positions} at most, the model's positions")
    return settings.length or min(config.n_positions, LARGEST_DEFAULT_LENGTH)


def work_of(config: GPT2Config, settings: Settings, length: int, batch_size: int) -> tuple[int, Work]:
    """Return the number of weights that are trained, and the work that memory depends on.

    Raises:
        SettingError: nothing is left to train.
    """
    frozen = frozen_tensors(config, settings.freeze)
    trained = config.parameter_count - count_weights(config, frozen)
    trains_embedding = "wte.weight" not in frozen
    if settings.lora is not None:
        shapes = config.tensor_shapes()
        matrices = [shapes[f"h.0.{target}.weight"] for target in {*settings.lora_targets}]
        trained = config.n_layer * settings.lora * sum(sum(shape) for shape in matrices)
        trains_embedding = False
    elif not trained:
        raise SettingError(f"--freeze {' '.join(settings.freeze)}: leaves nothing to train")
    held = config.parameter_count if settings.lora is not None else config.parameter_count - trained
    return trained, Work(config, trained, held, trains_embedding, length, batch_size)


def check_workers(batch_size: int, micro_batch: int, workers: int) -> None:
    """Check that there is a micro-batch for every worker."""
    parts = -(-batch_size // micro_batch)
    if parts < workers:
        raise SettingError(
            f"--micro-batch {micro_batch}: a batch of {batch_size} rows has {pluralize(parts, 'micro-batch')} of them, "
            f"too few for {workers} workers: give a smaller --micro-batch, a larger --batch-size, or fewer workers"
        )


def only_dtype(settings: Settings) -> str | None:
    """Return float32, the only type of frozen weights next to trained ones; None with LoRA, which has a choice."""
    return None if settings.lora is not None else FLOAT32


def default_learning_rate(config: GPT2Config, settings: Settings) -> float:
    """Return the learning rate for models of this size."""
    rate = next(rate for parameters, rate in LEARNING_RATES if config.parameter_count >= parameters)
    return rate * (LORA_RATE_FACTOR if settings.lora is not None else 1)


def sample_prompt(texts: Texts, settings: Settings) -> str:
    """Return the prompt of samples: as given, else prefix and first words of a held-out document, or of another."""
    document = [*texts.held_out, *texts.train][0]
    first = document.text.strip().partition("\n")[0]
    return document.prefix + first[:PROMPT_CHARACTERS] if settings.sample_prompt is None else settings.sample_prompt


def products_of(settings: Settings, plan: Plan, before: str | None = None) -> tuple[str, list[str]]:
    """Return the type of the matrix products, and notes about it.

    ``auto`` is what the run began with, ``before``; in a new run bfloat16 only where the frozen weights have no more
    digits, so that no digit of theirs is lost.
    """
    has_instructions = bool(_BFLOAT16_FLAGS & (cpu_flags() or set()))
    products = before if settings.products == "auto" else settings.products
    if products == "bfloat16" and not has_instructions:
        return "bfloat16", ["--products bfloat16: this processor has no instructions for it: float32 is faster here"]
    if products is not None:
        return products, []
    return ("bfloat16" if has_instructions and plan.frozen_dtype == "bfloat16" else "float32"), []


def plan_notes(plan: Plan, settings: Settings) -> list[str]:
    """Return notes on choices that short memory has forced, with their costs."""
    notes = []
    if plan.recompute and settings.recompute is None:
        notes.append("blocks are computed again for their gradients, as memory is short (--no-recompute: never)")
    if plan.frozen_dtype != "float32" and settings.frozen_dtype is None:
        notes.append(f"the frozen weights are {plan.frozen_dtype} in memory, as it is short; the result's are not")
    if plan.teacher_dtype != "float32" and settings.teacher_dtype is None:
        notes.append(f"the teacher's weights are {plan.teacher_dtype} in memory, as it is short")
    if settings.sample and not runs_here(plan.frozen_dtype):
        notes.append(f"no samples are written: this processor does not generate with {plan.frozen_dtype} weights")
    return notes
