"""A loss that also counts whether a mark or the end of a line comes, which makes the form of a poem."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tf_model.gpt2 import GPT2
from training.model import functions
from training.model.forward import Batch
from training.model.trained_gpt2 import TrainedGPT2, flatten_targets
from training.setting import SettingError

if TYPE_CHECKING:
    from tokenization import Tokenizer

MARKS = "。，、？！；：\n"
"""What ends a phrase or a line."""

_LARGEST_TOTAL = 1 - 1e-6
"""The probability of all marks together counts as this at most, so that the logarithm of the rest is finite."""


def form_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of marks, of a line's end and of the text's, sorted.

    Only pieces that are a mark by themselves, CPM's in its narrow form: neither the space in front of it nor its bytes.

    Raises:
        SettingError: there is none.
    """
    shown = {*MARKS, *unicodedata.normalize("NFKC", MARKS)}
    marks = {token for mark in MARKS for token in tokenizer.encode(mark) if tokenizer.decode([token]) in shown}
    ids = {*marks, tokenizer.line_token_id, tokenizer.eos_token_id} - {None, tokenizer.unknown_token_id}
    if not ids:
        raise SettingError("--form-weight: the vocabulary has no piece that is a mark, a line's end or a text's")
    return sorted(token for token in ids if token is not None)


class FormLosses:
    """Cross-entropy, and ``weight`` times that of the choice between each token of form and all others together.

    The second term is least at the true probabilities. Greater weights of those tokens alone would make them too
    probable everywhere: with 3, a quarter as many of the demo's poems had the form of their tune.

    Args:
        tokens: the ids of form.
        vocab_size: the number of tokens, V.
        weight: of the second term; 5 for poems whose form is fixed.
    """

    def __init__(self, tokens: Sequence[int], vocab_size: int, weight: float) -> None:
        self._weight = weight
        self._of_form = tf.constant([index in {*tokens} for index in range(vocab_size)])

    def __call__(self, logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the losses of logits ``[n, V]`` and their gradients ``[n, V]``.

        With p the probabilities and P their sum over the tokens of form, the term of a label that is one of them is
        -log p, of any other one -log(1 - P), whose gradient is p at a token of form and -p P / (1 - P) elsewhere.
        """
        losses, slopes = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=labels)
        is_form = tf.gather(self._of_form, labels)
        probabilities = tf.nn.softmax(logits)
        total = tf.reduce_sum(tf.where(self._of_form, probabilities, 0.0), -1)
        total = tf.minimum(total, _LARGEST_TOTAL)
        odds = (total / (1 - total))[:, tf.newaxis]
        other_slopes = probabilities * tf.where(self._of_form, 1.0, -odds)
        term = tf.where(is_form, losses, -tf.math.log1p(-total))
        term_slopes = tf.where(is_form[:, tf.newaxis], slopes, other_slopes)
        return losses + self._weight * term, slopes + self._weight * term_slopes


class FormGPT2(TrainedGPT2):
    """``TrainedGPT2`` that ``FormLosses`` train; ``evaluate`` measures the cross-entropy alone."""

    def __init__(self, gpt2: GPT2, losses: FormLosses, **options: Any) -> None:
        super().__init__(gpt2, **options)
        self._losses = losses

    def micro_loss(self, rows: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Return the loss summed over the predicted tokens, as ``TrainedGPT2.micro_loss``."""
        labels, weights = flatten_targets(batch)

        def loss_of(logits: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self._losses(logits, tf.gather(labels, places))

        return functions.loss_in_pieces(rows, self.forward.head(rows), weights, loss_of)
