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
    """An activation: its ``value`` of x, and its ``slope``."""

    value: Callable[[tf.Tensor], tf.Tensor]
    slope: Callable[[tf.Tensor], tf.Tensor]


def _gate(x: tf.Tensor) -> tf.Tensor:
    """Return (1 + tanh(z)) / 2 with the z of tanh's gelu: x times that is gelu."""
    return tf.sigmoid(x * (_TWICE + _CUBIC * tf.square(x)))


_TWICE = 2 * math.sqrt(2 / math.pi)
_CUBIC = _TWICE * 0.044715


def _tanh_gelu_slope(x: tf.Tensor) -> tf.Tensor:
    gate = _gate(x)
    return gate + x * gate * (1 - gate) * (_TWICE + 3 * _CUBIC * tf.square(x))


def _normal_below(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * (1 + tf.math.erf(x * math.sqrt(0.5)))


def _silu_slope(x: tf.Tensor) -> tf.Tensor:
    gate = tf.sigmoid(x)
    return gate * (1 + x * (1 - gate))


_TANH_GELU = Activation(lambda x: x * _gate(x), _tanh_gelu_slope)
ACTIVATIONS: dict[str, Activation] = {
    **dict.fromkeys(TANH_GELU, _TANH_GELU),
    "gelu": Activation(
        lambda x: x * _normal_below(x),
        lambda x: _normal_below(x) + x * tf.exp(-0.5 * tf.square(x)) * (1 / math.sqrt(2 * math.pi)),
    ),
    "relu": Activation(tf.nn.relu, lambda x: tf.cast(x > 0, x.dtype)),
    "silu": Activation(lambda x: x * tf.sigmoid(x), _silu_slope),
    "tanh": Activation(tf.tanh, lambda x: 1 - tf.square(tf.tanh(x))),
}
"""By transformers' names."""


def visibility(segments: tf.Tensor) -> tf.Tensor:
    """Return float32 ``[b, 1, S, S]``, added to attention scores, of segments ``[b, S]``.

    0 where a token sees another: one of its own segment that does not come later; ``MASKED`` elsewhere.
    """
    place = tf.range(tf.shape(segments)[1])
    seen = (segments[:, :, tf.newaxis] == segments[:, tf.newaxis, :]) & (place[:, tf.newaxis] >= place)
    return tf.where(seen, 0.0, MASKED)[:, tf.newaxis]


def attend(
    query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: tf.Tensor, scale: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return softmax(scale Q K^T + mask) V ``[b, heads, S, head_dim]``, and the probabilities ``[b, heads, S, S]``."""
    scores = tf.matmul(query * scale, key, transpose_b=True) + mask
    weights = tf.nn.softmax(scores)
    return tf.matmul(weights, value), weights


def attend_gradient(
    weights: tf.Tensor, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, scale: tf.Tensor, gradient: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the gradients of query, key and value, of that of what ``attend`` returns."""
    inner = tf.matmul(gradient, value, transpose_b=True)
    inner = weights * (inner - tf.reduce_sum(inner * weights, axis=-1, keepdims=True)) * scale
    return (
        tf.matmul(inner, key),
        tf.matmul(inner, query, transpose_a=True),
        tf.matmul(weights, gradient, transpose_a=True),
    )


def token_losses(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the loss of each row in nats ``[N]``, of float32 logits ``[N, V]`` and labels ``[N]``."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


PIECE = 256
"""Rows of logits that exist at once: 31 MB of a vocabulary of 30,000."""


Judge = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""Of logits ``[n, V]`` and the places ``[n]`` of their rows: the losses ``[n]`` in nats, their slopes ``[n, V]``."""


def cross_entropy(rows: tf.Tensor, table: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return the sum of the weighted losses in nats of rows ``[N, h]``, whose logits are rows x table^T."""

    def judge(logits: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss, slope = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=tf.gather(labels, places))
        return loss, slope

    return loss_in_pieces(rows, table, weights, judge)


def loss_in_pieces(rows: tf.Tensor, table: tf.Tensor, weights: tf.Tensor, judge: Judge) -> tf.Tensor:
    """Return the sum of the weighted losses that ``judge`` finds of rows ``[N, h]``, whose logits are rows x table^T.

    Rows of weight 0 do not meet the table. The gradients of rows and table are made in the forward pass, as in Liger's
    fused linear cross-entropy: no product is made twice, and nothing of ``[N, V]`` is kept.
    """

    @tf.custom_gradient
    def run(rows: tf.Tensor, table: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        places = tf.where(weights > 0)[:, 0]
        count = tf.size(places)

        def piece(
            start: tf.Tensor, total: tf.Tensor, row_gradient: tf.Tensor, table_gradient: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            place = places[start : start + PIECE]
            x, weight = tf.gather(rows, place), tf.gather(weights, place)
            loss, slope = judge(tf.matmul(x, table, transpose_b=True), place)
            slope *= weight[:, tf.newaxis]
            return (
                start + PIECE,
                total + tf.reduce_sum(loss * weight),
                tf.tensor_scatter_nd_add(row_gradient, place[:, tf.newaxis], tf.matmul(slope, table)),
                table_gradient + tf.matmul(slope, x, transpose_a=True),
            )

        _, total, row_gradient, table_gradient = tf.while_loop(
            lambda start, *_: start < count,
            piece,
            (0, 0.0, tf.zeros_like(rows), tf.zeros_like(table)),
            parallel_iterations=1,
        )
        return total, lambda outer: (outer * row_gradient, outer * table_gradient)

    return run(rows, table)


def cross_entropy_value(rows: tf.Tensor, table: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return what ``cross_entropy`` returns, without gradients."""
    places = tf.where(weights > 0)[:, 0]
    count = tf.size(places)

    def piece(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        place = places[start : start + PIECE]
        losses = token_losses(tf.matmul(tf.gather(rows, place), table, transpose_b=True), tf.gather(labels, place))
        return start + PIECE, total + tf.reduce_sum(losses * tf.gather(weights, place))

    return tf.while_loop(lambda start, _: start < count, piece, (0, 0.0), parallel_iterations=1)[1]
