"""What a block of GPT-2 is made of, each function with its gradient in closed form.

A forward function returns its result and what its gradient needs of it; ``*_gradient`` takes that and the gradient of
the result. Nothing else is kept of a forward pass. Rows are float32 ``[N, h]`` with N = batch * positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_model.attention import MASKED
from tf_model.config import STANDARD, TANH_GELU, UER


class Normalised(NamedTuple):
    """What the gradient of a layer norm needs: ``rows`` [N, h] before gamma and beta; ``inverse``, ``pull`` [N, 1]."""

    rows: tf.Tensor
    inverse: tf.Tensor
    pull: tf.Tensor


def normalise(x: tf.Tensor, epsilon: float, kind: str) -> Normalised:
    """Subtract the mean of each row and divide by its deviation, as ``tf_model.layers.LayerNorm`` does."""
    size = x.shape[-1]
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    squares = tf.reduce_sum(tf.square(centred), axis=-1, keepdims=True)
    inverse, pull = _DEVIATIONS[kind](squares, size, epsilon)
    return Normalised(centred * inverse, inverse, pull)


def normalise_gradient(kept: Normalised, gradient: tf.Tensor) -> tf.Tensor:
    """Return the gradient ``[N, h]`` of x, of that of the normalised rows."""
    mean = tf.reduce_mean(gradient, axis=-1, keepdims=True)
    along = tf.reduce_sum(gradient * kept.rows, axis=-1, keepdims=True)
    return (gradient - mean) * kept.inverse - kept.rows * (along * kept.pull)


def layer_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float, kind: str) -> tf.Tensor:
    """Return a layer norm of rows ``[N, h]``, with its gradient."""

    @tf.custom_gradient
    def run(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tuple[tf.Tensor, ...]]]:
        kept = normalise(x, epsilon, kind)

        def gradient(outer: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return (
                normalise_gradient(kept, outer * gamma),
                tf.reduce_sum(outer * kept.rows, axis=0),
                tf.reduce_sum(outer, axis=0),
            )

        return kept.rows * gamma + beta, gradient

    return run(x, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))


def _standard(squares: tf.Tensor, size: int, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    inverse = tf.math.rsqrt(squares / size + epsilon)
    return inverse, inverse / size


def _uer(squares: tf.Tensor, size: int, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    free = max(1, size - 1)
    deviation = tf.sqrt(squares / free)
    return 1 / (deviation + epsilon), tf.math.divide_no_nan(1.0, deviation * free)


_DEVIATIONS = {STANDARD: _standard, UER: _uer}
"""By the kind of layer norm: the inverse of a row's deviation, and how much of the gradient along the row is lost."""


class Activation(NamedTuple):
    """An activation: its ``value`` of x; or its value and its ``slope`` together, which share most of the work."""

    value: Callable[[tf.Tensor], tf.Tensor]
    value_and_slope: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


_TWICE = 2 * math.sqrt(2 / math.pi)
_CUBIC = _TWICE * 0.044715


def _tanh_gelu(x: tf.Tensor) -> tf.Tensor:
    """Return x (1 + tanh(z)) / 2 with gelu's z: that is x sigmoid(2 z)."""
    return x * tf.sigmoid(x * (_TWICE + _CUBIC * tf.square(x)))


def _tanh_gelu_and_slope(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    square = tf.square(x)
    gate = tf.sigmoid(x * (_TWICE + _CUBIC * square))
    value = x * gate
    return value, gate + value * (1 - gate) * (_TWICE + 3 * _CUBIC * square)


def _exact_gelu(x: tf.Tensor) -> tf.Tensor:
    return x * _normal_below(x)


def _exact_gelu_and_slope(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    below = _normal_below(x)
    return x * below, below + x * tf.exp(-0.5 * tf.square(x)) * (1 / math.sqrt(2 * math.pi))


def _normal_below(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * (1 + tf.math.erf(x * math.sqrt(0.5)))


def _relu_and_slope(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.nn.relu(x), tf.cast(x > 0, x.dtype)


def _silu(x: tf.Tensor) -> tf.Tensor:
    return x * tf.sigmoid(x)


def _silu_and_slope(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    gate = tf.sigmoid(x)
    value = x * gate
    return value, gate + value * (1 - gate)


def _tanh_and_slope(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    value = tf.tanh(x)
    return value, 1 - tf.square(value)


ACTIVATIONS: dict[str, Activation] = {
    **dict.fromkeys(TANH_GELU, Activation(_tanh_gelu, _tanh_gelu_and_slope)),
    "gelu": Activation(_exact_gelu, _exact_gelu_and_slope),
    "relu": Activation(tf.nn.relu, _relu_and_slope),
    "silu": Activation(_silu, _silu_and_slope),
    "tanh": Activation(tf.tanh, _tanh_and_slope),
}
"""By transformers' names."""


def visibility(segments: tf.Tensor) -> tf.Tensor:
    """Return float32 ``[b, 1, S, S]``, added to attention scores, of segments ``[b, S]``.

    0 where a token sees another: one of its own segment that does not come later; ``MASKED`` elsewhere.
    """
    place = tf.range(tf.shape(segments)[1])
    seen = (segments[:, :, tf.newaxis] == segments[:, tf.newaxis, :]) & (place[:, tf.newaxis] >= place)
    return tf.where(seen, 0.0, MASKED)[:, tf.newaxis]


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return softmax(Q K^T + mask) V ``[b, heads, S, head_dim]``, and the probabilities ``[b, heads, S, S]``."""
    probabilities = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) + mask)
    return tf.matmul(probabilities, value), probabilities


def attend_gradient(
    probabilities: tf.Tensor,
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    along: tf.Tensor,
    gradient: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the gradients of query, key and value, of the ``gradient`` of what ``attend`` returns.

    ``along`` is that gradient times what ``attend`` returned, summed over head_dim, ``[b, heads, S, 1]``: as much as
    the gradient of the probabilities times the probabilities, summed over the keys (FlashAttention, section 3.1).
    """
    scores = probabilities * (tf.matmul(gradient, value, transpose_b=True) - along)
    return (
        tf.matmul(scores, key),
        tf.matmul(scores, query, transpose_a=True),
        tf.matmul(probabilities, gradient, transpose_a=True),
    )


PIECE = 256
"""Rows of logits that exist at once: 31 MB of a vocabulary of 30,000."""


class Head(NamedTuple):
    """The output matrix: ``factor`` ``[V, h]``, of the type of the products; ``table``, float32, if it is trained."""

    factor: tf.Tensor
    table: tf.Tensor | None

    def logits(self, rows: tf.Tensor) -> tf.Tensor:
        """Return float32 logits ``[n, V]`` of rows ``[n, h]``."""
        return tf.cast(tf.matmul(tf.cast(rows, self.factor.dtype), self.factor, transpose_b=True), tf.float32)


Judge = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""Of logits ``[n, V]`` and the places ``[n]`` of their rows: the losses ``[n]`` in nats, their slopes ``[n, V]``."""


def cross_entropy(rows: tf.Tensor, head: Head, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return the weighted losses in nats of rows ``[N, h]``, summed."""

    def judge(logits: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss, slope = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=tf.gather(labels, places))
        return loss, slope

    return loss_in_pieces(rows, head, weights, judge)


def loss_in_pieces(rows: tf.Tensor, head: Head, weights: tf.Tensor, judge: Judge) -> tf.Tensor:
    """Return the weighted losses that ``judge`` finds of rows ``[N, h]``, summed.

    Rows of weight 0 do not meet the output matrix. The gradients of rows and matrix are made in the forward pass, as
    in Liger's fused linear cross-entropy: no product is made twice, and nothing of ``[N, V]`` is kept.
    """
    dtype = head.factor.dtype
    places = tf.where(weights > 0)[:, 0]

    def piece(
        start: tf.Tensor, total: tf.Tensor, row_gradient: tf.Tensor, table_gradient: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        place = places[start : start + PIECE]
        x, weight = tf.cast(tf.gather(rows, place), dtype), tf.gather(weights, place)
        loss, slope = judge(head.logits(x), place)
        slope = tf.cast(slope * weight[:, tf.newaxis], dtype)
        back = tf.cast(tf.matmul(slope, head.factor), tf.float32)
        if head.table is not None:
            table_gradient += tf.cast(tf.matmul(slope, x, transpose_a=True), tf.float32)
        return (
            start + PIECE,
            total + tf.reduce_sum(loss * weight),
            tf.tensor_scatter_nd_add(row_gradient, place[:, tf.newaxis], back),
            table_gradient,
        )

    @tf.custom_gradient
    def run(rows: tf.Tensor, *table: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        total, *gradients = tf.while_loop(
            lambda start, *_: start < tf.size(places),
            piece,
            (0, 0.0, tf.zeros_like(rows), *(map(tf.zeros_like, table) if table else [0.0])),
            parallel_iterations=1,
        )[1:]
        return total, lambda outer: [outer * gradient for gradient in gradients[: 1 + len(table)]]

    return run(rows, *([] if head.table is None else [head.table]))


def cross_entropy_value(rows: tf.Tensor, head: Head, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return what ``cross_entropy`` returns, without gradients."""
    places = tf.where(weights > 0)[:, 0]

    def piece(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        place = places[start : start + PIECE]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.gather(labels, place), logits=head.logits(tf.gather(rows, place))
        )
        return start + PIECE, total + tf.reduce_sum(losses * tf.gather(weights, place))

    return tf.while_loop(lambda start, _: start < tf.size(places), piece, (0, 0.0), parallel_iterations=1)[1]
