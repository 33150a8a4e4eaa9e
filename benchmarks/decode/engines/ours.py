"""This project: the command converts, ``tf.saved_model.load`` loads, ``model.generate`` generates."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.decode.engines import Base, Rows, Timed
from benchmarks.decode.weights import Weights
from support.tensorflow_runtime import limit_malloc_arenas, set_threads
from tf_model.config import GPT2Config


def start_tensorflow(threads: int) -> Any:
    """TensorFlow with so many threads, and silent."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    return tf


class Adapter(Base):
    """The graph has no step of its own, so the steps are what more tokens take longer than one."""

    def prepare(self, weights: Weights, folder: Path) -> None:
        options = ["--checkpoint", weights.checkpoint, "--output", folder / "model", "--dtype", self.dtype, "--quiet"]
        command = [sys.executable, "-m", "convert", "pytorch-to-tf", *options, "--heads", weights.config.n_head]
        done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-200:])

    def start(self, threads: int) -> None:
        self._tf = start_tensorflow(threads)
        if threads == os.cpu_count():  # else what was asked for holds, not what suits the model
            self._tf.config.threading.set_intra_op_parallelism_threads(0)

    def load(self, folder: Path, config: GPT2Config) -> None:
        # What `exports.loaded_model` does for the commands.
        set_threads(folder / "model", rows=16 if self.several else 1)
        limit_malloc_arenas()
        self._model = self._tf.saved_model.load(str(folder / "model"))
        self._states: dict[tuple[int, int], Any] = {}

    def _inputs(self, rows: Rows) -> tuple[Any, Any]:
        width = max(map(len, rows))
        ids = [row + [0] * (width - len(row)) for row in rows]
        return self._tf.constant(ids, self._tf.int64), self._tf.constant([len(row) for row in rows], self._tf.int64)

    def _generate(self, rows: Rows, count: int) -> tuple[float, list[int]]:
        ids, lengths = self._inputs(rows)
        started = time.perf_counter()
        result = self._model.generate(ids, lengths, max_new_tokens=count, temperature=0.0, eos_token_id=-1)
        tokens = result["sequences"].numpy()[0, len(rows[0]) : len(rows[0]) + count]
        return time.perf_counter() - started, tokens.tolist()

    def decode(self, rows: Rows, steps: int) -> Timed:
        first, tokens = self._generate(rows, 1)
        if not steps:
            return first, 0.0, tokens
        more, tokens = self._generate(rows, steps + 1)
        return first, more - first, tokens

    def deep(self, rows: Rows, steps: int) -> Timed:
        """From a state that ``prefill`` made once, with room for as many tokens as ``generate`` would make."""
        ids, lengths = self._inputs(rows)
        key = len(rows[0]), steps
        if key not in self._states:
            self._states.clear()
            state = self._model.prefill(ids, lengths, capacity=len(rows[0]) + steps + 1)
            state.pop("logits")
            self._states[key] = state
        times: list[float] = []
        for count in (1, steps + 1):
            started = time.perf_counter()
            result = self._model.decode(
                ids, lengths, **self._states[key], max_new_tokens=count, temperature=0.0, eos_token_id=-1
            )
            tokens = result["sequences"].numpy()[0, len(rows[0]) : len(rows[0]) + count]
            times.append(time.perf_counter() - started)
        return times[0], times[1] - times[0], tokens.tolist()
