"""int8 weights: one scale per output, symmetric, and the product with them in stock TensorFlow.

A matrix ``[out, in]`` is stored as int8 and a float32 scale per row: w = q * scale, q from -levels to levels, scale the
row's largest magnitude over levels. Activations are quantised when they come, with a scale per row (per token) of their
own, so that a row's result does not depend on its neighbours. The product is exact in int32 but for the offset, which
the kernels take off in float32: its last bit is a few levels where most of a row's weights have one sign.

``_QuantizedMatMul`` is oneDNN's kernel in every TensorFlow for x86-64; it has no public Python name. Its inputs are
activations, int8 weights, a bias, and the ranges that the integers stand for. What makes it fast:

- activations are unsigned, level + 128, because the processor's instruction multiplies uint8 by int8; the 128 times the
  row's sum that this adds is stored with the weights, as ``offset``, and taken off by the kernel's bias;
- the ranges are single numbers of scale 1: with a range per output the kernel makes its scales anew at every call,
  which takes as long as the product itself for a matrix of 768 x 3072.

Without VNNI instructions oneDNN adds pairs of products in 16 bits, which saturate: 2 * 255 * 127 is too large, but
2 * 255 * 64 is not. ``convolve`` is for weights of such levels: no pair of theirs saturates on any processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_model.precision import INT8_CONV_OP, INT8_MATMUL_OP, PRECISIONS, is_transposed
from tf_model.tensorflow_internals import apply_op

Array = np.ndarray[Any, Any]

_LEVELS = 127
_ZERO = 128
"""The unsigned integer that stands for 0."""


def quantize(matrix: Array, levels: int = _LEVELS) -> tuple[Array, Array]:
    """int8 ``[out, in]`` and scales float32 ``[out]`` of a float32 matrix; beside them only blocks are allocated."""
    quantized, scale = np.empty(matrix.shape, np.int8), np.empty(len(matrix), np.float32)
    step = max(1, (1 << 18) // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        block = matrix[start : start + step]
        largest = np.maximum(block.max(axis=1), -block.min(axis=1))
        steps = largest / levels
        scale[start : start + step] = np.where(steps > 0, steps, 1)  # also where the smallest floats are too large
        exact = block / scale[start : start + step, np.newaxis]
        quantized[start : start + step] = np.rint(exact, out=exact)
    return quantized, scale


def offset(quantized: Array) -> Array:
    """-128 times the sum of each row of int8 ``[out, in]``: float32 ``[out]``, exact for up to 132,000 columns."""
    sums: Array = quantized.sum(axis=1, dtype=np.int64)
    return np.multiply(sums, -_ZERO, dtype=np.float32)


def stored(name: str, matrix: Array, dtype: str) -> tuple[Array, Array, Array]:
    """Return what a model of an int8 ``dtype`` stores of a float32 matrix ``[out, in]``: weights, scales, offsets.

    Args:
        name: the canonical one.
        matrix: beside it only the results and blocks are allocated.
        dtype: the model's, one of ``precision.DTYPES`` with int8 matrices.

    Returns:
        int8 ``[out, in]``, or a view ``[in, out]`` where the dtype has its matrices transposed; the scales float32
        ``[out]``; ``offset`` of the weights.
    """
    weight, scale = quantize(matrix, PRECISIONS[dtype].levels)
    return weight.T if is_transposed(name, dtype) else weight, scale, offset(weight)


def product(
    x: tf.Tensor,
    kernel: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    bias: tf.Tensor | None = None,
    *,
    packed: bool = True,
) -> tf.Tensor:
    """x W^T + b, float32 ``[N, out]``.

    Args:
        x: float32 ``[N, in]``.
        kernel: int8 ``[out, in]``.
        scale: float32 ``[out]``.
        offset: float32 ``[out]``, ``offset(kernel)``.
        bias: float32 ``[out]``.
        packed: whether a graph's kernel keeps a copy of the matrix, in its own order, after the first call.
    """
    if tf.executing_eagerly():  # the op can be made in a graph only
        return tf.function(_product, autograph=False)(x, kernel, scale, offset, bias, False)
    return _product(x, kernel, scale, offset, bias, packed)


def convolve(
    x: tf.Tensor, kernel: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, bias: tf.Tensor | None = None
) -> tf.Tensor:
    """As ``product`` where there is no VNNI, with a kernel ``[in, out]`` of levels up to 64; the graph keeps a copy.

    oneDNN's matrix product sorts the weights anew at every call there, and reads 6 GB/s; a convolution of a row of
    pixels, with ``in`` channels each, is the same sums, and reads as fast as the memory is.
    """
    if tf.executing_eagerly():
        return tf.function(_convolve, autograph=False)(x, kernel, scale, offset, bias)
    return _convolve(x, kernel, scale, offset, bias)


def is_exact() -> tf.Tensor:
    """bool scalar: whether ``product`` is exact with all levels, which takes VNNI instructions."""
    width, outputs = 64, 16
    kernel = tf.fill([outputs, width], tf.constant(_LEVELS, tf.int8))
    offsets = tf.fill([outputs], -float(_ZERO * _LEVELS * width))
    found = product(tf.ones([1, width]), kernel, tf.ones([outputs]), offsets, packed=False)
    return tf.reduce_all(tf.abs(found - float(_LEVELS * width)) < 1.0)


def _unsigned(x: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """quint8, level + 128."""
    # A cast cuts off: what is added is the zero point, and a half for rounding.
    levels = tf.math.divide_no_nan(float(_LEVELS), largest)
    return tf.bitcast(tf.cast(x * levels + (_ZERO + 0.5), tf.uint8), tf.quint8)


def _convolve(
    x: tf.Tensor, kernel: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, bias: tf.Tensor | None
) -> tf.Tensor:
    width, outputs = kernel.shape
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    inputs = [
        tf.reshape(_unsigned(x, largest), [1, 1, -1, width]),
        tf.reshape(tf.bitcast(kernel, tf.qint8), [1, 1, width, outputs]),
        offset,
        *(tf.constant(float(bound)) for bound in (0, 255, -_LEVELS, _LEVELS)),
    ]
    ((summed, *_), _) = apply_op(
        INT8_CONV_OP,
        name="quantized_convolution",
        device_inputs=inputs,
        host_inputs=[],
        Tdevice_outputs=[tf.qint32, tf.float32, tf.float32],
        Thost_outputs=[],
        Tinput=tf.quint8,
        Tfilter=tf.qint8,
        Tbias=tf.float32,
        Tsummand=tf.qint32,
        out_type=tf.qint32,
        data_format="NHWC",
        strides=[1, 1, 1, 1],
        is_filter_const=True,
        is_bias_const=True,
        padding="VALID",
        dilations=[1, 1, 1, 1],
        explicit_paddings=[],
        alpha=0.0,
        fused_ops=["BiasAdd"],
    )
    summed = tf.reshape(tf.bitcast(summed, tf.int32), [-1, outputs])
    result = tf.cast(summed, tf.float32) * scale * (largest * (1.0 / _LEVELS))
    return result if bias is None else result + bias


def _product(
    x: tf.Tensor,
    kernel: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    bias: tf.Tensor | None,
    packed: bool,
) -> tf.Tensor:
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    inputs = [
        _unsigned(x, largest),
        tf.bitcast(kernel, tf.qint8),
        offset,
        *(tf.constant(float(bound)) for bound in (0, 255, -_LEVELS, _LEVELS)),
    ]
    ((summed,), _) = apply_op(
        INT8_MATMUL_OP,
        name="quantized_matmul",
        device_inputs=inputs,
        host_inputs=[],
        Tdevice_outputs=[tf.float32],
        Thost_outputs=[],
        T1=tf.quint8,
        T2=tf.qint8,
        Tbias=tf.float32,
        U=tf.float32,
        Tout=tf.float32,
        transpose_a=False,
        transpose_b=True,
        is_weight_const=packed,
        is_bias_const=True,
        fused_ops=["BiasAdd", "Dequantize"],
        input_quant_mode="SCALED",
        output_quant_mode="SCALED",
        leakyrelu_alpha=0.0,
    )
    summed.set_shape([None, kernel.shape[0]])  # what the op's shape function does not tell
    result = summed * scale * (largest * (1.0 / _LEVELS))
    return result if bias is None else result + bias
