"""A Keras model whose ``fit`` trains a ``GPT2`` on packed rows, and whose ``evaluate`` measures it.

    model = TrainedGPT2(gpt2)
    model.compile(optimizer=make_optimizer(...))
    model.fit(batches.dataset(0, 100), ...)

One batch of ``fit`` is one update: M micro-batches, one division by the predicted tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_model.gpt2 import GPT2
from training import functions
from training.forward import Forward
from training.strategy import as_log, micro_batch_number, sum_over_workers

Batch = Mapping[str, tf.Tensor]


class TrainedGPT2(keras.Model):
    """``gpt2`` with what training it needs: losses, gradients, dropout, adapters.

    Args:
        gpt2: the model that is trained: those of its variables that are ``trainable``.
        adapters: LoRA's, which are trained, too; see ``Forward``.
        dropout: see ``Forward``.
        seed: of dropout.
        recompute: see ``Forward``.
        products: see ``Forward``.
    """

    def __init__(
        self,
        gpt2: GPT2,
        *,
        adapters: Any = None,
        dropout: float = 0.1,
        seed: int = 0,
        recompute: bool = False,
        products: str = "float32",
    ) -> None:
        super().__init__(name="trained_gpt2", autocast=False)
        self.gpt2 = gpt2
        self.adapters = adapters
        self.forward = Forward(gpt2, adapters, dropout=dropout, seed=seed, recompute=recompute, products=products)
        self.built = True

    def call(self, batch: Batch) -> tf.Tensor:
        """Return float32 logits ``[b * S, V]`` of one micro-batch, without dropout."""
        return tf.matmul(self.forward.hidden(batch), self.forward.head(), transpose_b=True)

    def train_step(self, data: Batch) -> dict[str, tf.Tensor]:
        """Make one update of all micro-batches ``[M, b, S]``; the log is the loss in nats per predicted token."""
        gradients, loss = self.gradients(data, self.optimizer.iterations)
        loss, tokens = self._totals(loss, data["weights"])
        gradients = [gradient / tokens for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self._log(loss, tokens)

    def test_step(self, data: Batch) -> dict[str, tf.Tensor]:
        """Measure the micro-batches; the log is the cross-entropy in nats per predicted token."""
        loss = tf.constant(0.0)
        for index in range(data["ids"].shape[0]):
            micro = {name: value[index] for name, value in data.items()}
            loss += functions.cross_entropy_value(
                self.forward.hidden(micro),
                self.forward.head(),
                tf.reshape(micro["labels"], [-1]),
                tf.reshape(micro["weights"], [-1]),
            )
        return self._log(*self._totals(loss, data["weights"]))

    def micro_loss(self, rows: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Return what one micro-batch adds to the loss that is trained: summed over its predicted tokens, in nats.

        Args:
            rows: float32 ``[b * S, h]`` after the final layer norm.
            batch: of the micro-batch, ``[b, S]``.
        """
        labels, weights = (tf.reshape(batch[name], [-1]) for name in ("labels", "weights"))
        return functions.cross_entropy(rows, self.forward.head(), labels, weights)

    def _totals(self, loss: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the loss and the predicted tokens, at least 1, of the micro-batches of all workers."""
        loss, tokens = sum_over_workers([loss, tf.reduce_sum(weights)])
        return loss, tf.maximum(tokens, 1.0)

    def gradients(self, data: Batch, step: tf.Tensor | None = None) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Return the gradients and the loss, summed over the predicted tokens of all micro-batches.

        Args:
            data: micro-batches ``[M, b, S]``.
            step: of the optimizer, for dropout; None for no dropout.
        """
        variables = [variable.value for variable in self.trainable_variables]
        totals: list[tf.Tensor] = [tf.zeros_like(variable) for variable in variables]
        loss = tf.constant(0.0)
        for index in range(data["ids"].shape[0]):
            micro = {name: value[index] for name, value in data.items()}
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                micro_loss = self.micro_loss(self.forward.hidden(micro, step, micro_batch_number(index)), micro)
            gradients = tape.gradient(micro_loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            totals = [total + gradient for total, gradient in zip(totals, gradients, strict=True)]
            loss += micro_loss
        return totals, loss

    def _log(self, loss: tf.Tensor, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        self._loss_tracker.update_state(loss / tokens, sample_weight=tokens)
        return {"loss": as_log(self._loss_tracker.result())}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Make the optimizer's variables.

        Keras 3.15 would make a tensor of a batch here, which fails with the batches of several workers (keras issue
        20585); nothing else is left to build.
        """
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
