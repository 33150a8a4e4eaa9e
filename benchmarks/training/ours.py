"""A step of this project, as ``finetune`` makes it: Keras's ``fit`` for the first, its compiled step for the others."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.training.plan import Trainer
from tf_model.config import GPT2Config
from training.model.lora import Adapters, LoraConfig
from training.model.new_model import NewModel
from training.model.trained_gpt2 import TrainedGPT2
from training.model.weights import load_gpt2
from training.optimizers.adamw import make_optimizer


def batch(vocabulary: int, rows: int, length: int, micro_batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random rows without padding, one document each, as ``training.texts.batches.Batches`` gives them."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows // micro_batch, micro_batch, length + 1), np.int32)
    shape = ids[..., 1:].shape
    return {
        "ids": ids[..., :-1],
        "labels": ids[..., 1:],
        "segments": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), shape),
        "weights": np.ones(shape, np.float32),
    }


class OurSteps:
    """See ``worker.Steps``."""

    def __init__(self, trainer: Trainer, config: GPT2Config, size: tuple[int, int], threads: int) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        gpt2 = load_gpt2(NewModel(config, 0), trainer.weights)
        adapters = Adapters(gpt2, LoraConfig(trainer.rank)) if trainer.rank else None
        self._model = TrainedGPT2(gpt2, adapters=adapters, recompute=trainer.recompute, products=trainer.products)
        self._model.compile(optimizer=make_optimizer(1e-5, 1000), jit_compile=False)
        options = tf.data.Options()
        options.autotune.enabled = False
        rows = batch(config.vocab_size, *size, trainer.micro_batch or size[0])
        self._data = tf.data.Dataset.from_tensors(rows).repeat().with_options(options)
        self._rest: Any = None
        self.tracing = 0.0

    def step(self) -> float:
        if self._rest is None:
            self._model.train_step = self._timed(self._model.train_step)
            history = self._model.fit(self._data, steps_per_epoch=1, verbose=0)
            self._rest = iter(self._data)
            return float(history.history["loss"][0])
        return float(self._model.train_function(self._rest)["loss"])

    def _timed(self, function: Any) -> Any:
        def call(data: Any) -> Any:
            started = time.perf_counter()
            result = function(data)
            self.tracing += time.perf_counter() - started
            return result

        return call
