"""A model in training as a checkpoint, which every writer of ``convert`` takes."""

from __future__ import annotations

import dataclasses

import numpy as np

from convert.checkpoint import TRAINED, Checkpoint, CheckpointAdapter
from convert.tensors import Array, DType, assign, check_finite, empty, row_blocks, widest
from tf_model.gpt2 import GPT2
from training.model.lora import Adapters
from training.model.weights import FLOAT32


class TrainedCheckpoint(CheckpointAdapter):
    """The trained weights of ``gpt2``, W + s B A where a matrix has an adapter, and the base's weights elsewhere.

    Every tensor is float32, or wider where the base's is: what was trained is not rounded because the base once was.

    Args:
        checkpoint: the base, which ``gpt2`` was read from: its full precision, whatever is in memory.
        gpt2: the model; its trainable variables are read when asked for.
        adapters: those of its matrices, if there are any.
    """

    def __init__(self, checkpoint: Checkpoint, gpt2: GPT2, adapters: Adapters | None = None) -> None:
        self._variables = {name: variable for name, variable in gpt2.named_variables().items() if variable.trainable}
        self._adapters = adapters
        info = checkpoint.info
        # Without a source: nothing can open this model again from the files.
        changed = dataclasses.replace(
            info, source=None, is_changed=True, details={**info.details, TRAINED: self._trained(checkpoint)}
        )
        super().__init__(checkpoint, info=changed)
        self.dtypes = {name: widest((dtype, FLOAT32)) for name, dtype in checkpoint.dtypes.items()}

    def _trained(self, checkpoint: Checkpoint) -> str:
        """Say what was trained."""
        if self._adapters is not None:
            return f"LoRA adapters of rank {self._adapters.lora.r}"
        count, total = len(self._variables), len(checkpoint.config.tensor_shapes())
        return "all weights" if count == total else f"{count} of {total} tensors"

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """Read a tensor as ``Checkpoint.read``."""
        pair = None if self._adapters is None else self._adapters.of_tensor(name)
        if pair is not None:
            assert self._adapters is not None
            values = self._checkpoint.read(name, FLOAT32, buffer if dtype == FLOAT32 else None)
            a, b = (variable.numpy() for variable in pair)
            _add_product(values, a, b, self._adapters.scale)
        elif name in self._variables:
            values = self._variables[name].numpy()
        else:
            return self._checkpoint.read(name, dtype, buffer)
        out = values
        if pair is None or dtype != FLOAT32:
            out = empty(values.shape, dtype, buffer)
            assign(out, values)
        check_finite(name, out, self.info.where, [("the trained model", values)])
        return out


def _add_product(values: Array, a: Array, b: Array, scale: float) -> None:
    """Add ``scale * B A`` to float32 ``[out, in]``, some rows at a time."""
    for start, block in row_blocks(values):
        block += (b[start : start + len(block)] @ a) * np.float32(scale)
