"""One block of GPT-2 with its gradient, its weights being arguments: whichever block it is, the graph is the same.

Rows are float32 ``[N, h]`` with N = b * S. Weights go by their canonical names without the block's number
(``attn.c_attn.weight``); an int8 matrix has a ``SCALE`` next to it, and a matrix with an adapter ``ADAPTER_A`` and
``ADAPTER_B``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import tensorflow as tf

from tf_model.config import GPT2Config
from tf_model.precision import SCALE
from training.model import functions
from training.model.functions import Normalised

ADAPTER_A, ADAPTER_B = ".A", ".B"
"""After the name of a product: LoRA's float32 ``[r, in]`` and ``[out, r]``."""

Tensors = Mapping[str, tf.Tensor]


class Sequences(NamedTuple):
    """What all blocks share of a micro-batch.

    Attributes:
        mask: float32 ``[b, 1, S, S]``; see ``functions.visibility``.
        noise: int64 ``[2]``, the seed of dropout after the embeddings; later places add their number to the second.
    """

    mask: tf.Tensor
    noise: tf.Tensor


class BlockNumbers(NamedTuple):
    """Scalars of one block: ``scale``, float32, of attention scores; ``place``, int64, in the seed of its dropout."""

    scale: tf.Tensor
    place: tf.Tensor


class Kept(NamedTuple):
    """What the gradient of a block needs of its forward pass: 10 h + heads * S values a token."""

    attention_input: Normalised
    query: tf.Tensor
    key: tf.Tensor
    value: tf.Tensor
    probabilities: tf.Tensor
    mixed: tf.Tensor
    mlp_input: Normalised
    inner: tf.Tensor


@dataclasses.dataclass(frozen=True)
class BlockMaths:
    """What all blocks of a model have in common.

    Attributes:
        config: the sizes and choices of the model.
        dropout: share of values that are set to 0 after ``attn.c_proj`` and ``mlp.c_proj``.
        products: the type of the factors of matrix products.
        adapter_scale: factor of the products of adapters.
    """

    config: GPT2Config
    dropout: float
    products: tf.DType
    adapter_scale: float

    def begin(
        self, x: tf.Tensor, weights: Tensors, sequences: Sequences, numbers: BlockNumbers
    ) -> tuple[tf.Tensor, Kept]:
        """Compute all of the block but its last product: the rows after attention, and what ``gradient`` needs."""
        config = self.config
        attention_input = self._normalise(x)
        qkv = self._product("attn.c_attn", _affine(attention_input, weights, "ln_1"), weights)
        query, key, value = self._by_head(qkv, tf.shape(sequences.mask)[2])
        query *= numbers.scale
        mixed, probabilities = functions.attend(query, key, value, sequences.mask)
        mixed = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [-1, config.n_embd])
        x += self.drop(self._product("attn.c_proj", mixed, weights), sequences.noise, numbers.place)
        mlp_input = self._normalise(x)
        inner = self._product("mlp.c_fc", _affine(mlp_input, weights, "ln_2"), weights)
        return x, Kept(attention_input, query, key, value, probabilities, mixed, mlp_input, inner)

    def end(
        self, x: tf.Tensor, inner: tf.Tensor, weights: Tensors, sequences: Sequences, numbers: BlockNumbers
    ) -> tf.Tensor:
        """Return the rows after the block, given the rows after attention and ``Kept.inner``."""
        activated = functions.ACTIVATIONS[self.config.activation_function].value(inner)
        return x + self.drop(self._product("mlp.c_proj", activated, weights), sequences.noise, numbers.place + 1)

    def gradient(
        self,
        gradient: tf.Tensor,
        kept: Kept,
        weights: Tensors,
        sequences: Sequences,
        numbers: BlockNumbers,
        *,
        trained: Collection[str],
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Return the gradients of x and of the ``trained`` weights, given the ``gradient`` of the block's result."""
        config = self.config
        gradients = _Gradients(trained)
        # 1. the feed-forward layer
        activated, slope = functions.ACTIVATIONS[config.activation_function].value_and_slope(kept.inner)
        back = self.drop(gradient, sequences.noise, numbers.place + 1)
        back = self._product_gradient("mlp.c_proj", activated, back, weights, gradients) * slope
        back = self._product_gradient("mlp.c_fc", _affine(kept.mlp_input, weights, "ln_2"), back, weights, gradients)
        gradient += _affine_gradient("ln_2", kept.mlp_input, back, weights, gradients)
        # 2. attention
        back = self.drop(gradient, sequences.noise, numbers.place)
        back = self._product_gradient("attn.c_proj", kept.mixed, back, weights, gradients)
        back = self._attention_gradient(kept, back, numbers)
        entered = _affine(kept.attention_input, weights, "ln_1")
        back = self._product_gradient("attn.c_attn", entered, back, weights, gradients)
        gradient += _affine_gradient("ln_1", kept.attention_input, back, weights, gradients)
        return gradient, gradients.by_name

    def drop(self, x: tf.Tensor, noise: tf.Tensor, place: tf.Tensor | int) -> tf.Tensor:
        """Return ``x`` after dropout; given the gradient of dropped rows, the gradient before: no mask is kept."""
        if not self.dropout:
            return x
        seed = noise + tf.stack([tf.constant(0, tf.int64), tf.cast(place, tf.int64)])
        left = tf.random.stateless_uniform(tf.shape(x), seed, alg="philox") >= self.dropout
        return tf.where(left, x * (1 / (1 - self.dropout)), 0.0)

    def float_matrix(self, weight: tf.Tensor, scale: tf.Tensor | None = None) -> tf.Tensor:
        """Return a matrix as ``[out, in]`` of the type of the products; an int8 one ``[out, in]`` has a ``scale``."""
        if scale is None:
            return tf.cast(weight, self.products)
        return tf.cast(tf.cast(weight, tf.float32) * scale[:, tf.newaxis], self.products)

    def _matrix(self, name: str, weights: Tensors, x: tf.Tensor) -> tf.Tensor:
        """Return a matrix as ``float_matrix`` does, once its factor ``x`` is there.

        TensorFlow would otherwise make floats of all matrices of a block as soon as it begins, and keep those of the
        forward pass for the gradient where a block is computed again: 315 MB of CPM-Generate's in place of 105.
        """
        with tf.control_dependencies([x]):
            return self.float_matrix(weights[f"{name}.weight"], weights.get(f"{name}.weight{SCALE}"))

    def _normalise(self, x: tf.Tensor) -> Normalised:
        return functions.normalise(x, self.config.layer_norm_epsilon, self.config.layer_norm)

    def _by_head(self, qkv: tf.Tensor, size: tf.Tensor) -> list[tf.Tensor]:
        """Return query, key and value ``[b, heads, S, head_dim]`` of rows ``[N, 3 h]``."""
        parts = tf.reshape(qkv, [-1, size, 3, self.config.n_head, self.config.head_dim])
        by_head: list[tf.Tensor] = tf.unstack(tf.transpose(parts, [2, 0, 3, 1, 4]))
        return by_head

    def _attention_gradient(self, kept: Kept, gradient: tf.Tensor, numbers: BlockNumbers) -> tf.Tensor:
        """Return the gradient ``[N, 3 h]`` of query, key and value, given that of the mixed values ``[N, h]``."""
        shape = [-1, tf.shape(kept.query)[2], self.config.n_head, self.config.head_dim]
        along = tf.reduce_sum(tf.reshape(gradient * kept.mixed, shape), axis=-1, keepdims=True)
        query, key, value = functions.attend_gradient(
            kept.probabilities,
            kept.query,
            kept.key,
            kept.value,
            tf.transpose(along, [0, 2, 1, 3]),
            tf.transpose(tf.reshape(gradient, shape), [0, 2, 1, 3]),
        )
        parts = tf.transpose(tf.stack([query * numbers.scale, key, value]), [1, 3, 0, 2, 4])
        return tf.reshape(parts, [-1, 3 * self.config.n_embd])

    def _product(self, name: str, x: tf.Tensor, weights: Tensors) -> tf.Tensor:
        """Return x W^T + b, float32 ``[N, out]``, with the adapter of the matrix."""
        product = self._matmul(x, self._matrix(name, weights, x), transpose_b=True)
        product = tf.nn.bias_add(product, tf.cast(weights[f"{name}.bias"], tf.float32))
        if name + ADAPTER_A not in weights:
            return product
        inner = tf.matmul(x, weights[name + ADAPTER_A], transpose_b=True) * self.adapter_scale
        return product + tf.matmul(inner, weights[name + ADAPTER_B], transpose_b=True)

    def _product_gradient(
        self, name: str, x: tf.Tensor, gradient: tf.Tensor, weights: Tensors, gradients: _Gradients
    ) -> tf.Tensor:
        """Return the gradient of x, given the ``gradient`` of the product; add those of the weights."""
        gradients.add(f"{name}.weight", lambda: self._matmul(gradient, x, transpose_a=True))
        gradients.add(f"{name}.bias", lambda: tf.reduce_sum(gradient, axis=0))
        back = self._matmul(gradient, self._matrix(name, weights, gradient))
        if name + ADAPTER_A not in weights:
            return back
        a, b = weights[name + ADAPTER_A], weights[name + ADAPTER_B]
        inner = tf.matmul(gradient, b) * self.adapter_scale
        gradients.add(name + ADAPTER_A, lambda: tf.matmul(inner, x, transpose_a=True))
        outer = tf.matmul(x, a, transpose_b=True) * self.adapter_scale
        gradients.add(name + ADAPTER_B, lambda: tf.matmul(gradient, outer, transpose_a=True))
        return back + tf.matmul(inner, a)

    def _matmul(self, left: tf.Tensor, right: tf.Tensor, **transposed: bool) -> tf.Tensor:
        """Return a product in float32 of factors that are rounded to the type of the products."""
        product = tf.matmul(tf.cast(left, self.products), tf.cast(right, self.products), **transposed)
        return tf.cast(product, tf.float32)


class _Gradients:
    """The gradients of those weights that are trained, by name."""

    def __init__(self, trained: Collection[str]) -> None:
        self._trained = trained
        self.by_name: dict[str, tf.Tensor] = {}

    def add(self, name: str, gradient: Callable[[], tf.Tensor]) -> None:
        """Compute the gradient of weight ``name``, unless the weight is frozen."""
        if name in self._trained:
            self.by_name[name] = gradient()


def _affine(normalised: Normalised, weights: Tensors, name: str) -> tf.Tensor:
    return normalised.rows * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _affine_gradient(
    name: str, normalised: Normalised, gradient: tf.Tensor, weights: Tensors, gradients: _Gradients
) -> tf.Tensor:
    """Return the gradient of a layer norm's input, given that of its output; add those of its weights."""
    gradients.add(f"{name}.weight", lambda: tf.reduce_sum(gradient * normalised.rows, axis=0))
    gradients.add(f"{name}.bias", lambda: tf.reduce_sum(gradient, axis=0))
    return functions.normalise_gradient(normalised, gradient * weights[f"{name}.weight"])
