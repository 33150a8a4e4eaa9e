"""What happens after each step and each evaluation of Keras's ``fit``: log, state, best weights, early stopping."""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras

from training.run.log import perplexity, shortest
from training.run.records import Records
from training.run.state import Counters, DivergedError
from training.run.stopping import Stopped, StopRequest
from training.run.watching import EvaluationReport, StepReport, Watcher

_LEFT_OUT_IN_A_ROW = 10
"""Updates in a row that may be left out; then training ends, as it would do nothing for ever."""


class Sampler(Protocol):
    """Writes texts with the current weights."""

    def draw(self) -> Sequence[str]:
        """Return the texts."""


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How long ``fit`` trains, and how often it evaluates and saves.

    Attributes:
        steps: updates in all.
        evaluate_every: steps between two evaluations; the last step has one, too.
        save_every: steps between two states; None saves by time.
        save_seconds: seconds between two states when nothing else has saved one.
        patience: evaluations without a better loss after which training ends; 0 never ends it.
    """

    steps: int
    evaluate_every: int
    save_every: int | None = None
    save_seconds: float = 300.0
    patience: int = 0

    def interval_end(self, step: int) -> int:
        """Return the step of the next evaluation after ``step``."""
        return min(self.steps, (step // self.evaluate_every + 1) * self.evaluate_every)

    def is_interval_end(self, step: int) -> bool:
        """Whether an evaluation follows ``step``."""
        return step == self.steps or step % self.evaluate_every == 0


class Speed:
    """Tokens and seconds of the last 20 steps.

    The first step of a process traces the graph: it counts only until the second one is done.

    Args:
        clock: returns seconds, as ``time.monotonic``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._steps: collections.deque[tuple[float, int]] = collections.deque(maxlen=20)
        self._done = 0

    def begin(self) -> None:
        """Start the clock of a step."""
        self._began = self._clock()

    def end(self, tokens: int) -> None:
        """Stop it."""
        if self._done == 1:
            self._steps.clear()
        self._done += 1
        self._steps.append((self._clock() - self._began, tokens))

    @property
    def seconds_per_step(self) -> float:
        return sum(seconds for seconds, _ in self._steps) / len(self._steps)

    @property
    def tokens_per_second(self) -> float:
        return sum(tokens for _, tokens in self._steps) / max(1e-9, sum(seconds for seconds, _ in self._steps))


@dataclasses.dataclass(frozen=True)
class Observers:
    """The caller's objects that take part in a run.

    Attributes:
        watcher: gets reports and notes.
        sampler: writes texts after each evaluation, to ``samples/step-N.txt``.
        callbacks: Keras callbacks of the caller's own. Their epochs are the intervals between two evaluations.
    """

    watcher: Watcher = dataclasses.field(default_factory=Watcher)
    sampler: Sampler | None = None
    callbacks: Sequence[keras.callbacks.Callback] = ()


class RunCallback(keras.callbacks.Callback):
    """Counts, records and ends a run. It comes before all other callbacks, which see its loss of the step as ``loss``.

    Keras's loss tracker is set to zero at each step: its sums are float32, and would have to be saved. The sums over an
    interval are in ``Counters``, in float64.

    Args:
        records: writes log, state, best weights and samples.
        options: how long to train, how often to evaluate and save.
        counters: where the run is; changed in place.
        steps_per_epoch: updates that see the whole text once, for the log.
        stop: whether a signal has asked to stop.
        observers: the caller's.
    """

    def __init__(
        self,
        records: Records,
        options: FitOptions,
        counters: Counters,
        steps_per_epoch: int,
        stop: StopRequest,
        observers: Observers,
    ) -> None:
        super().__init__()
        self._records, self._options, self._stop = records, options, stop
        self.counters = counters
        self._steps_per_epoch, self._observers = steps_per_epoch, observers
        self._speed = Speed(time.monotonic)
        self._saved = self._started = time.monotonic()
        self._seconds_before = counters.seconds
        self._learning_rate = 0.0

    def close(self) -> None:
        """Close the records."""
        self._records.close()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._speed.begin()
        self.model.reset_metrics()
        self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        counters = self.counters
        tracker = self.model.metrics[0]
        loss = float(tracker.result())
        counters.step += 1
        if not math.isfinite(loss):
            raise DivergedError(self._diverged(f"the loss of step {counters.step} is {loss}"))
        tokens = round(float(tracker.count))
        counters.tokens += tokens
        counters.interval_loss += loss * tokens
        counters.interval_tokens += tokens
        self._speed.end(tokens)
        norm = float(self.model.optimizer.gradient_norm.numpy())  # of several workers it is no plain variable
        self._count_left_out(norm)
        counters.row = self._row(loss, norm)
        self._report(loss)
        if not self._options.is_interval_end(counters.step):
            self._write_row()
            self._save_if_due()
        if self._stop.is_made:
            self._save()
            raise Stopped

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._stop.is_made:
            self._save()
            raise Stopped

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        counters, logs = self.counters, {} if logs is None else logs
        logs["loss"] = counters.interval_loss / max(1, counters.interval_tokens)
        self.evaluated(logs.get("val_loss"))
        if counters.is_stopped:
            self.model.stop_training = True

    def evaluated(self, loss: float | None) -> None:
        """Take the validation loss after the current step, None without validation: the end of an interval."""
        counters = self.counters
        if loss is not None:
            self._take_validation_loss(loss)
        counters.evaluated = counters.step
        counters.interval_loss, counters.interval_tokens = 0.0, 0
        if counters.row is not None or loss is not None:
            counters.row = {"step": counters.step, **(counters.row or {})}
            if loss is not None:
                counters.row |= {"val_loss": shortest(loss), "val_perplexity": float(f"{perplexity(loss):.7g}")}
            self._write_row()
        self._sample()
        self._save()

    def _take_validation_loss(self, loss: float) -> None:
        """Save the weights if no earlier loss was as low, else count the evaluation; report both to the watcher."""
        counters = self.counters
        if not math.isfinite(loss):
            raise DivergedError(self._diverged(f"the validation loss after step {counters.step} is {loss}"))
        counters.loss = loss
        if counters.loss_before is None:
            counters.loss_before = loss
        is_best = counters.best_loss is None or loss < counters.best_loss
        if is_best:
            counters.best_loss, counters.best_step, counters.waited = loss, counters.step, 0
            self._records.save_best(self.model, counters.step, loss)
        else:
            counters.waited += 1
            counters.is_stopped = 0 < self._options.patience <= counters.waited
        self._observers.watcher.evaluation(EvaluationReport(counters.step, loss, perplexity(loss), is_best))

    def _diverged(self, fact: str) -> str:
        """Return the message of a ``DivergedError``: the fact, advice, and where the last state is."""
        advice = f"start over with a learning rate below {self._learning_rate:.3g} and --fresh"
        return "; ".join(filter(None, [f"{fact}: {advice}", self._records.kept]))

    def _count_left_out(self, norm: float) -> None:
        """Count the updates that the optimizer has left out because a gradient was no finite number."""
        counters = self.counters
        if math.isfinite(norm):
            counters.left_out = 0
            return
        counters.left_out += 1
        self._observers.watcher.note(f"step {counters.step}: a gradient is {norm}: the update was left out")
        if counters.left_out == _LEFT_OUT_IN_A_ROW:
            raise DivergedError(
                self._diverged(f"the gradients of the last {_LEFT_OUT_IN_A_ROW} steps are no finite numbers")
            )

    def _row(self, loss: float, norm: float) -> dict[str, Any]:
        counters = self.counters
        return {
            "step": counters.step,
            "epoch": round(counters.step / self._steps_per_epoch, 4),
            "tokens": counters.tokens,
            "loss": shortest(loss),
            "learning_rate": shortest(self._learning_rate),
            "gradient_norm": shortest(norm),
            "tokens_per_second": round(self._speed.tokens_per_second, 1),
            "seconds": round(self._seconds(), 3),
        }

    def _write_row(self) -> None:
        """Write the row that waits."""
        if self.counters.row is not None:
            self._records.write_row(self.counters.row)
        self.counters.row = None

    def _report(self, loss: float) -> None:
        counters, steps = self.counters, self._options.steps
        left = (steps - counters.step) * self._speed.seconds_per_step
        rate = self._speed.tokens_per_second
        self._observers.watcher.step(StepReport(counters.step, steps, loss, self._learning_rate, rate, left))

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _sample(self) -> None:
        if self._observers.sampler is None:
            return
        texts = self._observers.sampler.draw()
        self._records.write_samples(self.counters.step, texts)
        self._observers.watcher.samples(self.counters.step, texts)

    def _save_if_due(self) -> None:
        every = self._options.save_every
        by_time = time.monotonic() - self._saved >= self._options.save_seconds
        if by_time if every is None else self.counters.step % every == 0:
            self._save()

    def _save(self) -> None:
        self.counters.seconds = self._seconds()
        try:
            self._records.save(self.model, self.counters)
        except DivergedError as error:
            raise DivergedError(self._diverged(f"after step {self.counters.step} {error}")) from error
        self._saved = time.monotonic()
