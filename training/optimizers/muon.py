"""Muon for the matrices of the blocks, AdamW for everything else: for models from nothing."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from training.optimizers.adamw import AdamW, Update
from training.optimizers.schedule import Schedule

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAMW_RMS = 0.2
"""The root mean square of AdamW's updates. Muon's are scaled to it, so both take one rate (arXiv:2502.16982)."""


@keras.saving.register_keras_serializable("gpt2_savedmodel")
class Muon(AdamW):
    """``AdamW``, but the matrices of blocks get an update with all its singular values near 1.

    The arithmetic is that of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``: Nesterov momentum 0.95, five
    steps of Newton and Schulz. Keras 3.15 has one of its own, which lacks the scale.
    """

    momentum = 0.95

    def __init__(
        self, learning_rate: float | Schedule = 1e-3, weight_decay: float = 0.1, *, beta_2: float = 0.98, **options: Any
    ) -> None:
        super().__init__(learning_rate, weight_decay, beta_2=beta_2, **options)

    def update_step(self, gradient: tf.Tensor, variable: Any, update: Update) -> None:
        """Update ``variable`` and its moments."""
        index = self._get_variable_index(variable)
        if not _is_of_block(self._trainable_variables[index]):
            super().update_step(gradient, variable, update)
            return
        is_made = tf.cast(update.clip > 0, tf.float32)  # 0 where the update is left out
        share = is_made * (1 - self.momentum)
        gradient = tf.math.multiply_no_nan(gradient, update.clip)
        momentum = self._momentums[index].value
        momentum.assign(momentum * (1 - share) + gradient * share)
        mixed = gradient * (1 - self.momentum) + momentum * self.momentum
        rate = is_made * tf.cast(self.learning_rate, tf.float32) * _ADAMW_RMS * max(variable.shape) ** 0.5
        variable.assign_sub(variable * update.lost + rate * orthogonal(mixed))


def orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """Return U V^T of the singular value decomposition of float32 ``[m, n]``, about: singular values of 0.7 to 1.2."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if is_tall else matrix
    x /= tf.maximum(tf.norm(x), 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    return tf.transpose(x) if is_tall else x


def _is_of_block(variable: Any) -> bool:
    """Whether a variable is a matrix of a block, neither an embedding nor a vector."""
    return str(variable.path).endswith("/kernel")
