"""Keras's ``fit`` from the state of a run to its last step."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from support.files import describe_write_error
from support.main_guard import missing_package
from training.cluster.strategy import Cluster, TrainingData, ValidationData
from training.run.callbacks import FitOptions, Observers, RunCallback
from training.run.log import read_log
from training.run.plot import draw_losses
from training.run.records import NoRecords, Records
from training.run.run_folder import RunFolder
from training.run.state import Counters, restore_state, state_variables
from training.run.stopping import stop_request


@dataclasses.dataclass(frozen=True)
class FitResult:
    """The end of a run; losses are in nats a token, and None without validation.

    Attributes:
        steps: updates in all, of this call and those before it.
        tokens: predicted tokens of all updates.
        seconds: all calls together.
        stopped_early: whether patience has ended it.
        loss_before, loss: validation loss before the first update and after the last.
        best_loss: the lowest, of step ``best_step``; its weights are ``RunFolder.best``.
        resumed_at: the step that an earlier call had reached; 0 for none.
        rows: the log: a row a step.
    """

    steps: int
    tokens: int
    seconds: float
    stopped_early: bool
    loss_before: float | None
    loss: float | None
    best_loss: float | None
    best_step: int
    resumed_at: int
    rows: list[dict[str, float]] = dataclasses.field(repr=False)


class _OneTraining(keras.callbacks.CallbackList):
    """Callbacks that see one training, although each interval is a ``fit`` of its own: ``begin`` and ``end`` tell them.

    ``fit`` has epochs of one length, and a run that goes on in the middle of an interval has a first one that is
    shorter.
    """

    def begin(self) -> None:
        super().on_train_begin()

    def end(self, logs: dict[str, Any] | None) -> None:
        super().on_train_end(logs)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for ``begin``."""

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for ``end``."""


def fit(
    model: keras.Model,
    batches: TrainingData,
    validation: ValidationData | None,
    options: FitOptions,
    run: RunFolder | None,
    observers: Observers = Observers(),  # noqa: B008  nobody changes it
    cluster: Cluster = Cluster(),  # noqa: B008  it has no state
) -> FitResult:
    """Train a compiled model up to ``options.steps`` updates, from the state of the run if there is one.

    The validation loss before the first update counts as one to be improved. The model ends with the weights of the
    last step; ``state.restore_best`` reads the best ones.

    Of several workers the chief has the ``run``; the others, None: they begin with the chief's state.

    Raises:
        RunError: the state cannot be read or written.
        DivergedError: the loss is not a finite number; the last state and the best weights stay.
    """
    with cluster.scope():
        model.optimizer.build(model.trainable_variables)
    counters = (None if run is None else restore_state(run, model)) or Counters()
    counters = Counters(**cluster.share(state_variables(model), dataclasses.asdict(counters)))
    records = NoRecords() if run is None else Records(run, counters)
    resumed_at = counters.step
    with stop_request(observers.watcher.note) as stop:
        run_callback = RunCallback(records, options, counters, batches.steps_per_epoch, stop, observers)
        try:
            _train(model, _Data(batches, validation, cluster), options, run_callback, observers)
        finally:
            run_callback.close()
    rows = [] if run is None else _draw(run, counters, observers)
    return FitResult(
        steps=counters.step,
        tokens=counters.tokens,
        seconds=counters.seconds,
        stopped_early=counters.is_stopped,
        loss_before=counters.loss_before,
        loss=counters.loss,
        best_loss=counters.best_loss,
        best_step=counters.best_step,
        resumed_at=resumed_at,
        rows=rows,
    )


def _draw(run: RunFolder, counters: Counters, observers: Observers) -> list[dict[str, float]]:
    """Draw both losses, and return the log; without matplotlib or room for it there is a note instead."""
    rows = read_log(run.log)
    try:
        draw_losses(rows, None if counters.best_loss is None else counters.best_step, run.plot)
    except ModuleNotFoundError:
        observers.watcher.note(f"{run.plot}: not drawn: {missing_package('matplotlib')}")
    except OSError as error:
        observers.watcher.note(describe_write_error(error, run.plot, "make room"))
    return rows


@dataclasses.dataclass(frozen=True)
class _Data:
    """The data sets of this worker."""

    batches: TrainingData
    held_out: ValidationData | None
    cluster: Cluster

    def training(self, first: int, last: int) -> Any:
        """Return the data set of the steps ``first`` to ``last - 1``."""
        return self.cluster.dataset(self.batches, first, last)

    def validation(self, data: str, steps: str) -> dict[str, Any]:
        """Return data set and number of steps, as keyword arguments ``data`` and ``steps``; none without validation."""
        return (
            {}
            if self.held_out is None
            else dict(zip((data, steps), self.cluster.validation(self.held_out), strict=True))
        )


def _train(
    model: keras.Model,
    data: _Data,
    options: FitOptions,
    run_callback: RunCallback,
    observers: Observers,
) -> None:
    """Call ``fit`` for one interval after the other."""
    counters = run_callback.counters
    if options.is_interval_end(counters.step) and counters.evaluated < counters.step:  # step 0, or it was interrupted
        _evaluate(model, data, run_callback)
    callbacks = _OneTraining(
        [run_callback, *observers.callbacks], add_history=True, model=model, epochs=1, steps=options.steps
    )
    callbacks.begin()
    while counters.step < options.steps and not counters.is_stopped:
        end = options.interval_end(counters.step)
        epoch = (end - 1) // options.evaluate_every
        model.fit(
            data.training(counters.step, end),
            initial_epoch=epoch,
            epochs=epoch + 1,
            steps_per_epoch=end - counters.step,
            **data.validation("validation_data", "validation_steps"),
            verbose=0,
            shuffle=False,  # the batches have an order, and Keras would warn
            callbacks=callbacks,
        )
    callbacks.end({})


def _evaluate(model: keras.Model, data: _Data, run_callback: RunCallback) -> None:
    """Do the evaluation that belongs to the current step."""
    run_callback.set_model(model)
    arguments = data.validation("x", "steps")
    if not arguments:
        run_callback.evaluated(None)
        return
    logs = model.evaluate(**arguments, verbose=0, return_dict=True, callbacks=[run_callback])
    run_callback.evaluated(logs["loss"])
