"""A checkpoint's weights in a Keras model, and which of them are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from convert.checkpoint import Checkpoint
from convert.tensors import BFLOAT16, Array, DType
from support.progress import Progress, no_progress
from tf_model import quantization
from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2
from tf_model.precision import OFFSET, SCALE
from training.model.freezing import frozen_tensors
from training.model.new_model import NewModel

FLOAT32: DType = np.dtype(np.float32)
_ALIGNMENT = 64
"""Bytes: where TensorFlow's own tensors begin, which its kernels may rely on."""


def load_gpt2(checkpoint: Checkpoint, dtype: str = "float32", progress: Progress = no_progress) -> GPT2:
    """Read a checkpoint into a Keras model. Memory: the weights in their type, and one tensor.

    Args:
        checkpoint: of any types; one that was int8 has been multiplied with its scales by its reader.
        dtype: ``float32``, ``bfloat16`` or ``int8``. Other weights than float32 are frozen: an update of a common
            size is rounded to nothing there.
        progress: called with the bytes that have been read, as the stage ``load``.

    Raises:
        CheckpointError: the weights are damaged, or ``dtype`` cannot hold them.
    """
    gpt2 = GPT2(checkpoint.config, dtype=dtype, initialize=False)
    variables = gpt2.canonical_variables()
    matrices = [name for name in variables if name + SCALE in variables]
    shapes = checkpoint.config.tensor_shapes()
    total, done = sum(math.prod(shape) * checkpoint.dtypes[name].itemsize for name, shape in shapes.items()), 0
    progress("load", done, total)
    for name, shape in shapes.items():
        if name in matrices:
            stored = quantization.stored(name, checkpoint.read(name, FLOAT32), dtype)
            for suffix, value in zip(("", SCALE, OFFSET), stored, strict=True):
                assign_without_copy(variables[name + suffix], value)
        else:
            kind = BFLOAT16 if variables[name].dtype.name == "bfloat16" else FLOAT32
            assign_without_copy(
                variables[name], checkpoint.read(name, kind, _aligned(math.prod(shape) * kind.itemsize))
            )
        done += math.prod(shape) * checkpoint.dtypes[name].itemsize
        progress("load", done, total)
    gpt2.trainable = dtype == "float32"
    return gpt2


def new_gpt2(config: GPT2Config, seed: int) -> GPT2:
    """Return a model as it is before a training: GPT-2's random weights, the same for the same seed."""
    return load_gpt2(NewModel(config, seed))


def freeze(gpt2: GPT2, names: Sequence[str]) -> None:
    """Train the weights of ``gpt2`` but for those in ``names``.

    Args:
        gpt2: its variables' ``trainable`` is set.
        names: as ``frozen_tensors`` has them.

    Raises:
        UserError: a name means nothing, or blocks that the model lacks.
    """
    frozen = frozen_tensors(gpt2.config, names)
    for name, variable in gpt2.named_variables().items():
        if name in frozen:
            variable.trainable = False


def assign_without_copy(variable: tf.Variable, value: Array) -> None:
    """Assign ``value``, which nobody may change afterwards, to a variable without a copy.

    ``assign`` of an array makes two copies of it before one of them is let go (TensorFlow 2.21). A first update in
    place copies the memory, which is NumPy's.
    """
    if value.ctypes.data % _ALIGNMENT or not value.flags.c_contiguous:
        memory = _aligned(value.nbytes).view(value.dtype).reshape(value.shape)
        memory[...] = value
        value = memory
    is_bfloat16 = value.dtype == BFLOAT16
    tensor = tf.experimental.dlpack.from_dlpack((value.view(np.uint16) if is_bfloat16 else value).__dlpack__())
    variable.assign(tf.bitcast(tensor, tf.bfloat16) if is_bfloat16 else tensor)


def _aligned(nbytes: int) -> Array:
    """Return uint8 memory that TensorFlow can take over as it is."""
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]
