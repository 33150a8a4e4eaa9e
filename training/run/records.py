"""The files that a run writes while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from training.run.events import Events
from training.run.log import Log, read_log
from training.run.run_folder import MAKE_ROOM, RunFolder, writing_to
from training.run.state import Counters, save_best, save_state


class Records:
    """Log, events, state, best weights and samples in the folder of a run, which goes on from ``counters``.

    Errors are those of ``state`` and ``log``.
    """

    def __init__(self, run: RunFolder, counters: Counters) -> None:
        self._run = run
        self._log = Log(run.log, counters.step)
        self._events = Events(run.events, read_log(run.log), counters.seconds)

    @property
    def kept(self) -> str:
        """Where the last state is, as a part of a message; empty where there is none."""
        return f"{self._run.folder} keeps the last state and the best weights" if self._run.state.exists() else ""

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Write a row of the log, and the event that it is."""
        self._log.append(row)
        self._events.append(row)

    def write_samples(self, step: int, texts: Sequence[str]) -> None:
        """Write what the model wrote after ``step`` updates."""
        file = self._run.samples / f"step-{step}.txt"
        with writing_to(file, MAKE_ROOM):
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n\n".join(texts) + "\n", "utf-8")

    def save_best(self, model: keras.Model, step: int, loss: float) -> None:
        """Write the trained variables as the best ones, of ``step`` with validation loss ``loss``."""
        save_best(self._run, model, step, loss)

    def save(self, model: keras.Model, counters: Counters) -> None:
        """Write the state, after the rows of the log."""
        self._log.sync()
        save_state(self._run, model, counters)

    def close(self) -> None:
        """Close the log and the events."""
        self._log.close()
        self._events.close()


class NoRecords(Records):
    """Writes nothing: of several workers the chief alone keeps records."""

    kept = ""

    def __init__(self) -> None:
        """Open no file."""

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Leave it to the chief, as all others."""

    def write_samples(self, step: int, texts: Sequence[str]) -> None:
        pass

    def save_best(self, model: keras.Model, step: int, loss: float) -> None:
        pass

    def save(self, model: keras.Model, counters: Counters) -> None:
        pass

    def close(self) -> None:
        pass
