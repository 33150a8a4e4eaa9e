"""The keys and values of the tokens seen so far, allocated once and written in place.

``tf.tensor_scatter_nd_update`` copies the whole cache at every step, in a loop too. ``InplaceUpdate`` writes into the
buffer of its input and ignores reference counts, so the discipline is ours:

- the buffer comes from ``Empty``, a stateful op: neither folded into a constant nor merged with its twins by grappler;
- a cache has one consumer: after ``write`` only the returned cache may be used;
- whoever reads a cache must be an ancestor of the next ``write`` to it, or the two race. Here every read leads to the
  next token, and the next token to the next write.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class LayerCache(NamedTuple):
    """One layer's keys and values, each ``[B * heads * (capacity + 1), head_dim]``.

    Row (b * heads + head) * (capacity + 1) + position. The last position of each head is a spare one: what right
    padding produces goes there and is never visible.
    """

    keys: tf.Tensor
    values: tf.Tensor

    def write(self, slots: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> LayerCache:
        """Puts key and value ``[B, s, heads, head_dim]`` into the rows ``slots`` ``[B * s * heads]``, in place."""
        width = self.keys.shape[-1]
        return LayerCache(
            tf.raw_ops.InplaceUpdate(x=self.keys, i=slots, v=tf.reshape(key, [-1, width])),
            tf.raw_ops.InplaceUpdate(x=self.values, i=slots, v=tf.reshape(value, [-1, width])),
        )

    def read(self, batch: tf.Tensor, heads: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Keys and values as ``[B, heads, capacity + 1, head_dim]``; no copy."""
        shape = [batch, heads, -1, self.keys.shape[-1]]
        return tf.reshape(self.keys, shape), tf.reshape(self.values, shape)


def allocate(
    n_layer: int, batch: tf.Tensor, heads: int, capacity: tf.Tensor, width: int, dtype: Any
) -> list[LayerCache]:
    """Zeroed caches of ``capacity`` positions for every layer. Zeroed, because 0 * NaN in the attention is NaN."""
    shape = tf.stack([batch * heads * (capacity + 1), width])
    return [LayerCache(*(_zeros(shape, width, dtype) for _ in LayerCache._fields)) for _ in range(n_layer)]


def _zeros(shape: tf.Tensor, width: int, dtype: Any) -> tf.Tensor:
    buffer = tf.raw_ops.Empty(shape=shape, dtype=tf.as_dtype(dtype), init=True)
    return tf.ensure_shape(buffer, [None, width])


def slots(position: tf.Tensor, valid: tf.Tensor, heads: int, capacity: tf.Tensor) -> tf.Tensor:
    """Cache rows for tokens at ``position`` ``[B, s]``; those not ``valid``, or past the end, go to the spare row.

    Everything is int32.

    Returns:
        ``[B * s * heads]``, in the order of a tensor ``[B, s, heads]``: that in which a product gives them.
    """
    place = tf.where(valid & (position < capacity), position, capacity)
    head = tf.range(tf.shape(position)[0] * heads) * (capacity + 1)
    rows = tf.reshape(head, [-1, 1, heads]) + place[:, :, tf.newaxis]
    return tf.reshape(rows, [-1])
