"""The weights of all blocks as a graph holds them: one variable ``[L, ...]`` of each kind, and one function for all.

A variable for each block would be an argument of every function that calls the model, some 25 in a SavedModel: half of
its nodes, which TensorFlow makes one by one when it loads it, and in every token one more operation for each weight.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_model.cache import LayerCache
from tf_model.gpt2 import GPT2
from tf_model.layers import ApplyBlock, ForwardBatch
from tf_model.precision import stack_name
from tf_model.tensorflow_internals import UninitializedVariable


class StackedBlocks:
    """The blocks of ``model`` with weights of their own, which are to be written: they have no memory yet.

    Weights are arguments of the function, so TensorFlow puts its body in the place of each call before it runs a graph,
    and a graph runs as it would without. But it is traced once, and loaded once. int8 needs that, too: its kernel keeps
    the first matrix that it packs, so every call must have a kernel of its own.

    Attributes:
        variables: ``[L, ...]``, by the canonical name without the block's number.
    """

    def __init__(self, model: GPT2) -> None:
        config = model.config
        first = model.h[0]
        names = {id(variable): stack_name(name) or name for name, variable in model.canonical_variables().items()}
        self._blocks = [block.variables for block in model.h]  # in the same order in all
        self.variables: dict[str, tf.Variable] = {
            names[id(weight.value)]: UninitializedVariable(
                shape=[config.n_layer, *weight.shape], dtype=weight.dtype, trainable=False
            )
            for weight in first.variables
        }
        self._scales = [tf.constant(block.attn.scale, model.compute_dtype) for block in model.h]

        def call(
            x: tf.Tensor, forward_batch: ForwardBatch, cache: LayerCache, scale: tf.Tensor, values: list[tf.Tensor]
        ) -> Any:
            with keras.StatelessScope(state_mapping=zip(first.variables, values, strict=True)):
                return first(x, forward_batch, cache, scale=scale)

        number, row = (tf.TensorSpec([None] * rank, tf.int32) for rank in (0, 1))
        width = tf.TensorSpec([None, config.head_dim], model.compute_dtype)
        bound = tf.TensorSpec([1], tf.int32)
        self._call = tf.function(
            call,
            input_signature=[
                tf.TensorSpec([None, config.n_embd], tf.float32),
                ForwardBatch(number, number, tf.TensorSpec([None, 1, None, None], tf.bool), row),
                LayerCache(width, bound, bound),
                tf.TensorSpec([], model.compute_dtype),
                [tf.TensorSpec(weight.shape, weight.dtype) for weight in first.variables],
            ],
            autograph=False,
        )

    def assign(self) -> None:
        """Take over the weights that the blocks of the model have now."""
        for stack, weights in zip(self.variables.values(), zip(*self._blocks, strict=True), strict=True):
            stack.assign(tf.stack([weight.value for weight in weights]))

    def blocks(self) -> Sequence[ApplyBlock]:
        """For ``GPT2.forward``, once for each graph that calls it."""
        # Unpack gives parts of the variable itself, without a copy, where they begin at a multiple of 64 bytes.
        values = zip(*(tf.unstack(tf.convert_to_tensor(stack)) for stack in self.variables.values()), strict=True)
        return [
            functools.partial(self._apply, scale=scale, values=list(own))
            for scale, own in zip(self._scales, values, strict=True)
        ]

    def _apply(
        self, x: tf.Tensor, forward_batch: ForwardBatch, cache: LayerCache, scale: tf.Tensor, values: list[tf.Tensor]
    ) -> Any:
        return self._call(x, forward_batch, cache, scale, values)
