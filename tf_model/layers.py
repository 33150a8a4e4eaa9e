"""The parts of a GPT-2 block, in Keras.

All of them work on activations flattened to rows, ``[N, h]`` with N = batch * positions, so that every matrix product
is a plain two-dimensional one. The residual stream, layer norms and softmax are float32 whatever the dtype of the
weights: matrix products and biases alone run in float16 or bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_model import quantization
from tf_model.attention import attend
from tf_model.cache import LayerCache
from tf_model.config import STANDARD, UER, GPT2Config
from tf_model.precision import OFFSET, PRECISIONS, SCALE

ACTIVATION_FUNCTIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
    "gelu_fast": lambda x: tf.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: tf.nn.gelu(x, approximate=True),
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "relu": tf.nn.relu,
    "silu": lambda x: x * tf.sigmoid(x),  # tf.nn.silu has a gradient of its own, and functions for it
    "tanh": tf.tanh,
}

Initializer = Any


class UninitializedInitializer:
    """An initializer for a graph whose weights are written by other means: no memory is touched.

    Variables of one shape share a buffer, because even an untouched one costs a page or, where pages are huge, 2 MB.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[tuple[int, ...], str], tf.Tensor] = {}

    def __call__(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        key = (tuple(shape), str(dtype))
        if key not in self._buffers:
            self._buffers[key] = tf.raw_ops.Empty(shape=shape, dtype=tf.as_dtype(dtype), init=False)
        return self._buffers[key]


class ForwardBatch(NamedTuple):
    """What every layer of one forward pass needs to know about its tokens.

    Attributes:
        batch: B, int32.
        size: s, the tokens fed per row, int32.
        visible: bool ``[B, 1, s, K]``: which of the first K keys each token attends to; of all keys if s is 1.
        slots: int32 ``[B * s * 2 * n_head]``, the rows of a layer's cache that the new keys and values go to; None
            without a cache.
    """

    batch: tf.Tensor
    size: tf.Tensor
    visible: tf.Tensor
    slots: tf.Tensor | None


class LayerNorm(keras.layers.Layer):
    """(x - mean) / sqrt(var + epsilon) * gamma + beta over the last axis, biased variance, float32 throughout.

    ``kind`` UER: (x - mean) / (sqrt(var * N / (N - 1)) + epsilon) * gamma + beta, for N values a row.
    """

    def __init__(self, epsilon: float, name: str, initializer: Initializer = None, kind: str = STANDARD) -> None:
        super().__init__(name=name, dtype="float32", autocast=False)
        self.epsilon = epsilon
        self.kind = kind
        self.initializer = initializer

    def build(self, input_shape: Any) -> None:
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer=self.initializer or "ones")
        self.beta = self.add_weight(name="beta", shape=shape, initializer=self.initializer or "zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        # Of whole rows: of [N, 1] Eigen computes full vectors and the rest in two ways, and so a row's last bits would
        # depend on how many there are, which the rounding of int8 activations makes large.
        if self.kind == UER:
            size = self.gamma.shape[0]
            whole = tf.broadcast_to(variance * (size / max(1, size - 1)), tf.shape(x))
            return centred / (tf.sqrt(whole) + self.epsilon) * self.gamma.value + self.beta.value
        whole = tf.broadcast_to(variance + self.epsilon, tf.shape(x))
        return centred * tf.math.rsqrt(whole) * self.gamma.value + self.beta.value


class Matrix:
    """A matrix ``[out, in]`` of a layer, in any dtype that weights can have, with the two things that are done with it.

    The orientation is that of checkpoints: no transpose when converting. Reading a row per output is also the faster
    order for a single token (a matrix-vector product).
    """

    def __init__(self, layer: keras.layers.Layer, name: str, shape: Any, dtype: str, initializer: Initializer) -> None:
        self.scale = None
        if PRECISIONS[dtype].matrices == "int8":
            self.packed = PRECISIONS[dtype].packed
            self.transposed = PRECISIONS[dtype].transposed
            fill = isinstance(initializer, keras.initializers.Initializer)  # to be assigned: random int8 means nothing
            zeros, ones = ("zeros", "ones") if fill else (initializer, initializer)
            self.weight = layer.add_weight(
                name=name, shape=shape[::-1] if self.transposed else shape, dtype="int8", initializer=zeros,
                trainable=False,
            )  # fmt: skip
            self.scale, self.offset = (
                layer.add_weight(
                    name=f"{name}{suffix}", shape=shape[:1], dtype="float32", initializer=initial, trainable=False
                )
                for suffix, initial in ((SCALE, ones), (OFFSET, zeros))
            )
        else:
            self.weight = layer.add_weight(name=name, shape=shape, initializer=initializer)

    def lookup(self, index: tf.Tensor) -> tf.Tensor:
        """Return the rows ``index`` of any shape, float32 ``[..., in]``."""
        # A gather from the variable itself makes TensorFlow copy the table at every later read, as the output matrix.
        table = tf.convert_to_tensor(self.weight.value)
        if self.scale is None:
            return tf.cast(tf.gather(table, index), tf.float32)
        if self.transposed:
            columns = tf.gather(table, tf.reshape(index, [-1]), axis=1)
            rows = tf.reshape(tf.transpose(columns), tf.concat([tf.shape(index), table.shape[:1]], 0))
        else:
            rows = tf.gather(table, index)
        return tf.cast(rows, tf.float32) * tf.gather(tf.convert_to_tensor(self.scale.value), index)[..., tf.newaxis]

    def matmul(self, x: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
        """x W^T + b, ``[N, out]``, of ``x`` ``[N, in]``."""
        if self.scale is not None:
            weight = (self.weight.value, self.scale.value, self.offset.value)
            if self.transposed:
                return quantization.convolve(x, *weight, bias)
            return quantization.product(x, *weight, bias, packed=self.packed)
        weight = self.weight.value
        x = tf.cast(x, weight.dtype)

        def add(product: tf.Tensor) -> tf.Tensor:
            return product if bias is None else tf.nn.bias_add(product, bias)

        def many() -> tf.Tensor:
            return add(tf.transpose(tf.matmul(weight, x, transpose_b=True)))

        def one() -> tf.Tensor:
            return add(tf.matmul(x, weight, transpose_b=True))

        # oneDNN copies a transposed weight into blocks at every call but for very few rows; as the left factor it is
        # read as it lies: 32 rows with 2560 x 10240 float32 take 5 ms that way, 18 the other, one row 2.4 in both.
        # Without oneDNN, which TensorFlow leaves off on processors that have AVX2 only, a product and its bias become
        # one op of Eigen that takes ten times as long for one row; the transpose between them prevents that.
        # A single row of a half type is fastest as x W^T: oneDNN makes one op of product, bias and gelu.
        result = many() if weight.dtype == tf.float32 else tf.cond(tf.shape(x)[0] == 1, one, many)
        return tf.ensure_shape(result, [None, weight.shape[0]])


class Linear(keras.layers.Layer):
    """x W^T + b."""

    def __init__(self, units: int, name: str, dtype: str, initializer: Initializer) -> None:
        super().__init__(name=name, dtype=PRECISIONS[dtype].compute, autocast=False)
        self.units = units
        self.weight_dtype = dtype
        self.initializer = initializer

    def build(self, input_shape: Any) -> None:
        bias = "zeros" if isinstance(self.initializer, keras.initializers.Initializer) else self.initializer
        self.kernel = Matrix(self, "kernel", (self.units, input_shape[-1]), self.weight_dtype, self.initializer)
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer=bias)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.kernel.matmul(x, self.bias.value)


class Attention(keras.layers.Layer):
    """Causal multi-head attention: softmax(Q K^T * scale) V, then the output projection.

    The scale is ``GPT2Config.attention_scale``, 1 / sqrt(head_dim) as a rule. A call may have another block's, as it
    may have another's weights.
    """

    def __init__(
        self, config: GPT2Config, index: int, dtype: str, initializer: Initializer, output_initializer: Initializer
    ) -> None:
        super().__init__(name="attn", dtype=PRECISIONS[dtype].compute, autocast=False)
        self.config = config
        self.scale = config.attention_scale(index)
        self.c_attn = Linear(3 * config.n_embd, "c_attn", dtype, initializer)
        self.c_proj = Linear(config.n_embd, "c_proj", dtype, output_initializer)

    def build(self, input_shape: Any) -> None:
        self.c_attn.build(input_shape)
        self.c_proj.build(input_shape)

    def call(
        self, x: tf.Tensor, forward_batch: ForwardBatch, cache: LayerCache | None, scale: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        heads, width = self.config.n_head, self.config.head_dim

        def by_head(part: tf.Tensor) -> tf.Tensor:
            return tf.transpose(tf.reshape(part, [forward_batch.batch, forward_batch.size, heads, width]), [0, 2, 1, 3])

        query, both = tf.split(self.c_attn(x), [heads * width, 2 * heads * width], axis=-1)
        query = by_head(query)
        if cache is None:
            key, value = map(by_head, tf.split(both, 2, axis=-1))
        else:
            cache = cache.write(forward_batch.slots, both)
            key, value = cache.read(forward_batch.batch, heads)
        # The query is scaled, not the product: in float16 a product of large activations is infinite sooner.
        mixed = attend(query * (self.scale if scale is None else scale), key, value, forward_batch.visible)
        merged = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [-1, self.config.n_embd])
        return self.c_proj(merged), None if cache is None else cache.buffer


class MLP(keras.layers.Layer):
    """h -> n_inner -> h with the activation of the config between."""

    def __init__(
        self, config: GPT2Config, dtype: str, initializer: Initializer, output_initializer: Initializer
    ) -> None:
        super().__init__(name="mlp", dtype=PRECISIONS[dtype].compute, autocast=False)
        self.activation = ACTIVATION_FUNCTIONS[config.activation_function]
        self.c_fc = Linear(config.n_inner, "c_fc", dtype, initializer)
        self.c_proj = Linear(config.n_embd, "c_proj", dtype, output_initializer)

    def build(self, input_shape: Any) -> None:
        self.c_fc.build(input_shape)
        self.c_proj.build((None, self.c_fc.units))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


ApplyBlock = Callable[..., Any]
"""A ``Block``, or a function that does the same: (x, forward_batch, layer cache) -> (x, the cache's buffer)."""


class Block(keras.layers.Layer):
    """Pre-LN: a = x + attention(ln_1(x)); y = a + mlp(ln_2(a)). x and y are float32 ``[N, h]``."""

    def __init__(
        self, config: GPT2Config, index: int, dtype: str, initializer: Initializer, output_initializer: Initializer
    ) -> None:
        super().__init__(name=f"h_{index}", dtype=PRECISIONS[dtype].compute, autocast=False)
        norm = None if isinstance(initializer, keras.initializers.Initializer) else initializer
        self.ln_1 = LayerNorm(config.layer_norm_epsilon, "ln_1", norm, config.layer_norm)
        self.attn = Attention(config, index, dtype, initializer, output_initializer)
        self.ln_2 = LayerNorm(config.layer_norm_epsilon, "ln_2", norm, config.layer_norm)
        self.mlp = MLP(config, dtype, initializer, output_initializer)

    def build(self, input_shape: Any) -> None:
        for layer in (self.ln_1, self.attn, self.ln_2, self.mlp):
            layer.build(input_shape)

    def call(
        self, x: tf.Tensor, forward_batch: ForwardBatch, cache: LayerCache | None, scale: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        attended, written = self.attn(self.ln_1(x), forward_batch, cache, scale)
        x = x + tf.cast(attended, tf.float32)
        return x + tf.cast(self.mlp(self.ln_2(x)), tf.float32), written
