"""AdamW as PyTorch has it, in one pass over the memory of each variable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from training.cluster.strategy import sum_over_workers
from training.optimizers.schedule import Schedule

_CLIP_EPSILON = 1e-6  # added to the norm by torch.nn.utils.clip_grad_norm_


class Update(NamedTuple):
    """The float32 scalars of one update, the same for every variable.

    Attributes:
        clip: factor of the gradients; 0 where the update is left out.
        beta_1: of the first moment; 1, which leaves it alone, where the update is left out.
        beta_2: of the second moment, likewise.
        rate: the learning rate with both bias corrections in it; 0 where the update is left out.
        lost: the share of a decaying variable that decay takes, learning rate * weight decay, well below 1.
        rate_before_decay: rate / (1 - lost).
        epsilon: is added to the root of the uncorrected second moment.
        zero: 0, for all variables.
    """

    clip: tf.Tensor
    beta_1: tf.Tensor
    beta_2: tf.Tensor
    rate: tf.Tensor
    lost: tf.Tensor
    rate_before_decay: tf.Tensor
    epsilon: tf.Tensor
    zero: tf.Tensor


@keras.saving.register_keras_serializable("gpt2_savedmodel")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW with the arithmetic of ``torch.optim.AdamW`` and ``torch.nn.utils.clip_grad_norm_``.

    - Decay is on matrices (tables of embeddings and A and B of adapters, too), not on vectors: as in nanoGPT and
      litgpt, and as Megatron's and transformers' rule for GPT-2 (no biases, no layer norms) comes out.
    - Epsilon is added after the bias correction. Keras adds it before: at 1e-8, weights differ by up to 7e-4 after five
      updates with rate 1e-3.
    - Gradients are scaled where they lie. Keras makes a second copy of all.
    - **An update whose gradients have an infinity or a NaN is left out**: weights and moments stay as they are,
      ``iterations`` goes on, and ``gradient_norm`` has what was found.

    Gradients of several workers are summed first and clipped then; Keras does it the other way round.

    Attributes:
        gradient_norm: the norm of all gradients of the last update together before they were clipped, float32.
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-4,
        weight_decay: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        global_clipnorm: float | None = 1.0,
        name: str = "adamw",
    ) -> None:
        super().__init__(
            learning_rate, weight_decay, beta_1, beta_2, epsilon, global_clipnorm=global_clipnorm, name=name
        )
        self.gradient_norm = keras.Variable(
            0.0, dtype="float32", trainable=False, aggregation="only_first_replica", name="gradient_norm"
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = super().get_config()
        names = ("learning_rate", "weight_decay", "beta_1", "beta_2", "epsilon", "global_clipnorm", "name")
        return {name: config[name] for name in names}

    def update_step(self, gradient: tf.Tensor, variable: Any, update: Update) -> None:
        """Update ``variable`` and its moments.

        ``gradient`` has no other reader left, so it is scaled in place, and freed before decay needs as much memory.
        The variable stays where it is: a new one at each update would leave holes in the heap that nothing fits in.
        With k = 1 - lost, (w - rate / k * m / (..)) * k is PyTorch's w * k - rate * m / (..).
        """
        decays = self._use_weight_decay(variable)
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=update.zero,  # the rate has the corrections already, computed in float64
            beta2_power=update.zero,
            lr=update.rate_before_decay if decays else update.rate,
            beta1=update.beta_1,
            beta2=update.beta_2,
            epsilon=update.epsilon,
            grad=tf.math.multiply_no_nan(gradient, update.clip),  # 0 * NaN is 0
        )
        if decays:
            variable.assign_sub(variable * update.lost)

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        dense = [tf.convert_to_tensor(gradient) for gradient in grads]
        summed = sum_over_workers(dense)
        norm = tf.linalg.global_norm(summed)
        self.gradient_norm.assign(norm)
        self._backend_update_step(summed, trainable_variables, self._update(norm))

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars  # summed before they were clipped

    def _use_weight_decay(self, variable: Any) -> bool:
        return len(variable.shape) > 1 and bool(super()._use_weight_decay(variable))

    def _update(self, norm: tf.Tensor) -> Update:
        """Return the scalars of the update at hand: algorithm 2 of arXiv:1711.05101 for those that are not clipped."""
        finite = tf.math.is_finite(norm)

        def unless_left_out(value: Any, otherwise: float) -> tf.Tensor:
            return tf.where(finite, tf.cast(value, tf.float32), otherwise)

        limit = self.global_clipnorm or float("inf")
        number = tf.cast(self.iterations + 1, tf.float64)
        root = tf.sqrt(1.0 - tf.cast(self.beta_2, tf.float64) ** number)
        correction = root / (1.0 - tf.cast(self.beta_1, tf.float64) ** number)
        learning_rate = tf.cast(self.learning_rate, tf.float32)
        rate = unless_left_out(learning_rate * tf.cast(correction, tf.float32), 0.0)
        lost = unless_left_out(learning_rate * self.weight_decay, 0.0)
        return Update(
            clip=unless_left_out(tf.minimum(1.0, limit / (norm + _CLIP_EPSILON)), 0.0),
            beta_1=unless_left_out(self.beta_1, 1.0),
            beta_2=unless_left_out(self.beta_2, 1.0),
            rate=rate,
            lost=lost,
            rate_before_decay=rate / (1.0 - lost),
            epsilon=tf.cast(self.epsilon * root, tf.float32),
            zero=tf.constant(0.0),
        )


def make_optimizer(
    learning_rate: float,
    steps: int,
    *,
    schedule: str = "linear",
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
    kind: type[AdamW] = AdamW,
) -> AdamW:
    """Return the optimizer of a fine-tuning of ``steps`` updates; ``clip`` None or 0 is for no clipping."""
    return kind(Schedule(learning_rate, steps, warmup, schedule), weight_decay, global_clipnorm=clip)
