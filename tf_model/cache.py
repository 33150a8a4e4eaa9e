"""The keys and values of the tokens seen so far, of all layers in one tensor: allocated once, written in place.

``tf.tensor_scatter_nd_update`` copies the whole cache at every step, in a loop too. ``InplaceUpdate`` writes into the
buffer of its input and ignores reference counts, so the discipline is ours:

- the buffer comes from a stateful op, ``Empty``, or depends on one: neither folded into a constant nor merged with its
  twins by grappler;
- a cache has one consumer: after ``write`` only the returned cache may be used;
- whoever reads a cache must be an ancestor of the next ``write`` to it, or the two race. Here every read leads to the
  next layer, and that to the next write.

A cache is ``[2 L, B * heads * (capacity + 1), head_dim]``: the keys of layer 0, its values, the keys of layer 1, and so
on. Row (b * heads + head) * (capacity + 1) + position. The last position of each head is a spare one: what right
padding produces goes there and is never visible.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

BLOCK = 64
"""Positions that are allocated and looked at are a multiple of this, where the model has so many: attention is then in
full blocks for short and long rows, and a row's last bits do not depend on how long the longest one of its batch is."""


def capacity_for(needed: tf.Tensor, limit: tf.Tensor | int) -> tf.Tensor:
    """Return the capacity of a cache for ``needed`` positions, int32, at most ``limit``.

    It is rounded up, so that attention over it, with the spare position, is in full blocks for short and long rows:
    else a row's last bits would depend on how long the longest one of its batch is. Two blocks are the least: Eigen
    adds up the products of one row with fewer than 128 others in another order.
    """
    return tf.minimum(tf.maximum(in_blocks(needed + 1), 2 * BLOCK) - 1, limit)


def in_blocks(positions: tf.Tensor) -> tf.Tensor:
    """``positions``, int32, rounded up to whole blocks."""
    return -(-positions // BLOCK) * BLOCK


class LayerCache(NamedTuple):
    """One layer's place in the cache.

    Attributes:
        buffer: the cache, flat: ``[rows, head_dim]``.
        begin, end: int32 ``[1]``, the rows of this layer.
    """

    buffer: tf.Tensor
    begin: tf.Tensor
    end: tf.Tensor

    def write(self, slots: tf.Tensor, keys_and_values: tf.Tensor) -> LayerCache:
        """Put ``[B, s, 2, heads, head_dim]`` into the layer's rows ``slots`` ``[B * s * 2 * heads]``, in place."""
        rows = tf.reshape(keys_and_values, [-1, self.buffer.shape[-1]])
        return self._replace(buffer=tf.raw_ops.InplaceUpdate(x=self.buffer, i=slots + self.begin, v=rows))

    def read(self, batch: tf.Tensor, heads: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Keys and values, each ``[B, heads, capacity + 1, head_dim]``."""
        # Parts of the buffer itself where they begin and end at a multiple of 64 bytes, copies elsewhere.
        rows = tf.strided_slice(self.buffer, self.begin, self.end, [1])
        keys, values = tf.unstack(tf.reshape(rows, [2, batch, heads, -1, self.buffer.shape[-1]]))
        return keys, values


def allocate(n_layer: int, batch: tf.Tensor, heads: int, capacity: tf.Tensor, width: int, dtype: Any) -> tf.Tensor:
    """Return a zeroed cache of ``capacity`` positions. Zeroed, because 0 * NaN in the attention is NaN."""
    shape = tf.stack([2 * n_layer, batch * heads * (capacity + 1), width])
    buffer = tf.raw_ops.Empty(shape=shape, dtype=tf.as_dtype(dtype), init=True)
    return tf.ensure_shape(buffer, [2 * n_layer, None, width])


def layers(cache: tf.Tensor) -> list[LayerCache]:
    """Return the places of all layers: each is to be given the buffer that the one before it returned."""
    parts, rows = tf.shape(cache)[0], tf.shape(cache)[1]
    number = cache.shape[0] // 2
    bounds = tf.split(tf.range(0, (parts + 1) * rows, 2 * rows), number + 1)
    flat = tf.reshape(cache, [-1, cache.shape[-1]])
    return [LayerCache(flat, *bounds[layer : layer + 2]) for layer in range(number)]


def reorder_rows(cache: tf.Tensor, source: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Return a new cache whose text t is text ``source[t]`` of ``cache``; a text has ``rows`` rows in each part.

    Always a copy, also of a text that stays where it is: the next write is in place, and the old cache is used up.
    """
    parts, _, width = cache.shape
    whole = tf.reshape(cache, tf.stack([parts, -1, rows * width]))
    return tf.reshape(tf.gather(whole, source, axis=1), [parts, -1, width])


def slots(position: tf.Tensor, valid: tf.Tensor, heads: int, capacity: tf.Tensor) -> tf.Tensor:
    """Return a layer's rows for tokens at ``position`` ``[B, s]``; invalid or late ones get the spare row.

    Everything is int32.

    Returns:
        ``[B * s * 2 * heads]``, in the order of a tensor ``[B, s, 2, heads]``: that in which a product gives them.
    """
    place = tf.where(valid & (position < capacity), position, capacity)
    batch = tf.shape(position)[0]
    head = tf.transpose(tf.reshape(tf.range(2 * batch * heads) * (capacity + 1), [2, batch, heads]), [1, 0, 2])
    return tf.reshape(head[:, tf.newaxis] + place[:, :, tf.newaxis, tf.newaxis], [-1])
