"""int8 weights: one scale per output, symmetric, and the product with them in stock TensorFlow.

A matrix ``[out, in]`` is stored as int8 and a float32 scale per row: w = q * scale, q from -127 to 127, scale the row's
largest magnitude over 127. Activations are quantised when they come, with a scale per row (per token) of their own, so
that a row's result does not depend on its neighbours. The product is exact in int32.

``_QuantizedMatMul`` is oneDNN's kernel in every TensorFlow for x86-64; it has no public Python name. Its inputs are two
int8 matrices, the bias, and the ranges that int8 stands for; a range of -127 to 127 makes the scale 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_library

from tf_model.storage import KERNEL

Array = np.ndarray[Any, Any]

_LEVELS = 127


def quantize(matrix: Array) -> tuple[Array, Array]:
    """int8 ``[out, in]`` and scales float32 ``[out]`` of a float32 matrix; beside them only blocks are allocated."""
    quantized, scale = np.empty(matrix.shape, np.int8), np.empty(len(matrix), np.float32)
    step = max(1, (1 << 18) // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        block = matrix[start : start + step]
        largest = np.maximum(block.max(axis=1), -block.min(axis=1))
        scale[start : start + step] = np.where(largest > 0, largest / _LEVELS, 1)
        levels = block / scale[start : start + step, np.newaxis]
        quantized[start : start + step] = np.rint(levels, out=levels)
    return quantized, scale


def product(x: tf.Tensor, kernel: tf.Tensor, scale: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """x W^T + b, float32 ``[N, out]``.

    Args:
        x: float32 ``[N, in]``.
        kernel: int8 ``[out, in]``.
        scale: float32 ``[out]``.
        bias: float32 ``[out]``.
    """
    if tf.executing_eagerly():  # the op can be made in a graph only
        return tf.function(_product, autograph=False)(x, kernel, scale, bias, False)
    return _product(x, kernel, scale, bias, True)


def _product(
    x: tf.Tensor, kernel: tf.Tensor, scale: tf.Tensor, bias: tf.Tensor | None, is_weight_const: bool
) -> tf.Tensor:
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    levels = tf.round(x * tf.math.divide_no_nan(float(_LEVELS), largest))
    high = scale * float(_LEVELS)
    inputs = [
        tf.bitcast(tf.cast(levels, tf.int8), tf.qint8),
        tf.bitcast(kernel, tf.qint8),
        tf.zeros_like(scale),
        tf.constant(-float(_LEVELS)),
        tf.constant(float(_LEVELS)),
        -high,
        high,
    ]
    ((summed,), _) = op_def_library.apply_op(
        KERNEL,
        name="quantized_matmul",
        device_inputs=inputs,
        host_inputs=[],
        Tdevice_outputs=[tf.float32],
        Thost_outputs=[],
        T1=tf.qint8,
        T2=tf.qint8,
        Tbias=tf.float32,
        U=tf.float32,
        Tout=tf.float32,
        transpose_a=False,
        transpose_b=True,
        is_weight_const=is_weight_const,
        is_bias_const=True,
        fused_ops=["BiasAdd", "Dequantize"],
        input_quant_mode="SCALED",
        output_quant_mode="SCALED",
        leakyrelu_alpha=0.0,
    )
    result = tf.ensure_shape(summed, [None, kernel.shape[0]]) * (largest / float(_LEVELS))
    return result if bias is None else result + bias
