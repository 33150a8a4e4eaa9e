"""The log in the form that TensorBoard reads: two runs, ``train`` and ``validation``, with a curve for each column.

TensorBoard's own writer would need the package tensorboard, which TensorFlow no longer installs.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from support.tensorflow_runtime import one_line_message
from training.run.run_folder import MAKE_ROOM, RunError, writing_to

_CURVES = {
    "train": {name: name for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second")},
    "validation": {"val_loss": "loss", "val_perplexity": "perplexity"},
}
"""Run -> column of the log -> curve."""


class Events:
    """Event files of a run. They are written anew from the log at each start, and so have no step twice.

    Args:
        folder: is replaced.
        rows: of the log so far.
        seconds: that the run has taken so far.

    Raises:
        RunError: they cannot be written.
    """

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, Any]], seconds: float) -> None:
        self._folder = folder
        self._began = time.time() - seconds
        self._files = {}
        with self._translated():
            shutil.rmtree(folder, ignore_errors=True)
            for run in _CURVES:
                (folder / run).mkdir(parents=True)
                name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
                self._files[run] = tf.io.TFRecordWriter(str(folder / run / name))
                self._write(run, tf.compat.v1.Event(wall_time=self._began, file_version="brain.Event:2"))
            for row in rows:
                self._add(row)
            self._flush()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row of the log."""
        with self._translated():
            self._add(row)
            self._flush()

    def close(self) -> None:
        """Close the files; what was written is on the disk already."""
        for file in self._files.values():
            with contextlib.suppress(tf.errors.OpError):
                file.close()

    def _flush(self) -> None:
        for file in self._files.values():
            file.flush()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of TensorFlow's files, and of the folder, as one line."""
        try:
            with writing_to(self._folder, MAKE_ROOM):
                yield
        except tf.errors.OpError as error:
            raise RunError(f"{self._folder}: cannot be written: {one_line_message(error)}: {MAKE_ROOM}") from error

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
