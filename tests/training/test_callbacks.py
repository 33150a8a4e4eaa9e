"""What happens around the steps: best weights, early stopping, log, events, signals, and what a caller sees."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.main_guard import main_guard
from tests.helpers.tiny_training import (
    FitOptions,
    Observers,
    RaiseAt,
    TinyData,
    TinyModel,
    compiled,
    full_disk,
    keras,
    tf,
    train,
    weights_hash,
)
from training.run.log import COLUMNS, read_log
from training.run.run_folder import RunError, RunFolder
from training.run.state import DivergedError, restore_best
from training.run.watching import EvaluationReport, StepReport, Watcher


class Recorder(Watcher):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.evaluations: list[EvaluationReport] = []
        self.notes: list[str] = []

    def step(self, report: StepReport) -> None:
        self.steps.append(report)

    def evaluation(self, report: EvaluationReport) -> None:
        self.evaluations.append(report)

    def note(self, text: str) -> None:
        self.notes.append(text)


class KeepWeights(keras.callbacks.Callback):
    """Keeps the weights of each interval's end in memory, and what Keras calls."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, np.ndarray[Any, Any]] = {}
        self.calls: list[str] = []
        self.epochs: list[tuple[int, float, float]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.calls.append("begin")
        self.tables[0] = self.model.table.numpy()

    def on_train_end(self, logs: Any = None) -> None:
        self.calls.append("end")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.tables[int(self.model.optimizer.iterations.numpy())] = self.model.table.numpy()
        self.epochs.append((epoch, logs["loss"], logs["val_loss"]))


def test_keras_callbacks_see_one_training_whose_epochs_are_the_intervals(tmp_path: Path) -> None:
    kept = KeepWeights()
    model, result = train(tmp_path / "run", FitOptions(25, 10), observers=Observers(callbacks=[kept]))
    assert kept.calls == ["begin", "end"]
    assert [epoch for epoch, _, _ in kept.epochs] == [0, 1, 2]
    rows = {row["step"]: row for row in result.rows}
    for epoch, loss, val_loss in kept.epochs:
        steps = range(10 * epoch + 1, min(25, 10 * epoch + 10) + 1)
        tokens = [rows[step]["tokens"] - rows.get(step - 1, {}).get("tokens", 0) for step in steps]
        mean = np.average([rows[step]["loss"] for step in steps], weights=tokens)
        assert loss == pytest.approx(mean, rel=1e-6)
        assert val_loss == pytest.approx(rows[steps[-1]]["val_loss"])
    assert model.history.history["val_loss"] == [val_loss for _, _, val_loss in kept.epochs]


def test_the_log_has_what_each_step_did(tmp_path: Path) -> None:
    _, result = train(tmp_path / "run", FitOptions(12, 10))
    text = (tmp_path / "run" / "log.csv").read_text()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert [row["step"] for row in result.rows] == [*range(13)]
    model, tokens = compiled(), 0
    for row in result.rows[1:]:
        step = row["step"] - 1
        batch = TinyData().batch(step)
        total, _ = model(batch, tf.constant(step))
        assert row["loss"] == pytest.approx(float(total) / batch["weights"].sum(), rel=1e-5)
        assert row["learning_rate"] == pytest.approx(0.05 * (1 - step / 60), rel=1e-5)
        assert row["epoch"] == (step + 1) / 10
        model.train_step(batch)
        tokens += int(batch["weights"].sum())
        assert row["tokens"] == tokens
    validated = {row["step"]: row for row in result.rows if "val_loss" in row}
    assert [*validated] == [0, 10, 12]
    assert all(row["val_perplexity"] == pytest.approx(math.exp(row["val_loss"])) for row in validated.values())
    assert np.float32(result.loss_before) == np.float32(validated[0]["val_loss"])
    assert np.float32(result.loss) == np.float32(validated[12]["val_loss"])


def test_the_best_weights_are_those_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    """With a rate so high that it soon gets worse."""
    kept = KeepWeights()
    model = compiled(learning_rate=3.0)
    _, result = train(tmp_path / "run", FitOptions(12, 2), model=model, observers=Observers(callbacks=[kept]))
    losses = {row["step"]: row["val_loss"] for row in result.rows if "val_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    assert best not in (result.steps,)
    assert (result.best_step, np.float32(result.best_loss)) == (best, np.float32(losses[best]))
    restore_best(RunFolder(tmp_path / "run"), model, best, result.best_loss)
    np.testing.assert_array_equal(model.table.numpy(), kept.tables[best])


def test_patience_ends_a_run_that_was_interrupted_where_it_ends_the_whole_one(tmp_path: Path) -> None:
    options = FitOptions(40, 2, save_every=1, patience=3)

    def model() -> keras.Model:
        return compiled(learning_rate=3.0)

    _, whole = train(tmp_path / "whole", options, model=model())
    assert whole.stopped_early
    assert whole.steps == whole.best_step + 2 * 3
    observers = Observers(callbacks=[RaiseAt(whole.steps - 1)])
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "parts", options, model=model(), observers=observers)
    _, parts = train(tmp_path / "parts", options, model=model())
    assert (parts.steps, parts.best_step, parts.stopped_early) == (whole.steps, whole.best_step, True)
    _, again = train(tmp_path / "parts", options, model=model())
    assert (again.steps, again.resumed_at) == (whole.steps, whole.steps)


def test_a_loss_that_is_no_number_is_one_line_and_the_state_before_stays(tmp_path: Path) -> None:
    options = FitOptions(20, 4, save_every=1)
    with pytest.raises(DivergedError) as caught:
        train(tmp_path / "run", options, data=TinyData(poison_from=6))
    message = str(caught.value)
    assert "the loss of step 7 is nan: start over with a learning rate below 0.045 and --fresh" in message
    _, result = train(tmp_path / "run", options)
    assert (result.resumed_at, result.steps) == (6, 20)


def test_a_validation_loss_that_is_no_number_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="the validation loss after step 0 is nan"):
        train(tmp_path / "run", FitOptions(20, 4), validation=TinyData(poison_from=0))


def test_without_validation_there_is_no_best_and_no_early_stop(tmp_path: Path) -> None:
    _, result = train(tmp_path / "run", FitOptions(5, 2, patience=1), validation=None)
    assert (result.steps, result.loss, result.best_loss, result.stopped_early) == (5, None, None, False)
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_no_steps_measure_and_change_nothing(tmp_path: Path) -> None:
    model, result = train(tmp_path / "run", FitOptions(0, 10))
    np.testing.assert_array_equal(model.table.numpy(), compiled().table.numpy())
    assert (result.steps, result.best_step) == (0, 0)
    assert result.loss == result.loss_before


def test_tensorboard_finds_each_step_once_after_an_interruption(tmp_path: Path) -> None:
    options = FitOptions(8, 4, save_every=3)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", options, observers=Observers(callbacks=[RaiseAt(5)]))
    _, result = train(tmp_path / "run", options)
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for file in (tmp_path / "run" / "events").rglob("*tfevents*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                curves.setdefault((file.parent.name, value.tag), []).append((event.step, value.simple_value))
    assert curves["train", "loss"] == [(row["step"], np.float32(row["loss"])) for row in result.rows[1:]]
    assert [step for step, _ in curves["validation", "loss"]] == [0, 4, 8]
    assert [step for step, _ in curves["validation", "perplexity"]] == [0, 4, 8]
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.csv")] == [*range(9)]


def test_the_watcher_hears_of_steps_and_evaluations(tmp_path: Path) -> None:
    watcher = Recorder()
    _, result = train(tmp_path / "run", FitOptions(6, 3), observers=Observers(watcher=watcher))
    assert [(report.step, report.steps) for report in watcher.steps] == [(step, 6) for step in range(1, 7)]
    assert all(report.tokens_per_second > 0 and report.seconds_left >= 0 for report in watcher.steps)
    assert [(report.step, np.float32(report.loss)) for report in watcher.evaluations] == [
        (row["step"], np.float32(row["val_loss"])) for row in result.rows if "val_loss" in row
    ]


class Signal(keras.callbacks.Callback):
    """Sends a signal to this process at the beginning of a step, or in the n-th evaluation."""

    def __init__(self, number: int, *, step: int = -1, evaluation: int = -1) -> None:
        super().__init__()
        self.number, self.step, self.evaluation = number, step, evaluation
        self.evaluations = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations.numpy()) + 1 == self.step:
            os.kill(os.getpid(), self.number)

    def on_test_begin(self, logs: Any = None) -> None:
        self.evaluations += 1
        if self.evaluations == self.evaluation:
            os.kill(os.getpid(), self.number)


def test_ctrl_c_ends_after_the_step_that_it_came_in_and_the_state_is_saved(tmp_path: Path) -> None:
    options = FitOptions(20, 10)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", options, observers=Observers(callbacks=[Signal(signal.SIGINT, step=7)]))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    whole, _ = train(tmp_path / "whole", options)
    parts, result = train(tmp_path / "run", options)
    assert result.resumed_at == 7
    np.testing.assert_array_equal(parts.table.numpy(), whole.table.numpy())


def test_an_evaluation_that_ctrl_c_ends_is_done_by_the_next_run(tmp_path: Path) -> None:
    """The first evaluation within ``fit`` is that after step 4."""
    options = FitOptions(8, 4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", options, observers=Observers(callbacks=[Signal(signal.SIGINT, evaluation=1)]))
    _, result = train(tmp_path / "run", options)
    assert result.resumed_at == 4
    assert [row["step"] for row in result.rows] == [*range(9)]
    assert [row["step"] for row in result.rows if "val_loss" in row] == [0, 4, 8]
    assert "loss" in result.rows[4]


class InfiniteGradients(TinyData):
    """From step 3 on the loss is finite, and its gradient is not: as of a weight that overflows."""

    def batch(self, step: int) -> dict[str, np.ndarray[Any, Any]]:
        batch = super().batch(step)
        return {**batch, "scale": np.float32([np.inf if step in self.steps else 1.0])}

    def __init__(self, steps: range) -> None:
        super().__init__()
        self.steps = steps


class Scaled(TinyModel):
    """Its gradients are multiplied by a number of the batch, its loss is not."""

    def call(self, batch: dict[str, tf.Tensor], step: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        total, count = super().call(batch, step)
        scale = batch.get("scale", tf.ones([1]))[0]

        @tf.custom_gradient
        def scaled(x: tf.Tensor) -> Any:
            return tf.identity(x), lambda upstream: upstream * scale

        return scaled(total), count


@pytest.mark.parametrize(("count", "ends"), [(9, False), (10, True)])
def test_updates_that_are_left_out_are_told_and_ten_in_a_row_end_training(
    tmp_path: Path, count: int, ends: bool
) -> None:
    watcher, model = Recorder(), compiled(model=Scaled())
    data = InfiniteGradients(range(3, 3 + count))
    if ends:
        with pytest.raises(DivergedError, match="the gradients of the last 10 steps are no finite numbers: start over"):
            train(tmp_path / "run", FitOptions(14, 20), model=model, data=data, observers=Observers(watcher))
    else:
        train(tmp_path / "run", FitOptions(14, 20), model=model, data=data, observers=Observers(watcher))
    notes = [f"step {4 + number}: a gradient is inf: the update was left out" for number in range(count)]
    assert [note.replace("nan", "inf") for note in watcher.notes] == notes


@pytest.mark.parametrize(
    "room", [200, pytest.param(1000, marks=pytest.mark.slow), pytest.param(8000, marks=pytest.mark.slow)]
)
def test_wherever_the_disk_is_full_it_is_one_line_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, room: int
) -> None:
    options = FitOptions(12, 6, save_every=2)
    with full_disk(room), pytest.raises(RunError) as caught:
        train(tmp_path / "run", options)
    assert "make room and give the same command again" in str(caught.value)
    model, _ = train(tmp_path / "run", options)
    assert weights_hash(model) == weights_hash(train(tmp_path / "whole", options)[0])


def test_a_signal_that_comes_when_all_is_done_is_not_lost(tmp_path: Path) -> None:
    class AtTheEnd(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", FitOptions(2, 2), observers=Observers(callbacks=[AtTheEnd()]))
    _, result = train(tmp_path / "run", FitOptions(2, 2))
    assert result.resumed_at == 2


def test_a_command_that_is_terminated_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    observers = Observers(callbacks=[Signal(signal.SIGTERM, step=3)])
    code = main_guard(lambda: train(tmp_path / "run", FitOptions(20, 10), observers=observers), "it goes on")
    assert code == 143
    assert capsys.readouterr().err == "error: terminated; it goes on\n"
    assert b'{"step": 3,' in (tmp_path / "run" / "state.safetensors").read_bytes()
