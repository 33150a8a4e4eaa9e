"""A checkpoint with layer norms of the other kind: UER's for the usual ones, and back.

UER divides by the unbiased deviation, everybody else by the biased one, so that (N - 1) / N under the root, taken into
the weight, makes one of the other. What is added against a division by zero differs, too: UER's 1e-6 to the deviation
is 1e-12 to the variance where that is 0, and nothing where it is not small. TencentPretrain's may be another number.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from convert.checkpoint import Checkpoint, CheckpointAdapter
from convert.tensors import Array, DType, assign, check_finite, empty
from support.errors import ConvertError
from tf_model.config import STANDARD, UER, GPT2Config

EPSILONS = {STANDARD: 1e-12, UER: 1e-6}
"""Of a layer norm that was made of one of the other kind."""
PLAIN_EPSILON = 1e-5
"""Of a GPT-2, and what UER's own script gives a copy for Hugging Face."""
_WEIGHT = re.compile(r"(h\.\d+\.ln_[12]|ln_f)\.weight")


class LayerNormAdapter(CheckpointAdapter):
    """A ``Checkpoint`` whose layer norms have another kind; everything else is the one that it is made of."""

    def __init__(self, checkpoint: Checkpoint, config: GPT2Config, factor: float, notes: Sequence[str] = ()) -> None:
        info = dataclasses.replace(checkpoint.info, notes=(*checkpoint.info.notes, *notes))
        super().__init__(checkpoint, config=config, info=info)
        self._factor = factor

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """Read a tensor as ``Checkpoint.read``."""
        if self._factor == 1 or not _WEIGHT.fullmatch(name):
            return self._checkpoint.read(name, dtype, buffer)
        values = self._checkpoint.read(name, np.dtype(np.float64)) * self._factor
        out = empty(values.shape, dtype, buffer)
        assign(out, values)
        check_finite(name, out, self.info.where, [(self.info.where, values)])
        return out


def with_layer_norm(checkpoint: Checkpoint, kind: str, *, copy: bool = False) -> Checkpoint:
    """``checkpoint`` with layer norms of ``kind`` that compute what its own do.

    Args:
        checkpoint: any.
        kind: one of ``tf_model.config.LAYER_NORMS``.
        copy: leaves the weights as they are, as the scripts of UER-py do: their values differ by (N - 1) / N under the
            root then, 0.07 % for a hidden size of 768.

    Raises:
        ConvertError: layer norms of ``kind`` cannot compute that.
    """
    config, file = checkpoint.config, checkpoint.info.where
    if config.layer_norm == kind:
        return checkpoint
    if config.n_embd == 1:
        raise ConvertError(f"{file}: a hidden size of 1: one value has no unbiased deviation, which UER-py divides by")
    notes = []
    if kind == UER and config.layer_norm_epsilon != EPSILONS[STANDARD]:
        if config.layer_norm_epsilon > PLAIN_EPSILON:
            raise ConvertError(
                f"{file}: layer_norm_epsilon is {config.layer_norm_epsilon:g}: UER-py's layer norms have none inside "
                f"the root, and more than {PLAIN_EPSILON:g} is too much to leave out: choose another format"
            )
        notes.append(
            f"{file}: layer_norm_epsilon {config.layer_norm_epsilon:g} becomes UER-py's 1e-6 outside the root: "
            "logits change only where a variance is that small"
        )
    if kind == STANDARD and not copy and config.layer_norm_epsilon > PLAIN_EPSILON:
        raise ConvertError(
            f"{file}: {config.layer_norm_epsilon:g} is added to the deviation (layernorm_eps): the usual layer norms "
            f"cannot compute more than {PLAIN_EPSILON:g} of that: convert it to a SavedModel"
        )
    if kind == STANDARD and copy and config.layer_norm_epsilon != EPSILONS[UER]:
        notes.append(f"{file}: layernorm_eps {config.layer_norm_epsilon:g} becomes {PLAIN_EPSILON:g} inside the root")
    if kind == STANDARD and not copy:
        notes.append(
            f"{file}: layer norms of UER-py's kind: (N - 1) / N under the root is taken into their weights; for a "
            "model that was trained with the usual ones, as most on the Hugging Face hub: --uer-layer-norm standard"
        )
    epsilon = EPSILONS[kind]
    if kind == STANDARD and config.layer_norm_epsilon != EPSILONS[UER]:
        epsilon = config.layer_norm_epsilon**2
    if copy and kind == STANDARD:
        epsilon = PLAIN_EPSILON
    biased = math.sqrt(1 - 1 / config.n_embd)
    factor = 1.0 if copy else biased if kind == STANDARD else 1 / biased
    changed = dataclasses.replace(config, layer_norm=kind, layer_norm_epsilon=epsilon)
    return LayerNormAdapter(checkpoint, changed, factor, notes)


def advice(config: GPT2Config) -> str:
    """Return the end of a message that a format has another epsilon: what helps where the layer norms were UER-py's."""
    if (config.layer_norm, config.layer_norm_epsilon) == (STANDARD, EPSILONS[STANDARD]):
        return "--uer-layer-norm standard copies the layer norms of UER-py as they are"
    return "choose another format"
