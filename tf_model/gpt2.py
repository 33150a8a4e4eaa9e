"""GPT-2 as a Keras model: one forward pass for training, scoring, prefill and decoding.

The maths is that of Megatron's CPM (CPM-1-Generate, ``mpu/transformer.py`` and ``model/gpt2_modeling.py``): token plus
position embedding, pre-LN blocks, final layer norm, and the token embedding again as the output matrix, or one of its
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_model import cache as kv
from tf_model.config import GPT2Config
from tf_model.layers import ApplyBlock, Block, ForwardBatch, LayerNorm, Matrix, UninitializedInitializer
from tf_model.precision import OFFSET, PRECISIONS, SCALE, stored_tensors

_KERAS_NAMES = {
    "kernel": "weight",
    **{f"kernel{suffix}": f"weight{suffix}" for suffix in (SCALE, OFFSET)},
    "gamma": "weight",
    "beta": "bias",
}


class Embedding(keras.layers.Layer):
    """A table ``weight`` [rows, h], read by row; the output matrix is one that is read whole."""

    def __init__(self, rows: int, width: int, name: str, dtype: str, initializer: Any) -> None:
        super().__init__(name=name, dtype=PRECISIONS[dtype].compute, autocast=False)
        self.table = Matrix(self, "weight", (rows, width), dtype, initializer)
        self.built = True

    def call(self, index: tf.Tensor) -> tf.Tensor:
        return self.table.lookup(index)


class GPT2(keras.Model):
    """A GPT-2 of the sizes in ``config``.

    >>> model = GPT2(GPT2Config(vocab_size=100, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    >>> model(tf.constant([[1, 2, 3]])).shape
    TensorShape([1, 3, 100])

    Args:
        config: the sizes.
        dtype: one of ``DTYPES``: of the matrices and biases, and of the products with them. With int8 matrices the
            rest is float32; layer norms are always.
        initialize: False leaves the weights' memory untouched, for a graph whose weights are written by other means.
    """

    def __init__(
        self, config: GPT2Config, *, dtype: str = "float32", initialize: bool = True, name: str = "gpt2"
    ) -> None:
        super().__init__(name=name, dtype=PRECISIONS[dtype].compute, autocast=False)
        self.config = config
        self.weight_dtype = dtype
        unwritten = None if initialize else UninitializedInitializer()
        normal = unwritten or keras.initializers.RandomNormal(stddev=0.02)
        output = unwritten or keras.initializers.RandomNormal(stddev=0.02 * (2 * config.n_layer) ** -0.5)
        self.wte = Embedding(config.vocab_size, config.n_embd, "wte", dtype, normal)
        self.wpe = Embedding(config.n_positions, config.n_embd, "wpe", PRECISIONS[dtype].compute, normal)
        self.h = [Block(config, i, dtype, normal, output) for i in range(config.n_layer)]
        self.ln_f = LayerNorm(config.layer_norm_epsilon, "ln_f", unwritten, config.layer_norm)
        tied = config.tie_word_embeddings
        self.lm_head = self.wte if tied else Embedding(config.vocab_size, config.n_embd, "lm_head", dtype, normal)
        layers: list[Any] = [*self.h, self.ln_f]
        for layer in layers:
            layer.build((None, config.n_embd))
        self.built = True

    def call(self, input_ids: tf.Tensor) -> tf.Tensor:
        """Logits float32 ``[B, S, V]`` of token ids ``[B, S]``, S at most ``n_positions``: no cache, causal mask."""
        batch, size = tf.unstack(tf.shape(input_ids))
        position = tf.range(size)[tf.newaxis]
        visible = position[:, tf.newaxis, tf.newaxis, :] <= position[:, tf.newaxis, :, tf.newaxis]
        rows, _ = self._hidden(input_ids, position, ForwardBatch(batch, size, visible, None), None)
        return tf.reshape(self.logits(rows), [batch, size, self.config.vocab_size])

    def allocate(self, batch: tf.Tensor, capacity: tf.Tensor) -> tf.Tensor:
        """Return an empty cache for ``capacity`` positions of ``batch`` rows."""
        config = self.config
        return kv.allocate(config.n_layer, batch, config.n_head, capacity, config.head_dim, self.compute_dtype)

    def forward(
        self,
        tokens: tf.Tensor,
        start: tf.Tensor,
        count: tf.Tensor,
        cache: tf.Tensor,
        capacity: tf.Tensor,
        blocks: Sequence[ApplyBlock] = (),
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Read new tokens, each row's behind what its cache has: a prompt, one token, a window; only s differs.

        Args:
            tokens: int32 ``[B, s]``, rows right-padded with any valid id.
            start: int32 ``[B]``, the position of each row's first token.
            count: int32 ``[B]``, how many of the s tokens are the row's own.
            cache: as ``allocate`` or the last ``forward`` gave it; used up by this call.
            capacity: as given to ``allocate``.
            blocks: others than the model's own: ``StackedBlocks.blocks``.

        Returns:
            float32 ``[B * s, h]`` for ``logits``, row b's token j at b * s + j, and the cache to go on with.
        """
        batch, size = tf.unstack(tf.shape(tokens))
        column = tf.range(size)[tf.newaxis]
        position = start[:, tf.newaxis] + column
        # Nothing is cut off for a single token: its products take the cache as it lies, a part would be a copy.
        read = kv.in_blocks(tf.maximum(tf.reduce_max(tf.where(count > 0, start + count, 0)), 1))
        keys = tf.where(size == 1, capacity + 1, tf.minimum(read, capacity + 1))
        forward_batch = ForwardBatch(
            batch,
            size,
            tf.range(keys) <= position[:, tf.newaxis, :, tf.newaxis],
            kv.slots(position, column < count[:, tf.newaxis], self.config.n_head, capacity),
        )
        return self._hidden(tokens, tf.minimum(position, self.config.n_positions - 1), forward_batch, cache, blocks)

    def step(
        self, tokens: tf.Tensor, start: tf.Tensor, count: tf.Tensor, cache: tf.Tensor, capacity: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As ``forward``, but with the logits float32 ``[B, V]`` after token ``count - 1`` of each row."""
        rows, cache = self.forward(tokens, start, count, cache, capacity)
        return self.logits(last_rows(rows, tokens, count)), cache

    def _hidden(
        self,
        tokens: tf.Tensor,
        position: tf.Tensor,
        forward_batch: ForwardBatch,
        cache: tf.Tensor | None,
        blocks: Sequence[ApplyBlock] = (),
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Rows ``[B * s, h]`` before the final layer norm, and the cache."""
        x = tf.reshape(self.wte(tokens) + self.wpe(position), [-1, self.config.n_embd])
        calls: Sequence[ApplyBlock] = blocks or self.h
        if cache is None:
            for block in calls:
                x, _ = block(x, forward_batch, None)
            return x, None
        places = kv.layers(cache)
        buffer = places[0].buffer
        for block, place in zip(calls, places, strict=True):
            x, buffer = block(x, forward_batch, place._replace(buffer=buffer))
        return x, tf.ensure_shape(tf.reshape(buffer, tf.shape(cache)), cache.shape)

    def logits(self, rows: tf.Tensor) -> tf.Tensor:
        """Apply the final layer norm and the output matrix: logits float32 ``[N, V]`` of rows ``[N, h]``."""
        return tf.cast(self.lm_head.table.matmul(self.ln_f(rows)), tf.float32)

    def canonical_variables(self) -> dict[str, tf.Variable]:
        """Return the weights as TensorFlow variables under their canonical names (``precision.stored_tensors``)."""
        return {name: variable.value for name, variable in self.named_variables().items()}

    def named_variables(self) -> dict[str, keras.Variable]:
        """Return Keras's variables, which know whether they are trained, under their canonical names."""
        named = {}
        for variable in self.variables:
            scope, leaf = variable.path.removeprefix(f"{self.name}/").rsplit("/", 1)
            name = scope.replace("/", ".").replace("h_", "h.", 1) if scope.startswith("h_") else scope
            named[f"{name}.{_KERAS_NAMES.get(leaf, leaf)}"] = variable
        return {name: named[name] for name in stored_tensors(self.config, self.weight_dtype)}


def last_rows(rows: tf.Tensor, tokens: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Of rows ``[B * s, h]`` those after token ``count - 1`` of each row, ``[B, h]``; ``tokens`` is ``[B, s]``."""
    batch, size = tf.unstack(tf.shape(tokens))
    return tf.gather(rows, tf.range(batch) * size + tf.maximum(count, 1) - 1)
