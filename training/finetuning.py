"""From texts and a model to a model that writes such texts: check, prepare, train, export.

The module is not called ``finetune``, as the function is: ``training.finetune`` could be either then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.checkpoint import CheckpointAdapter
from support.progress import Progress, no_progress
from support.tensorflow_runtime import quiet_stderr
from training.cluster.place import Place, read_place
from training.cluster.strategy import open_cluster
from training.differences import FILES
from training.own_folders import training_folder
from training.preparation import Model, Preparation, prepare
from training.run.run_folder import RunFolder, open_run
from training.run.state import read_counters
from training.run.watching import Watcher, show_perplexity
from training.runtime import start_tensorflow
from training.settings import FLOAT32, Settings, document_settings
from training.texts.documents import to_paths

if TYPE_CHECKING:
    from training.running import Training


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned model that was written.

    Attributes:
        folder: where it is.
        format: in which format.
        parameters, trainable: the number of weights, and of those that were trained (of adapters with LoRA).
        steps, tokens: updates, and tokens that were predicted in them.
        kept_step: the step whose weights were written.
        validation: perplexity of the held-out documents before and after; None where there are none.
        training: perplexity of a sample of the documents that were trained on, before and after.
        seconds: of this call.
        command: the user's next one: it generates, or makes a SavedModel.
        notes: what a user should know, a line each.
    """

    folder: Path
    format: str
    parameters: int
    trainable: int
    steps: int
    tokens: int
    kept_step: int
    validation: tuple[float, float] | None
    training: tuple[float, float]
    seconds: float
    command: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder), "notes": list(self.notes)}

    def summary(self) -> str:
        """Return what has changed, and the command that goes on with it."""
        learnt = f"of texts that it learnt {_change(self.training)}"
        held_out = f"of held-out texts {_change(self.validation)}, " if self.validation else ""
        return (
            f"{self.folder}: {self.steps:,} {'step' if self.steps == 1 else 'steps'}, {self.tokens:,} tokens, "
            f"{self.seconds:,.0f} s; perplexity "
            f"{held_out}{learnt}; go on with: {self.command}"
        )


def _change(perplexities: tuple[float, float]) -> str:
    before, after = perplexities
    return f"{show_perplexity(before)} -> {show_perplexity(after)}"


@document_settings
def finetune(
    model: Model | None,
    text: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    fresh: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    progress: Progress = no_progress,
    **settings: Any,
) -> FinetuneResult:
    """Train ``model`` on texts, and write the result to ``output``.

    Where ``TF_CONFIG`` in the environment names several workers, this process is one of them; the first one writes.

    Args:
        model: a checkpoint of any format, or a SavedModel of this program; None for one from nothing (``init``).
        text: files and folders of texts.
        output: where the result goes; ``output.training`` next to it has the state while it runs.
        fresh: start over where a run was stopped, instead of going on.
        overwrite: replace an older result at ``output``.
        watcher: gets reports and notes while the training runs.
        progress: called with the bytes that are read and written.
        settings: see below.

    Raises:
        UserError: texts, model, settings or destination cannot be used; or the training cannot go on. What was trained
            until then is kept: the same call goes on from it.
        TokenizerError: the tokenizer cannot be used.
    """
    started = time.monotonic()
    watcher = watcher or Watcher()
    place = read_place(os.environ)
    prepared = prepare(
        model,
        to_paths(text),
        Path(output),
        Settings.of(settings),
        fresh=fresh,
        overwrite=overwrite,
        workers=1 if place is None else len(place.hosts),
        progress=progress,
    )
    with _open_run(prepared, place, fresh=fresh) as run:
        for note in (*_resume_notes(prepared, run), prepared.summary(), *prepared.notes):
            watcher.note(note)
        if run is not None:
            run.write_held_out(prepared.texts.held_out_texts)
        start_tensorflow()
        with open_cluster(place, prepared.record) as cluster:
            with quiet_stderr():  # takes seconds: only once everything else is known to be good
                from training.running import train
            training = train(prepared, run, cluster, watcher, progress)
            if run is not None:
                watcher.stage("writing the result")
            exported = ("the chief has the result",) if run is None else _export(prepared, training, progress)
        if run is not None:
            run.finish()
    found = (*_early_stop_notes(prepared, training), *_measure_notes(prepared), *exported)
    notes = [note for note in found if note not in prepared.notes]
    for note in notes:
        watcher.note(note)
    return _result(prepared, training, notes, time.monotonic() - started)


def _open_run(
    prepared: Preparation, place: Place | None, *, fresh: bool
) -> contextlib.AbstractContextManager[RunFolder | None]:
    """Open the folder of the run; of several workers the chief alone has one."""
    if place is not None and not place.is_chief:
        return contextlib.nullcontext()
    record = {**prepared.record, FILES: prepared.files}
    return open_run(training_folder(prepared.destination.folder), record, fresh=fresh)


def _resume_notes(prepared: Preparation, run: RunFolder | None) -> list[str]:
    """Return a note if an earlier call has left a state."""
    counters = None if run is None else read_counters(run)
    if run is None or counters is None:
        return []
    return [f"goes on from step {counters.step:,} of {prepared.steps:,} of {run.folder}"]


def _export(prepared: Preparation, training: Training, progress: Progress) -> tuple[str, ...]:
    """Write the result with its record, which is in ``training.json`` and in the manifest."""
    texts, fitted = prepared.texts, training.fitted
    record = {
        **prepared.record,
        FILES: prepared.files,
        "documents": len(texts.train),
        "held_out": len(texts.held_out),
        "trained_steps": fitted.steps,
        "kept_step": training.kept_step,
        "tokens": fitted.tokens,
        "perplexity": {"validation": training.validation, "training": training.sample},
        "measured_with": {"frozen_dtype": prepared.plan.frozen_dtype, "products": FLOAT32},
    }
    info = dataclasses.replace(training.checkpoint.info, training=record)
    return prepared.destination.write(CheckpointAdapter(training.checkpoint, info=info), progress)


def _early_stop_notes(prepared: Preparation, training: Training) -> list[str]:
    """Return a note if patience has ended the training."""
    fitted = training.fitted
    if not fitted.stopped_early:
        return []
    return [f"stopped after {fitted.steps} of {prepared.steps} steps, as --patience {prepared.settings.patience} says"]


def _measure_notes(prepared: Preparation) -> list[str]:
    """Return a note if the perplexities are of other weights than those that are written."""
    measured, written = prepared.plan.frozen_dtype, prepared.destination.dtype
    if measured == written == FLOAT32:
        return []
    weights = FLOAT32 if measured == FLOAT32 else f"frozen {measured}"
    return [
        f"the perplexities are of {weights} weights and float32 products, the result's weights are {written}: "
        "verify --text measures the result"
    ]


def _result(prepared: Preparation, training: Training, notes: Sequence[str], seconds: float) -> FinetuneResult:
    fitted = training.fitted
    return FinetuneResult(
        folder=prepared.destination.folder,
        format=prepared.destination.format,
        parameters=prepared.checkpoint.config.parameter_count,
        trainable=prepared.trainable,
        steps=fitted.steps,
        tokens=fitted.tokens,
        kept_step=training.kept_step,
        validation=training.validation,
        training=training.sample,
        seconds=seconds,
        command=prepared.destination.next_command(prepared.prompt),
        notes=(*prepared.notes, *notes),
    )
