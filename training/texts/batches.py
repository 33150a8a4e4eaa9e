"""Batches of packed rows: the batch of a step is a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.texts.packing import PackedRows

if TYPE_CHECKING:
    import tensorflow as tf

Batch = dict[str, NDArray[Any]]
"""``ids``, ``labels``, ``segments``, ``positions`` int32 and ``weights`` float32, each ``[M, b, S]``.

M micro-batches of b rows make an update; ``weights`` is 1 where the label is predicted.
"""


class Batches:
    """The batches of training, an update each.

    An epoch is a permutation of the rows, another one each time, in batches of about ``batch_size`` rows that differ by
    one row at most: each row is used once an epoch, and no batch is much smaller than the others. What is left of the
    micro-batches is rows of weight 0.

    Args:
        rows: what is trained on.
        batch_size: rows of an update, at most; all of them where there are fewer.
        micro_batch: rows that go through the model at once.
        seed: of the permutations.
    """

    def __init__(self, rows: PackedRows, batch_size: int, micro_batch: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._count = len(rows.ids)
        self.batch_size = max(1, min(batch_size, self._count))
        self.micro_batch = min(micro_batch, self.batch_size)
        self.steps_per_epoch = -(-self._count // self.batch_size)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, from 0."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
        chosen = np.array_split(order, self.steps_per_epoch)[number]
        micro_batches = -(-self.batch_size // self.micro_batch)
        return _gather(self._rows, chosen, (micro_batches, self.micro_batch))

    def dataset(self, first: int, last: int) -> tf.data.Dataset:
        """Return the batches of steps ``first`` to ``last - 1``."""
        return as_dataset(self.batch, first, last)


class ValidationBatches:
    """Every row once, in order, ``micro_batch`` rows at a time; the last ones may be of weight 0."""

    def __init__(self, rows: PackedRows, micro_batch: int) -> None:
        self._rows = rows
        self._micro_batch = max(1, min(micro_batch, len(rows.ids)))
        self.steps = -(-len(rows.ids) // self._micro_batch)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, from 0, with one micro-batch."""
        start = step * self._micro_batch
        chosen = np.arange(start, min(start + self._micro_batch, len(self._rows.ids)))
        return _gather(self._rows, chosen, (1, self._micro_batch))

    def dataset(self) -> tf.data.Dataset:
        """Return all batches."""
        return as_dataset(self.batch, 0, self.steps)


def _gather(rows: PackedRows, chosen: NDArray[np.intp], shape: tuple[int, int]) -> Batch:
    """Return the chosen rows, and as many of weight 0 as ``shape``, (micro-batches, rows of each), has room for."""

    def padded(values: NDArray[Any]) -> NDArray[Any]:
        result = np.zeros((shape[0] * shape[1], values.shape[1]), values.dtype)
        result[: len(values)] = values
        return result.reshape(*shape, -1)

    ids = padded(rows.ids[chosen])
    return {
        "ids": ids[..., :-1],
        "labels": ids[..., 1:],
        "segments": padded(rows.segments[chosen])[..., :-1],
        "positions": padded(rows.positions[chosen])[..., :-1],
        "weights": padded(rows.predicted[chosen]).astype(np.float32),
    }


def as_dataset(batch: Callable[[int], Batch], first: int, last: int) -> tf.data.Dataset:
    """Return the batches of steps as a data set that knows how many they are.

    tf.data's autotuning is off: with TensorFlow 2.21 the end of ``fit`` waits for it, up to twice as long as the work
    took.
    """
    import tensorflow as tf

    example = batch(first)
    names = list(example)
    types = [tf.as_dtype(example[name].dtype) for name in names]

    def read(step: tf.Tensor) -> dict[str, tf.Tensor]:
        values = tf.numpy_function(lambda number: list(batch(int(number)).values()), [step], types)
        return {name: tf.ensure_shape(value, example[name].shape) for name, value in zip(names, values, strict=True)}

    dataset = tf.data.Dataset.range(first, last).map(read).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
