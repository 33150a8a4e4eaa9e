"""The forward pass of training: segments, positions, dropout, adapters, and a gradient of its own for each block."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tf_model.config import LINEAR_LAYERS
from tf_model.gpt2 import GPT2
from tf_model.layers import Block
from tf_model.precision import stack_name
from training.model import functions
from training.model.block import ADAPTER_A, ADAPTER_B, BlockMaths, BlockNumbers, Kept, Sequences, Tensors
from training.model.lora import Adapters

_STEP, _MICRO_BATCH = 2**32, 2**16
"""Factors of a step and of a micro-batch in a seed; a place of dropout is less than either."""

Batch = Mapping[str, tf.Tensor]


class Forward:
    """Hidden states of ``gpt2`` for training.

    Dropout is left out on attention probabilities, where it costs most; it is after the embeddings, ``attn.c_proj`` and
    ``mlp.c_proj``, and a function of (seed, place, step, micro-batch) alone.

    All blocks are one TensorFlow function forward and one backward, whose arguments are weights: both are traced and
    optimised once, however many blocks there are.

    Args:
        gpt2: the model; the forward pass reads its variables.
        adapters: LoRA's; ``pair(block, target)`` gives A ``[r, in]`` and B ``[out, r]``, or None.
        dropout: share of values that are set to 0.
        seed: of dropout.
        recompute: whether a block keeps its input only, and is computed again for its gradient.
        products: type of the factors of matrix products, float32 or bfloat16; sums, weights and their gradients are
            float32 with both.
    """

    def __init__(
        self,
        gpt2: GPT2,
        adapters: Adapters | None = None,
        *,
        dropout: float = 0.0,
        seed: int = 0,
        recompute: bool = False,
        products: str = "float32",
    ) -> None:
        self.gpt2 = gpt2
        self.adapters = adapters
        self.seed = seed
        self.maths = BlockMaths(
            gpt2.config,
            dropout=dropout,
            products=tf.as_dtype(products),
            adapter_scale=1.0 if adapters is None else adapters.scale,
        )
        self._with_dropout = _BlockFunctions(self.maths, recompute=recompute)
        self._without_dropout = _BlockFunctions(dataclasses.replace(self.maths, dropout=0.0), recompute=recompute)
        names = {id(variable): stack_name(name) for name, variable in gpt2.canonical_variables().items()}
        self._weights = [self._named_weights(index, block, names) for index, block in enumerate(gpt2.h)]

    def _named_weights(self, index: int, block: Block, names: Mapping[int, str | None]) -> dict[str, Any]:
        """Return the Keras variables of a block and of its adapters, as ``block`` names them."""
        weights = {str(names[id(variable.value)]).removeprefix("h."): variable for variable in block.variables}
        for target in LINEAR_LAYERS:
            pair = self.adapters.pair(index, target) if self.adapters is not None else None
            if pair is not None:
                weights |= {target + ADAPTER_A: pair[0], target + ADAPTER_B: pair[1]}
        return weights

    def hidden(self, batch: Batch, step: tf.Tensor | None = None, micro: tf.Tensor | int = 0) -> tf.Tensor:
        """Return float32 rows ``[b * S, h]`` after the final layer norm.

        Args:
            batch: ``ids``, ``positions`` and ``segments``, int32 ``[b, S]``.
            step: of the optimizer, for dropout; None for no dropout.
            micro: the number of the micro-batch in its update.
        """
        return self.blocks(self.embed(batch), batch, step, micro)

    def embed(self, batch: Batch) -> tf.Tensor:
        """Return the sum of token and position embedding, float32 ``[b * S, h]``."""
        x = self.gpt2.wte.table.lookup(batch["ids"]) + self.gpt2.wpe.table.lookup(batch["positions"])
        return tf.reshape(x, [-1, self.gpt2.config.n_embd])

    def blocks(
        self, x: tf.Tensor, batch: Batch, step: tf.Tensor | None = None, micro: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Return float32 rows ``[b * S, h]`` after the final layer norm, of embedded rows ``x``."""
        blocks = self._without_dropout if step is None else self._with_dropout
        key = tf.cast(0 if step is None else step, tf.int64) * _STEP + tf.cast(micro, tf.int64) * _MICRO_BATCH
        noise = tf.stack([tf.cast(self.seed, tf.int64), key])
        sequences = Sequences(functions.visibility(batch["segments"]), noise)
        x = blocks.drop(x, noise)
        for index, weights in enumerate(self._weights):
            scale = tf.constant(self.gpt2.config.attention_scale(index), tf.float32)
            numbers = BlockNumbers(scale, tf.constant(2 * index + 1, tf.int64))
            x = blocks(x, weights, sequences, numbers)
        norm = self.gpt2.ln_f
        return functions.layer_norm(x, norm.gamma.value, norm.beta.value, norm.epsilon, norm.kind)

    def trained_embeddings(self, batch: Batch) -> list[tuple[tf.Variable, tf.Tensor]]:
        """Return the trainable tables that ``embed`` reads, each with the rows ``[N, 1]`` that it reads of it."""
        tables = ((self.gpt2.wte.table.weight, batch["ids"]), (self.gpt2.wpe.table.weight, batch["positions"]))
        return [(table.value, tf.reshape(rows, [-1, 1])) for table, rows in tables if table.trainable]

    def head(self, rows: tf.Tensor) -> functions.Head:
        """Return the output matrix; one that is not float32 becomes so when its factor ``rows`` is there."""
        matrix = self.gpt2.lm_head.table
        table = tf.convert_to_tensor(matrix.weight.value)
        scale = None if matrix.scale is None else tf.convert_to_tensor(matrix.scale.value)
        with tf.control_dependencies([rows]):
            factor = self.maths.float_matrix(table, scale)
        return functions.Head(factor, table if matrix.weight.trainable else None)


class _BlockFunctions:
    """A block as TensorFlow functions, and as one operation with a gradient for a ``tf.GradientTape``."""

    def __init__(self, maths: BlockMaths, *, recompute: bool) -> None:
        self._maths = maths
        self._recompute = recompute
        # Not inlined: each is optimised once, and its executor made once. And the order is kept: a block that is
        # recomputed begins when its gradient is there, not when TensorFlow has a thread for it.
        options = {"autograph": False, "experimental_attributes": {"_noinline": True}}
        # A block in two parts, because the last product is not computed again.
        self._begin = tf.function(maths.begin, **options)
        self._end = tf.function(maths.end, **options)
        self._gradients: dict[tuple[str, ...], Callable[..., Any]] = {}
        self._options = options

    def drop(self, x: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """Return ``x`` after dropout."""
        return self._maths.drop(x, noise, 0)

    def __call__(
        self, x: tf.Tensor, variables: Mapping[str, Any], sequences: Sequences, numbers: BlockNumbers
    ) -> tf.Tensor:
        """Return the rows after a block."""
        weights = {name: tf.convert_to_tensor(variable.value) for name, variable in variables.items()}
        trained = tuple(name for name, variable in variables.items() if variable.trainable)

        @tf.custom_gradient
        def run(x: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]]:
            between, kept = self._begin(x, weights, sequences, numbers)

            def gradient(outer: tf.Tensor) -> tuple[tf.Tensor, ...]:
                needed = self._again(x, outer, weights, sequences, numbers) if self._recompute else kept
                found, gradients = self._gradient_of(trained)(outer, needed, weights, sequences, numbers)
                return (found, *(gradients[name] for name in trained))

            return self._end(between, kept.inner, weights, sequences, numbers), gradient

        return run(x, *(weights[name] for name in trained))

    def _again(
        self, x: tf.Tensor, outer: tf.Tensor, weights: Tensors, sequences: Sequences, numbers: BlockNumbers
    ) -> Kept:
        """Compute ``Kept`` again, once the gradient ``outer`` of the block's output is there."""
        with tf.control_dependencies([outer]):
            x = tf.identity(x)
        kept: Kept = self._begin(x, weights, sequences, numbers)[1]
        return kept

    def _gradient_of(self, trained: tuple[str, ...]) -> Callable[..., Any]:
        """Return the function that gives the gradients of x and of the ``trained`` weights."""
        if trained not in self._gradients:
            gradient = functools.partial(self._maths.gradient, trained=trained)
            self._gradients[trained] = tf.function(gradient, **self._options)
        return self._gradients[trained]
