"""A Keras model whose ``fit`` trains a ``GPT2`` on packed rows, and whose ``evaluate`` measures it.

    model = TrainedGPT2(gpt2)
    model.compile(optimizer=make_optimizer(...))
    model.fit(batches.dataset(0, 100), ...)

One batch of ``fit`` is one update: M micro-batches, one division by the predicted tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_model.gpt2 import GPT2
from training.cluster.strategy import as_log, micro_batch_number, sum_over_workers
from training.model import functions
from training.model.forward import Batch, Forward
from training.model.lora import Adapters


class TrainedGPT2(keras.Model):
    """``gpt2`` with the losses, gradients, dropout and adapters of its training.

    Args:
        gpt2: the model; its ``trainable`` variables are trained.
        adapters: LoRA's, which are trained, too; see ``Forward``.
        dropout: see ``Forward``.
        seed: of dropout.
        recompute: see ``Forward``.
        products: of training; see ``Forward``. Evaluation is in float32, as an exported float32 model's is.
    """

    def __init__(
        self,
        gpt2: GPT2,
        *,
        adapters: Adapters | None = None,
        dropout: float = 0.1,
        seed: int = 0,
        recompute: bool = False,
        products: str = "float32",
    ) -> None:
        super().__init__(name="trained_gpt2", autocast=False)
        self.gpt2 = gpt2
        self.adapters = adapters
        self.forward = Forward(gpt2, adapters, dropout=dropout, seed=seed, recompute=recompute, products=products)
        self._measured = Forward(gpt2, adapters)  # evaluation is in float32: it is that of an exported float32 model
        self.built = True

    def call(self, batch: Batch) -> tf.Tensor:
        """Return float32 logits ``[b * S, V]`` of one micro-batch, without dropout."""
        rows = self._measured.hidden(batch)
        return self._measured.head(rows).logits(rows)

    def train_step(self, data: Batch) -> dict[str, tf.Tensor]:
        """Make one update of all micro-batches ``[M, b, S]``; the log is the loss in nats per predicted token."""
        tokens = self._count(data["weights"])
        gradients, loss = self.gradients(data, self.optimizer.iterations, tokens)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self._log(loss, tokens)

    def test_step(self, data: Batch) -> dict[str, tf.Tensor]:
        """Measure the micro-batches; the log is the cross-entropy in nats per predicted token, in float32."""
        tokens = self._count(data["weights"])

        def measure(index: tf.Tensor | int) -> list[tf.Tensor]:
            batch = {name: value[index] for name, value in data.items()}
            rows = self._measured.hidden(batch)
            return [functions.cross_entropy_value(rows, self._measured.head(rows), *flatten_targets(batch)) / tokens]

        return self._log(_sum_over(data["ids"].shape[0], measure)[0], tokens)

    def micro_loss(self, rows: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Return the training loss of one micro-batch, summed over its predicted tokens, in nats.

        Args:
            rows: float32 ``[b * S, h]`` after the final layer norm.
            batch: of the micro-batch, ``[b, S]``.
        """
        return functions.cross_entropy(rows, self.forward.head(rows), *flatten_targets(batch))

    def gradients(
        self, data: Batch, step: tf.Tensor | None = None, tokens: tf.Tensor | float = 1.0
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Return the gradient of the loss for each trainable variable, and the loss, both summed over micro-batches.

        Args:
            data: micro-batches ``[M, b, S]``.
            step: of the optimizer, for dropout; None for no dropout.
            tokens: what the sums are divided by.
        """

        def micro_gradients(index: tf.Tensor | int) -> list[tf.Tensor]:
            return self._micro_gradients({name: value[index] for name, value in data.items()}, step, tokens, index)

        loss, *gradients = _sum_over(data["ids"].shape[0], micro_gradients)
        return gradients, loss

    def _micro_gradients(
        self, batch: Batch, step: tf.Tensor | None, tokens: tf.Tensor | float, index: tf.Tensor | int
    ) -> list[tf.Tensor]:
        """Return the loss and the gradients of one micro-batch, as parts of the update's sums."""
        variables = [variable.value for variable in self.trainable_variables]
        embedded, tables = self.forward.embed(batch), self.forward.trained_embeddings(batch)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            if tables:
                tape.watch(embedded)
            rows = self.forward.blocks(embedded, batch, step, micro_batch_number(index))
            loss = self.micro_loss(rows, batch) / tokens
        *found, outer = tape.gradient(loss, [*variables, embedded])
        gradients = dict(zip(map(id, variables), found, strict=True))
        # Scattered into the gradient of the output matrix, which exists already where that is the token embedding.
        for table, rows in tables:
            gradient = gradients[id(table)]
            dense = tf.zeros_like(table) if gradient is None else gradient
            gradients[id(table)] = tf.tensor_scatter_nd_add(dense, rows, outer)
        return [
            loss,
            *(
                tf.zeros_like(variable) if gradient is None else gradient
                for variable, gradient in zip(variables, gradients.values(), strict=True)
            ),
        ]

    def _count(self, weights: tf.Tensor) -> tf.Tensor:
        """Return the predicted tokens of the micro-batches of all workers, at least 1."""
        return tf.maximum(sum_over_workers([tf.reduce_sum(weights)])[0], 1.0)

    def _log(self, loss: tf.Tensor, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        self._loss_tracker.update_state(sum_over_workers([loss])[0], sample_weight=tokens)
        return {"loss": as_log(self._loss_tracker.result())}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Make the optimizer's variables.

        Keras 3.15 would make a tensor of a batch here, which fails with the batches of several workers (keras issue
        20585); nothing else is left to build.
        """
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)


def flatten_targets(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """Return labels and weights of the rows of a micro-batch, ``[N]``."""
    return tf.reshape(batch["labels"], [-1]), tf.reshape(batch["weights"], [-1])


def _sum_over(count: int, terms: Callable[[tf.Tensor | int], list[tf.Tensor]]) -> list[tf.Tensor]:
    """Return the sums of ``terms(0)`` to ``terms(count - 1)``, computed one after the other; one needs no loop."""
    first = terms(0)
    if count == 1:
        return first
    with tf.control_dependencies(first):  # TensorFlow would compute the first two at the same time, in twice the memory
        second = tf.identity(1)
    _, sums = tf.while_loop(
        lambda index, _: index < count,
        lambda index, sums: (index + 1, [total + term for total, term in zip(sums, terms(index), strict=True)]),
        (second, first),
        parallel_iterations=1,
    )
    return list(sums)
