"""A training that takes seconds: a model of its own with dropout, a schedule, AdamW and clipping, on random tokens."""

from __future__ import annotations

import contextlib
import hashlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.optimizers.adamw import make_optimizer
from training.run.callbacks import FitOptions, Observers
from training.run.fitting import FitResult, fit
from training.run.run_folder import open_run

VOCABULARY, WIDTH, ROWS, LENGTH = 13, 64, 4, 5


class TinyModel(keras.Model):
    """Predicts the next token from one token, through a hidden layer with dropout that is keyed by the step."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(name="tiny")
        random = keras.initializers.RandomNormal(stddev=0.2, seed=seed)
        self.frozen = self.add_weight(name="frozen", shape=(WIDTH,), initializer="ones", trainable=False)
        self.table = self.add_weight(name="table", shape=(VOCABULARY, WIDTH), initializer=random)
        self.output_matrix = self.add_weight(name="output", shape=(WIDTH, VOCABULARY), initializer=random)
        self.built = True

    def call(self, batch: dict[str, tf.Tensor], step: tf.Tensor | None = None) -> tf.Tensor:
        hidden = tf.tanh(tf.gather(tf.convert_to_tensor(self.table.value), batch["ids"])) * self.frozen.value
        if step is not None:
            seed = tf.stack([7, tf.cast(step, tf.int32)])
            hidden = tf.where(tf.random.stateless_uniform(tf.shape(hidden), seed) < 0.9, hidden / 0.9, 0.0)
        logits = tf.tensordot(hidden, self.output_matrix.value, 1)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], logits)
        return tf.reduce_sum(losses * batch["weights"]), tf.reduce_sum(batch["weights"])

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            total, count = self(batch, self.optimizer.iterations.value)
            loss = total / count
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return self._logs(loss, count)

    def test_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        total, count = self(batch)
        return self._logs(total / count, count)

    def _logs(self, loss: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
        self._loss_tracker.update_state(loss, sample_weight=count)
        return {"loss": self._loss_tracker.result()}


class TinyData:
    """Batches that follow from the step, and one batch to validate with."""

    steps_per_epoch = 10

    def __init__(self, poison_from: int | None = None) -> None:
        self._poison = poison_from

    def batch(self, step: int) -> dict[str, np.ndarray[Any, Any]]:
        random = np.random.default_rng([1, step])
        ids = random.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
        ids[:, 1::2] = (ids[:, :-1:2] + 1) % VOCABULARY  # something to be learnt
        weights = (random.random((ROWS, LENGTH)) < 0.8).astype(np.float32)
        if self._poison is not None and step >= self._poison:
            weights[0, 0] = np.inf
        return {"ids": ids[:, :-1], "labels": ids[:, 1:], "weights": weights}

    def dataset(self, first: int = 100_000, last: int = 100_001) -> tf.data.Dataset:
        batches = [self.batch(step) for step in range(first, last)]
        dataset = tf.data.Dataset.from_tensor_slices(
            {name: np.stack([b[name] for b in batches]) for name in batches[0]}
        )
        options = tf.data.Options()
        options.autotune.enabled = False
        return dataset.with_options(options)


def compiled(learning_rate: float = 0.05, seed: int = 0, model: TinyModel | None = None) -> TinyModel:
    model = model or TinyModel(seed)
    model.compile(optimizer=make_optimizer(learning_rate, 60, warmup=0.0), jit_compile=False)
    return model


def weights_hash(model: keras.Model) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.trainable_variables)).hexdigest()


def train(
    folder: Path,
    options: FitOptions,
    *,
    observers: Observers = Observers(),  # noqa: B008
    model: keras.Model | None = None,
    data: Any = None,
    validation: Any = TinyData(),  # noqa: B008
) -> tuple[keras.Model, FitResult]:
    model, data = model or compiled(), data or TinyData()
    with open_run(folder, {"options": "the same"}) as run:
        return model, fit(model, data, validation, options, run, observers)


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may have more than so many bytes: a write beyond fails, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class RaiseAt(keras.callbacks.Callback):
    """Ends a training with an exception at the end of a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            raise ZeroDivisionError


def _gpt2(rows: int = 24) -> dict[str, Any]:
    """A GPT-2 of one layer with the optimizer and the batches of a fine-tuning, for ``train``."""
    from tf_model.config import GPT2Config
    from tf_model.gpt2 import GPT2
    from training.model.trained_gpt2 import TrainedGPT2
    from training.texts.batches import Batches, ValidationBatches
    from training.texts.packing import pack
    from training.texts.presets import EncodedDocument

    keras.utils.set_random_seed(3)
    model = TrainedGPT2(GPT2(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)), dropout=0.1)
    model.compile(optimizer=make_optimizer(0.01, 60, clip=0.5), jit_compile=False)
    random = np.random.default_rng(0)
    documents = [EncodedDocument(tuple(random.integers(0, 50, random.integers(5, 30)).tolist())) for _ in range(rows)]
    return {
        "model": model,
        "data": Batches(pack(documents, 15), 6, 2, seed=5),
        "validation": ValidationBatches(pack(documents[:5], 15), 2),
    }


KINDS = {"tiny": dict, "gpt2": _gpt2}
"""What is trained, for ``train``."""
