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
from training.memory import ROWS_OF_LOGITS


class Normalised(NamedTuple):
    """What the gradient of a layer norm needs, float32.

    Attributes:
        rows: ``[N, h]``, normalised, before gamma and beta.
        inverse: ``[N, 1]``: 1 / the deviation of each row of x.
        projection: ``[N, 1]``: the factor of the gradient's component along ``rows``, which the norm takes away.
    """

    rows: tf.Tensor
    inverse: tf.Tensor
    projection: tf.Tensor


def normalise(x: tf.Tensor, epsilon: float, kind: str) -> Normalised:
    """Subtract the mean of each row and divide by its deviation, as ``tf_model.layers.LayerNorm`` does."""
    size = x.shape[-1]
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    squares = tf.reduce_sum(tf.square(centred), axis=-1, keepdims=True)
    inverse, projection = _DEVIATIONS[kind](squares, size, epsilon)
    return Normalised(centred * inverse, inverse, projection)


def normalise_gradient(kept: Normalised, gradient: tf.Tensor) -> tf.Tensor:
    """Return the gradient ``[N, h]`` of x, given the ``gradient`` of the normalised rows."""
    mean = tf.reduce_mean(gradient, axis=-1, keepdims=True)
    along = tf.reduce_sum(gradient * kept.rows, axis=-1, keepdims=True)
    return (gradient - mean) * kept.inverse - kept.rows * (along * kept.projection)


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
"""Kind of layer norm -> ``inverse`` and ``projection`` of ``Normalised``, of sums of squares ``[N, 1]``."""


class Activation(NamedTuple):
    """An activation: its value at x; or value and slope at x together, which share most of the work."""

    value: Callable[[tf.Tensor], tf.Tensor]
    value_and_slope: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


_TWICE_LINEAR = 2 * math.sqrt(2 / math.pi)
_TWICE_CUBIC = _TWICE_LINEAR * 0.044715


def _tanh_gelu(x: tf.Tensor) -> tf.Tensor:
    """Return x sigmoid(2 z), which equals x (1 + tanh(z)) / 2; 2 z = ``_TWICE_LINEAR`` x + ``_TWICE_CUBIC`` x^3."""
    return x * tf.sigmoid(x * (_TWICE_LINEAR + _TWICE_CUBIC * tf.square(x)))


def _tanh_gelu_and_slope(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    square = tf.square(x)
    gate = tf.sigmoid(x * (_TWICE_LINEAR + _TWICE_CUBIC * square))
    value = x * gate
    return value, gate + value * (1 - gate) * (_TWICE_LINEAR + 3 * _TWICE_CUBIC * square)


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
"""Name of transformers -> activation."""


def visibility(segments: tf.Tensor) -> tf.Tensor:
    """Return the mask of segments ``[b, S]``, float32 ``[b, 1, S, S]``, which is added to attention scores.

    A token sees those of its own segment that do not come later: 0 there, ``MASKED`` elsewhere.
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
    """Return the gradients of query, key and value, given the ``gradient`` ``[b, heads, S, head_dim]`` of the result.

    ``along`` ``[b, heads, S, 1]`` is the sum over head_dim of ``gradient`` times the result of ``attend``. It equals
    the sum over the keys of the probabilities times their gradient (FlashAttention, arXiv:2205.14135, appendix B.2).
    """
    scores = probabilities * (tf.matmul(gradient, value, transpose_b=True) - along)
    return (
        tf.matmul(scores, key),
        tf.matmul(scores, query, transpose_a=True),
        tf.matmul(probabilities, gradient, transpose_a=True),
    )


class Head(NamedTuple):
    """The output matrix: ``factor`` ``[V, h]`` in the type of the products; float32 ``table``, None if frozen."""

    factor: tf.Tensor
    table: tf.Tensor | None

    def logits(self, rows: tf.Tensor) -> tf.Tensor:
        """Return float32 logits ``[n, V]`` of rows ``[n, h]``."""
        return tf.cast(tf.matmul(tf.cast(rows, self.factor.dtype), self.factor, transpose_b=True), tf.float32)


LogitsLoss = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""Logits ``[n, V]``, the numbers ``[n]`` of their rows -> losses ``[n]`` in nats, their gradients ``[n, V]``."""


def cross_entropy(rows: tf.Tensor, head: Head, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return the cross-entropies of rows ``[N, h]`` in nats, times ``weights`` ``[N]``, summed."""

    def loss_of(logits: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss, slope = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=tf.gather(labels, places))
        return loss, slope

    return loss_in_pieces(rows, head, weights, loss_of)


def loss_in_pieces(rows: tf.Tensor, head: Head, weights: tf.Tensor, loss_of: LogitsLoss) -> tf.Tensor:
    """Return the losses of rows ``[N, h]`` by ``loss_of``, times ``weights`` ``[N]``, summed.

    Rows of weight 0 do not meet the output matrix. The gradients of rows and matrix are made in the forward pass, as
    in Liger's fused linear cross-entropy: no product is made twice, and nothing of ``[N, V]`` is kept.
    """
    dtype = head.factor.dtype
    places = tf.where(weights > 0)[:, 0]

    def piece(
        start: tf.Tensor, total: tf.Tensor, row_gradient: tf.Tensor, table_gradient: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        place = places[start : start + ROWS_OF_LOGITS]
        x, weight = tf.cast(tf.gather(rows, place), dtype), tf.gather(weights, place)
        loss, slope = loss_of(head.logits(x), place)
        slope = tf.cast(slope * weight[:, tf.newaxis], dtype)
        back = tf.cast(tf.matmul(slope, head.factor), tf.float32)
        if head.table is not None:
            table_gradient += tf.cast(tf.matmul(slope, x, transpose_a=True), tf.float32)
        return (
            start + ROWS_OF_LOGITS,
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
    """Return the same as ``cross_entropy``, without gradients."""
    places = tf.where(weights > 0)[:, 0]

    def piece(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        place = places[start : start + ROWS_OF_LOGITS]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.gather(labels, place), logits=head.logits(tf.gather(rows, place))
        )
        return start + ROWS_OF_LOGITS, total + tf.reduce_sum(losses * tf.gather(weights, place))

    return tf.while_loop(lambda start, _: start < tf.size(places), piece, (0, 0.0), parallel_iterations=1)[1]
