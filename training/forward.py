"""The forward pass of training: segments, positions, dropout, adapters, and a gradient of its own for a whole block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2
from tf_model.layers import Block, LayerNorm, Linear, Matrix
from training import functions

PRODUCTS = ("float32", "bfloat16")
"""What matrices are multiplied in; sums, weights and their gradients are float32 in both."""


def linear_layer(block: Block, target: str) -> Linear:
    """Return the layer of ``block`` that ``tf_model.config.LINEAR_LAYERS`` calls ``target``."""
    part, name = target.split(".")
    layer: Linear = getattr(getattr(block, part), name)
    return layer


def float_matrix(matrix: Matrix, dtype: tf.DType) -> tf.Tensor:
    """Return the weights of ``matrix`` as float ``[out, in]``, from whatever they are stored in."""
    weight = tf.convert_to_tensor(matrix.weight.value)
    if matrix.scale is None:
        return tf.cast(weight, dtype)
    scale = tf.convert_to_tensor(matrix.scale.value)
    if matrix.transposed:
        return tf.cast(tf.transpose(tf.cast(weight, tf.float32) * scale), dtype)
    return tf.cast(tf.cast(weight, tf.float32) * scale[:, tf.newaxis], dtype)


class Sequences(NamedTuple):
    """What all blocks need to know about a micro-batch: b, S, ``visibility`` of its segments, and a key for dropout."""

    batch: tf.Tensor
    size: tf.Tensor
    mask: tf.Tensor
    key: tf.Tensor | None


class Forward:
    """Hidden states of ``gpt2`` for training.

    Dropout is left out on attention probabilities, where it costs most; it is after the embeddings, ``attn.c_proj`` and
    ``mlp.c_proj``, and a function of (seed, place, step, micro-batch) alone.

    Args:
        gpt2: the model; the forward pass reads its variables.
        adapters: LoRA's; ``pair(block, target)`` gives A ``[r, in]`` and B ``[out, r]``, or None.
        dropout: share of values that are set to 0.
        seed: of dropout.
        recompute: whether a block keeps its input only, and is computed again for its gradient.
        products: one of ``PRODUCTS``.
    """

    def __init__(
        self,
        gpt2: GPT2,
        adapters: Any = None,
        *,
        dropout: float = 0.0,
        seed: int = 0,
        recompute: bool = False,
        products: str = "float32",
    ) -> None:
        self.gpt2 = gpt2
        self.adapters = adapters
        self.dropout = dropout
        self.seed = seed
        self.recompute = recompute
        self.products = tf.as_dtype(products)

    def hidden(
        self, batch: Mapping[str, tf.Tensor], step: tf.Tensor | None = None, micro: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Return float32 rows ``[b * S, h]`` after the final layer norm.

        Args:
            batch: ``ids``, ``positions`` and ``segments``, int32 ``[b, S]``.
            step: of the optimizer, for dropout; None for no dropout.
            micro: the number of the micro-batch in its update.
        """
        return self.blocks(self.embed(batch), batch, step, micro)

    def embed(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the sum of token and position embedding, float32 ``[b * S, h]``."""
        x = self.gpt2.wte.table.lookup(batch["ids"]) + self.gpt2.wpe.table.lookup(batch["positions"])
        return tf.reshape(x, [-1, self.gpt2.config.n_embd])

    def blocks(
        self, x: tf.Tensor, batch: Mapping[str, tf.Tensor], step: tf.Tensor | None = None, micro: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Return float32 rows ``[b * S, h]`` after the final layer norm, of embedded rows ``x``."""
        rows, size = tf.unstack(tf.shape(batch["segments"]))
        key = None
        if step is not None and self.dropout:
            key = tf.cast(step, tf.int64) * 2**32 + tf.cast(micro, tf.int64) * 2**16
        sequences = Sequences(rows, size, functions.visibility(batch["segments"]), key)
        x = self._drop(x, key, 0)
        for index, block in enumerate(self.gpt2.h):
            x = self._block(block, index, x, sequences)
        return _layer_norm(self.gpt2.ln_f, x)

    def head(self) -> tf.Tensor:
        """Return the output matrix, float32 ``[V, h]``."""
        return float_matrix(self.gpt2.lm_head.table, tf.float32)

    def _drop(self, x: tf.Tensor, key: tf.Tensor | None, place: int) -> tf.Tensor:
        if key is None:
            return x
        noise = tf.random.stateless_uniform(tf.shape(x), [tf.cast(self.seed, tf.int64), key + place], alg="philox")
        return tf.where(noise >= self.dropout, x * (1 / (1 - self.dropout)), 0.0)

    def _linear(self, block: Block, index: int, target: str, x: tf.Tensor) -> tf.Tensor:
        layer = linear_layer(block, target)
        weight = float_matrix(layer.kernel, self.products)
        y = tf.matmul(tf.cast(x, self.products), weight, transpose_b=True)
        y = tf.cast(y, tf.float32) + tf.cast(layer.bias.value, tf.float32)
        pair = self.adapters.pair(index, target) if self.adapters is not None else None
        if pair is None:
            return y
        a, b = map(tf.convert_to_tensor, pair)
        return y + self.adapters.scale * tf.matmul(tf.matmul(x, a, transpose_b=True), b, transpose_b=True)

    def _block(self, block: Block, index: int, x: tf.Tensor, sequences: Sequences) -> tf.Tensor:
        config: GPT2Config = self.gpt2.config
        qkv = self._linear(block, index, "attn.c_attn", _layer_norm(block.ln_1, x))
        qkv = tf.reshape(qkv, [sequences.batch, sequences.size, 3, config.n_head, config.head_dim])
        query, key, value = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))
        mixed, _ = functions.attend(query, key, value, sequences.mask, tf.constant(config.attention_scale(index)))
        merged = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [-1, config.n_embd])
        x += self._drop(self._linear(block, index, "attn.c_proj", merged), sequences.key, 2 * index + 1)
        inner = self._linear(block, index, "mlp.c_fc", _layer_norm(block.ln_2, x))
        inner = functions.ACTIVATIONS[config.activation_function].value(inner)
        return x + self._drop(self._linear(block, index, "mlp.c_proj", inner), sequences.key, 2 * index + 2)


def _layer_norm(layer: LayerNorm, x: tf.Tensor) -> tf.Tensor:
    rows = functions.normalise(x, layer.epsilon, layer.kind).rows
    return rows * layer.gamma.value + layer.beta.value
