"""softmax(Q K^T + mask) V, in the kernels that are fastest for the number of new tokens."""

from __future__ import annotations

import tensorflow as tf

MASKED = -1e30
"""The score of a position that must not be seen: finite (0 * inf is NaN), and exp(MASKED - max) is exactly 0."""


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
    """The values, mixed by attention, ``[B, heads, s, head_dim]``. Softmax is in float32 whatever the dtype.

    Args:
        query: ``[B, heads, s, head_dim]``, scaled.
        key, value: ``[B, heads, K or more, head_dim]``, of the query's dtype; exactly K if s is 1.
        visible: bool ``[B, 1, s, K]``: which of the first K keys each query sees; at least one.
    """

    def many() -> tf.Tensor:
        seen = tf.shape(visible)[-1]  # that is all of them for a single token, and no copy is made
        scores = tf.cast(tf.matmul(query, key[:, :, :seen], transpose_b=True), tf.float32)
        weights = tf.nn.softmax(tf.where(visible, scores, MASKED))
        return tf.matmul(tf.cast(weights, value.dtype), value[:, :, :seen])

    def one() -> tf.Tensor:
        scores = tf.where(visible, _product(query, key, transpose=True), MASKED)
        weights = tf.exp(scores - tf.reduce_max(scores, axis=-1, keepdims=True))
        return _product(weights / tf.reduce_sum(weights, axis=-1, keepdims=True), value)

    if query.dtype != tf.float32:  # Eigen's products of half types are slower than oneDNN's
        return many()
    # A single token's products are so small that oneDNN's way to them takes longer than they do, above all with two
    # threads: 108 microseconds for 32 heads and 64 positions. Its rewriting of graphs leaves this op to Eigen: 26.
    return tf.ensure_shape(tf.cond(tf.shape(query)[2] == 1, one, many), query.shape)


def _product(left: tf.Tensor, right: tf.Tensor, transpose: bool = False) -> tf.Tensor:
    return tf.raw_ops.BatchMatMulV3(x=left, y=right, Tout=left.dtype, adj_y=transpose)
