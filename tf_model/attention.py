"""softmax(Q K^T + mask) V, in the kernels that are fastest for the number of new tokens."""

from __future__ import annotations

import tensorflow as tf

MASKED = -1e30
"""The score of a position that must not be seen: finite (0 * inf is NaN), and exp(MASKED - max) is exactly 0."""

_QUERIES = 16
"""Float32 queries are padded to a multiple of this. Eigen sums the remainder after the last full tile in a different
order, so a query's last bits would depend on the number of queries. Measured on AVX2: 12 is enough, 8 is not. The
rounding of int8 activations makes such bits large."""


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
    """Return the values, mixed by attention, ``[B, heads, s, head_dim]``. Softmax is in float32 whatever the dtype.

    Args:
        query: ``[B, heads, s, head_dim]``, scaled.
        key, value: ``[B, heads, K or more, head_dim]``, of the query's dtype; exactly K if s is 1.
        visible: bool ``[B, 1, s, K]``: which of the first K keys each query sees; at least one.
    """

    def many(multiple: int) -> tf.Tensor:
        size, seen = tf.unstack(tf.shape(visible)[2:])  # that is all keys for a single token, and no copy is made
        more = [[0, 0], [0, 0], [0, -size % multiple], [0, 0]]
        scores = tf.cast(tf.matmul(tf.pad(query, more), key[:, :, :seen], transpose_b=True), tf.float32)
        weights = _softmax(scores, tf.pad(visible, more))
        return tf.matmul(tf.cast(weights, value.dtype), value[:, :, :seen])[:, :, :size]

    def one() -> tf.Tensor:
        return _product(_softmax(_product(query, key, transpose=True), visible), value)

    if query.dtype != tf.float32:  # Eigen's products of half types are slower than oneDNN's
        return many(1)
    # A single token's products are so small that oneDNN's way to them takes longer than they do, above all with two
    # threads: 108 microseconds for 32 heads and 64 positions. Its rewriting of graphs leaves this op to Eigen: 26.
    return tf.ensure_shape(tf.cond(tf.shape(query)[2] == 1, one, lambda: many(_QUERIES)), query.shape)


def _softmax(scores: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
    """Return the softmax over the last axis of float32 ``scores``, of those that are ``visible``."""
    # tf.nn.softmax takes a reciprocal of [N, 1] sums, whose last bits depend on N; a quotient's do not.
    scores = tf.where(visible, scores, MASKED)
    weights = tf.exp(scores - tf.reduce_max(scores, axis=-1, keepdims=True))
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def _product(left: tf.Tensor, right: tf.Tensor, transpose: bool = False) -> tf.Tensor:
    return tf.raw_ops.BatchMatMulV3(x=left, y=right, Tout=left.dtype, adj_y=transpose)
