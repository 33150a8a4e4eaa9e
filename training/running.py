"""From a training that is prepared to a model that is trained: TensorFlow begins here."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, cast

from convert.checkpoint import Checkpoint
from convert.dtype_choice import runs_here
from support.progress import Progress
from tf_model.gpt2 import GPT2
from tokenization import Tokenizer
from training.cluster.strategy import Cluster
from training.model.distillation import DistilledGPT2, Teaching
from training.model.form import FormGPT2, FormLosses, form_tokens
from training.model.lora import Adapters, LoraConfig
from training.model.trained_checkpoint import TrainedCheckpoint
from training.model.trained_gpt2 import TrainedGPT2
from training.model.weights import freeze, load_gpt2
from training.optimizers.adamw import AdamW, make_optimizer
from training.optimizers.muon import Muon
from training.preparation import Preparation
from training.run.callbacks import FitOptions, Observers
from training.run.fitting import FitResult, fit
from training.run.log import perplexity
from training.run.run_folder import MAKE_ROOM, RunFolder, writing_to
from training.run.samples import SampleOptions, TextSampler
from training.run.state import DivergedError, restore_best, weight_variables
from training.run.watching import Watcher
from training.texts.batches import ValidationBatches

OPTIMIZERS: dict[str, type[AdamW]] = {"adamw": AdamW, "muon": Muon}
"""What ``--optimizer`` calls them."""


@dataclasses.dataclass(frozen=True)
class Training:
    """A model that has been trained.

    Attributes:
        checkpoint: the weights that are to be written.
        kept_step: the step that they are of.
        fitted: how it went.
        validation: perplexity of the held-out documents before and after; None where there are none.
        sample: the same of some of the documents that were trained on.
    """

    checkpoint: Checkpoint
    kept_step: int
    fitted: FitResult
    validation: tuple[float, float] | None
    sample: tuple[float, float]


def train(
    prepared: Preparation, run: RunFolder | None, cluster: Cluster, watcher: Watcher, progress: Progress
) -> Training:
    """Load the model, train it as far as its run has not yet, and measure it.

    Of several workers the chief has the ``run``, the others None; all return the same.

    Raises:
        UserError: weights are damaged, the loss is not a number, the disk is full, a worker was lost.
    """
    settings = prepared.settings
    model = make_model(prepared, cluster, progress)
    rows = prepared.plan.micro_batch
    held_out = prepared.texts.validation
    sample = ValidationBatches(prepared.texts.sample, rows)
    watcher.stage("building the graph")
    sample_before = _perplexity(model, sample, cluster)  # of the model as it was: nothing is restored yet
    fitted = fit(
        model,
        prepared.batches,
        None if held_out is None else ValidationBatches(held_out, rows),
        FitOptions(prepared.steps, prepared.evaluate_every, patience=settings.patience or 0),
        run,
        Observers(watcher, _sampler(prepared, model) if cluster.is_chief else None),
        cluster,
    )
    kept_step, loss = fitted.steps, fitted.loss
    if held_out is not None and settings.keep == "best" and fitted.best_step != fitted.steps:
        if run is not None:
            restore_best(run, model, fitted.best_step, fitted.best_loss)
        cluster.share(weight_variables(model))
        kept_step, loss = fitted.best_step, fitted.best_loss
    if model.adapters is not None and run is not None:
        _write_adapter(model.adapters, run)
    before = fitted.loss_before
    return Training(
        TrainedCheckpoint(prepared.checkpoint, model.gpt2, model.adapters),
        kept_step,
        fitted,
        None if before is None or loss is None else (perplexity(before), perplexity(loss)),
        (sample_before, _perplexity(model, sample, cluster)),
    )


def make_model(prepared: Preparation, cluster: Cluster, progress: Progress) -> TrainedGPT2:
    """Load the weights into a compiled Keras model.

    Trained variables belong into the cluster's scope. LoRA's frozen weights and a teacher's do not: TensorFlow would
    send them to the other workers, who have them already, and cannot send int8.
    """
    settings, adapters = prepared.settings, None
    with cluster.scope() if settings.lora is None else contextlib.nullcontext():
        gpt2 = load_gpt2(prepared.checkpoint, prepared.plan.frozen_dtype, progress)
    with cluster.scope():
        if settings.lora is None:
            freeze(gpt2, settings.freeze)
        else:
            adapters = Adapters(gpt2, LoraConfig(settings.lora, settings.alpha, settings.lora_targets), settings.seed)
        optimizer = make_optimizer(
            prepared.learning_rate,
            max(1, prepared.steps),
            schedule=settings.schedule,
            warmup=settings.warmup,
            weight_decay=settings.weight_decay,
            clip=settings.clip or None,
            kind=OPTIMIZERS[settings.optimizer],
        )
    model = _trained(prepared, gpt2, adapters, cluster, progress)
    model.compile(optimizer=optimizer, jit_compile=False)
    return model


def _sampler(prepared: Preparation, model: TrainedGPT2) -> TextSampler | None:
    """Return the sampler of the run; None if no texts are wanted or this machine cannot generate them."""
    count = prepared.settings.sample
    if not count or not runs_here(prepared.plan.frozen_dtype):
        return None
    options = SampleOptions(
        seed=prepared.settings.seed,
        eos_token_id=prepared.tokenizer.eos_token_id,
        ends_lines=prepared.texts.preset.ends_lines,
    )
    return TextSampler(model.gpt2, prepared.tokenizer.decode, [prepared.prompt_ids] * count, options, model.adapters)


def _trained(
    prepared: Preparation, gpt2: GPT2, adapters: Adapters | None, cluster: Cluster, progress: Progress
) -> TrainedGPT2:
    """Return the model that trains ``gpt2``: on texts alone, with a teacher, or with a loss that counts the form."""
    settings = prepared.settings
    kind: type[TrainedGPT2] = TrainedGPT2
    options: dict[str, Any] = {
        "adapters": adapters,
        "dropout": settings.dropout,
        "seed": settings.seed,
        "recompute": prepared.plan.recompute,
        "products": prepared.products,
    }
    if settings.form_weight:
        tokens = form_tokens(cast(Tokenizer, prepared.tokenizer))
        kind = FormGPT2
        options |= {"losses": FormLosses(tokens, gpt2.config.vocab_size, settings.form_weight)}
    if prepared.teacher is not None:
        teaching = Teaching(settings.teacher_weight, settings.teacher_temperature)
        teacher = load_gpt2(
            prepared.teacher,
            prepared.plan.teacher_dtype,
            lambda stage, done, total: progress(f"{stage} the teacher", done, total),
        )
        kind = DistilledGPT2
        options |= {"teacher": teacher, "teaching": teaching}
    with cluster.scope():
        return kind(gpt2, **options)


def _perplexity(model: TrainedGPT2, batches: ValidationBatches, cluster: Cluster) -> float:
    """Return the perplexity of all rows.

    Raises:
        DivergedError: it is no number.
    """
    data, steps = cluster.validation(batches)
    loss = model.evaluate(data, steps=steps, verbose=0, return_dict=True)["loss"]
    if not math.isfinite(loss):
        raise DivergedError(f"the model's loss on the texts is {loss}: its weights are no use: take another model")
    return perplexity(loss)


def _write_adapter(adapters: Adapters, run: RunFolder) -> None:
    with writing_to(run.adapter, MAKE_ROOM):
        run.adapter.mkdir(exist_ok=True)
        adapters.write(run.adapter)
