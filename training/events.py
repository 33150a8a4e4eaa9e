"""The log in the form that TensorBoard reads: two runs, ``train`` and ``validation``, with a curve for each column.

TensorBoard's own writer would need the package tensorboard, which TensorFlow no longer installs.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

_CURVES = {
    "train": {"loss": "loss", "learning_rate": "learning_rate", "tokens_per_second": "tokens_per_second"},
    "validation": {"val_loss": "loss", "val_perplexity": "perplexity"},
}
"""Run -> column of the log -> curve."""


class Events:
    """Event files of a run. They are written anew from the log at each start, and so have no step twice.

    Args:
        folder: is replaced.
        rows: of the log so far.
        seconds: that the run has taken so far.
    """

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, Any]], seconds: float) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._began = time.time() - seconds
        self._files = {}
        for run in _CURVES:
            (folder / run).mkdir(parents=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            self._files[run] = tf.io.TFRecordWriter(str(folder / run / name))
            self._write(run, tf.compat.v1.Event(wall_time=self._began, file_version="brain.Event:2"))
        for row in rows:
            self._add(row)
        self.flush()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row of the log."""
        self._add(row)
        self.flush()

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _add(self, row: Mapping[str, Any]) -> None:
        for run, curves in _CURVES.items():
            values = [
                tf.compat.v1.Summary.Value(tag=tag, simple_value=row[column])
                for column, tag in curves.items()
                if column in row
            ]
            if values:
                when = self._began + row.get("seconds", 0.0)
                event = tf.compat.v1.Event(wall_time=when, step=row["step"], summary=tf.compat.v1.Summary(value=values))
                self._write(run, event)

    def _write(self, run: str, event: Any) -> None:
        self._files[run].write(event.SerializeToString())
