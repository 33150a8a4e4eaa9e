"""Trainings in processes that are killed: ``python -m tests.helpers.killed_training KIND FOLDER STEPS KILLS``.

KILLS is a JSON list: for each a process is started and killed, one after the other on the same folder; the last one
ends by itself. Then one process trains in another folder without being stopped. Both print the SHA-256 of their
weights. Processes are forks of one that has imported TensorFlow, and not started it: that saves seconds for each.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import keras

from tests.helpers import tiny_training
from training.run.callbacks import FitOptions, Observers

SAVE_EVERY, EVALUATE_EVERY = 4, 10


class Kill(keras.callbacks.Callback):
    """SIGKILL at the end of a step, or in the middle of the first file after it that has more than so many bytes."""

    def __init__(self, step: int, in_file_of: int | None) -> None:
        super().__init__()
        self.step, self.in_file_of = step, in_file_of

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations.numpy()) != self.step:
            return
        if self.in_file_of is None:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; by itself it ends a process in write()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.in_file_of, self.in_file_of))


def in_a_fork(kind: str, folder: Path, options: FitOptions, kill: dict[str, Any] | None) -> int:
    """Train; return the wait status."""
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    observers = Observers(callbacks=[Kill(kill["step"], kill.get("in_file_of"))] if kill else [])
    code = 1
    try:
        model, _ = tiny_training.train(folder, options, observers=observers, **tiny_training.KINDS[kind]())
        print(tiny_training.weights_hash(model), flush=True)
        code = 0
    finally:
        os._exit(code)


def main(kind: str, folder: str, steps: str, kills: str) -> None:
    options = FitOptions(steps=int(steps), evaluate_every=EVALUATE_EVERY, save_every=SAVE_EVERY)
    for kill in json.loads(kills):
        status = in_a_fork(kind, Path(folder), options, kill)
        expected = signal.SIGKILL if "in_file_of" not in kill else signal.SIGXFSZ
        assert os.waitstatus_to_exitcode(status) == -expected, kill
        if "in_file_of" in kill:
            assert Path(folder, "state.safetensors.new").stat().st_size == kill["in_file_of"]
            before = kill["step"] // SAVE_EVERY * SAVE_EVERY
            assert f'{{"step": {before},'.encode() in Path(folder, "state.safetensors").read_bytes()
    for run in (folder, f"{folder}-whole"):
        assert in_a_fork(kind, Path(run), options, None) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
