"""The learning rate of each update: warm-up, then down a line or a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from training.setting import round_up

SHAPES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + tf.cos(math.pi * progress)),
    "constant": tf.ones_like,
}
"""The share of the peak that is left when ``progress`` (0 to 1) of the updates after the warm-up are done."""


@keras.saving.register_keras_serializable("gpt2_savedmodel")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The rate of update s of T (s from 0), with W = ceil(warmup * T) updates of warm-up before the peak.

    - s < W: peak * (s + 1) / (W + 1), nanoGPT's ``get_lr``. transformers has s / W, whose first update does nothing.
    - s >= W: peak * (end + (1 - end) * shape((s - W) / (T - W))). With ``end`` 0 these are
      ``get_linear_schedule_with_warmup``, ``get_cosine_schedule_with_warmup`` and ``get_constant_schedule_with_warmup``
      of transformers. CPM-1-Finetune's linear one ends at its share of warm-up: ``warmup`` and ``end`` 0.1 are its own.

    After T updates the rate stays where it is. No update of the T has the rate 0.

    Attributes:
        peak: the highest rate.
        steps: T, the updates of the whole training.
        warmup: the share of them that the rate rises in.
        kind: a key of ``SHAPES``.
        end: the share of the peak that ``linear`` and ``cosine`` end at.
    """

    def __init__(self, peak: float, steps: int, warmup: float = 0.1, kind: str = "linear", end: float = 0.0) -> None:
        self.peak, self.steps, self.warmup, self.kind, self.end = peak, steps, warmup, kind, end
        self._shape = SHAPES[kind]
        self._rising = min(round_up(warmup, steps), steps - 1)

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the rate of the update that comes after ``step`` others, a float32 scalar."""
        step = tf.cast(step, tf.float32)
        rising = (step + 1.0) / (self._rising + 1.0)
        progress = tf.clip_by_value((step - self._rising) / (self.steps - self._rising), 0.0, 1.0)
        falling = self.end + (1.0 - self.end) * self._shape(progress)
        return self.peak * tf.where(step < self._rising, rising, falling)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps, "warmup": self.warmup, "kind": self.kind, "end": self.end}
