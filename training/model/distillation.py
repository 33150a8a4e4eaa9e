"""Distillation: a model learns from texts, and from the probabilities that a larger model gives their tokens.

The loss is that of CPM-1-Distill (``distill_gpt2.py``). Of each predicted token it is
(1 - w) * cross-entropy(z, label) + w * T^2 * cross-entropy(z / T, softmax(z' / T)), for the logits z of the model that
is trained, those z' of its teacher, the teacher's weight w and the temperature T. CPM-distill had w = 0.4 and T = 1.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tf_model.gpt2 import GPT2
from training.model import functions
from training.model.forward import Batch, Forward
from training.model.trained_gpt2 import TrainedGPT2, flatten_targets


@dataclasses.dataclass(frozen=True)
class Teaching:
    """How much the teacher's part of the loss counts.

    Attributes:
        weight: share of the loss, 0 to 1; the labels have the rest.
        temperature: divides the logits of both models in the teacher's part; above 1, tokens that the teacher finds
            improbable count more.
    """

    weight: float = 0.4
    temperature: float = 1.0


class DistilledGPT2(TrainedGPT2):
    """A ``TrainedGPT2`` that a teacher trains, too; ``evaluate`` measures the cross-entropy alone.

    Args:
        gpt2: the model that is trained.
        teacher: a model of the same vocabulary, with positions for every row. It may be of any dtype that
            ``load_gpt2`` reads, and is not trained.
        teaching: how much it counts.
        options: those of ``TrainedGPT2``.
    """

    def __init__(self, gpt2: GPT2, *, teacher: GPT2, teaching: Teaching = Teaching(), **options: Any) -> None:
        super().__init__(gpt2, **options)
        teacher.trainable = False
        self.teacher = Forward(teacher, products=options.get("products", "float32"))
        self.teaching = teaching

    def micro_loss(self, rows: tf.Tensor, batch: Batch) -> tf.Tensor:
        labels, weights = flatten_targets(batch)
        taught = tf.stop_gradient(self.teacher.hidden(batch))
        head = self.teacher.head(taught)

        def loss_of(logits: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            theirs = head.logits(tf.gather(taught, places))
            return taught_losses(logits, theirs, tf.gather(labels, places), self.teaching)

        return functions.loss_in_pieces(rows, self.forward.head(rows), weights, loss_of)


def taught_losses(
    logits: tf.Tensor, teacher_logits: tf.Tensor, labels: tf.Tensor, teaching: Teaching
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the loss of each row in nats, ``[N]``, and its gradient for ``logits``, ``[N, V]``.

    Args:
        logits, teacher_logits: float32 ``[N, V]``.
        labels: ``[N]``.
        teaching: the weights of the two parts.
    """
    weight, temperature = teaching.weight, teaching.temperature
    hard, hard_slope = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=labels)
    soft, soft_slope = tf.raw_ops.SoftmaxCrossEntropyWithLogits(
        features=logits / temperature, labels=tf.nn.softmax(teacher_logits / temperature)
    )
    # T^2 times the soft part, whose own slope has a factor 1 / T.
    loss = (1 - weight) * hard + weight * temperature**2 * soft
    return loss, (1 - weight) * hard_slope + weight * temperature * soft_slope
