"""Texts longer than the model's positions: what is dropped when a row is full.

Learned positions end at ``n_positions``. A row that reaches the end loses its oldest tokens; what is kept is encoded
again from position 0, in one pass, and the cache goes on from there. Shifting the cache instead would be wrong: its
keys and values were computed at other positions, with a context that is gone.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Window(NamedTuple):
    """What stays of a row whose positions are all used; one value per row.

    Attributes:
        tokens: int32 ``[B]``, how many tokens are kept at most, 1 to n_positions.
        line_token_id: int32 ``[B]``, the token that ends a line: the window then starts at the beginning of the
            first whole line among the kept tokens; -1 keeps exactly ``tokens`` tokens. So does a text with no
            end of line among them.
    """

    tokens: tf.Tensor
    line_token_id: tf.Tensor


def slide_window(
    window: Window, history: tf.Tensor, length: tf.Tensor, start: tf.Tensor, limit: int | tf.Tensor
) -> tf.Tensor:
    """Where each row's window starts, int32 ``[B]``: ``start`` while at most ``limit`` tokens follow it.

    Args:
        window: the policy.
        history: int32 ``[B, W]``, all tokens of each row.
        length: int32 ``[B]``, how many they are.
        start: int32 ``[B]``, where the windows start now.
        limit: most tokens that a window may have.
    """
    full = length - start > limit

    def move() -> tf.Tensor:
        oldest = length - window.tokens
        column = tf.range(tf.shape(history)[1])[tf.newaxis]
        before = tf.concat([history[:, :1], history[:, :-1]], axis=1)
        begins = (
            (before == window.line_token_id[:, tf.newaxis])
            & (window.line_token_id >= 0)[:, tf.newaxis]
            & (column >= oldest[:, tf.newaxis])
            & (column < length[:, tf.newaxis])
            & (column > 0)
        )
        line = tf.reduce_min(tf.where(begins, column, tf.int32.max), axis=-1)
        return tf.where(full, tf.where(line < length, line, oldest), start)

    return tf.ensure_shape(tf.cond(tf.reduce_any(full), move, lambda: start), start.shape)
