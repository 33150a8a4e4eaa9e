"""LoRA: small trained matrices next to frozen ones. y = x W^T + s (x A^T) B^T, with s = alpha / r.

Sources: the paper (arXiv 2106.09685, section 4.1); ``tuners/lora/layer.py`` of peft 0.21, whose shapes, names and
beginning these have.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from convert.formats import safetensors_file
from convert.formats.lora_files import SAFETENSORS
from convert.formats.lora_options import CONFIG
from convert.tensors import Array
from support.errors import UserError
from support.files import write_json
from support.messages import short_repr
from tf_model.config import LINEAR_LAYERS
from tf_model.gpt2 import GPT2


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices get an adapter, and of which rank.

    Attributes:
        r: the rank.
        alpha: the adapters are multiplied by alpha / r; 2 r when None.
        targets: of ``LINEAR_LAYERS``, or the ends of their names as peft takes them: ``c_proj`` is two of them.

    Raises:
        UserError: a rank or alpha that is not positive, no target, or one that does not exist.
    """

    r: int
    alpha: float | None = None
    targets: tuple[str, ...] = LINEAR_LAYERS

    def __post_init__(self) -> None:
        if type(self.r) is not int or self.r < 1:
            raise UserError(f"--lora {short_repr(self.r)}: expected a rank, a whole number above 0")
        if self.alpha is None:
            object.__setattr__(self, "alpha", 2 * self.r)
        if not isinstance(self.alpha, (int, float)) or not 0 < self.alpha < float("inf"):
            raise UserError(f"--alpha {short_repr(self.alpha)}: expected a number above 0")
        object.__setattr__(self, "targets", _resolve(self.targets))

    @property
    def scale(self) -> float:
        assert self.alpha is not None
        return self.alpha / self.r


def _resolve(names: Sequence[str]) -> tuple[str, ...]:
    """Return the ``LINEAR_LAYERS`` that ``names`` mean, in the order of the forward pass."""
    meant = {name: [target for target in LINEAR_LAYERS if f".{target}".endswith(f".{name}")] for name in names}
    for name, targets in meant.items():
        if not targets:
            raise UserError(f"--lora-targets {name!r}: expected some of {', '.join(LINEAR_LAYERS)}")
    if not meant:
        raise UserError(f"--lora-targets: none given: expected some of {', '.join(LINEAR_LAYERS)}")
    return tuple(target for target in LINEAR_LAYERS if any(target in targets for targets in meant.values()))


class Adapters(keras.layers.Layer):
    """The adapters of a model: A float32 ``[r, in]``, Kaiming-uniform as peft's, and B ``[out, r]``, zero.

    Args:
        gpt2: all its weights are frozen.
        lora: rank, scale and targets.
        seed: of the matrices A.
    """

    def __init__(self, gpt2: GPT2, lora: LoraConfig, seed: int = 0) -> None:
        super().__init__(name="adapters", dtype="float32", autocast=False)
        gpt2.trainable = False
        self.lora = lora
        self.scale = lora.scale
        shapes = gpt2.config.tensor_shapes()
        self._pairs: dict[tuple[int, str], tuple[keras.Variable, keras.Variable]] = {}
        for block in range(gpt2.config.n_layer):
            for place, target in enumerate(LINEAR_LAYERS):
                if target in lora.targets:
                    out, inputs = shapes[f"h.{block}.{target}.weight"]
                    start = _kaiming_uniform((lora.r, inputs), [seed, block, place])
                    name = f"h_{block}_{target.replace('.', '_')}"
                    a = self.add_weight(name=f"{name}_a", shape=start.shape, initializer=lambda *_, a=start, **__: a)
                    b = self.add_weight(name=f"{name}_b", shape=(out, lora.r), initializer="zeros")
                    self._pairs[block, target] = a, b
        self.built = True

    def pair(self, block: int, target: str) -> tuple[keras.Variable, keras.Variable] | None:
        """Return A ``[r, in]`` and B ``[out, r]`` of a matrix; None where it has no adapter."""
        return self._pairs.get((block, target))

    def of_tensor(self, name: str) -> tuple[keras.Variable, keras.Variable] | None:
        """Return the pair of the tensor with a canonical name; None where it has no adapter."""
        match = re.fullmatch(r"h\.(\d+)\.(.+)\.weight", name)
        return None if match is None else self.pair(int(match[1]), match[2])

    def write(self, folder: Path, base: str | None = None) -> list[Path]:
        """Write the adapters into ``folder``, which exists, as peft's ``save_pretrained`` does; return the files.

        Args:
            folder: gets ``adapter_config.json`` and ``adapter_model.safetensors``.
            base: where peft finds the model, for ``base_model_name_or_path``.

        Raises:
            OSError: they cannot be written.
        """
        values = {
            f"base_model.model.transformer.h.{block}.{target}.lora_{letter}.weight": variable
            for (block, target), pair in self._pairs.items()
            for letter, variable in zip("AB", pair, strict=True)
        }
        files = [folder / CONFIG, folder / SAFETENSORS]
        write_json(files[0], self._options(base))
        header = {name: (tuple(variable.shape), np.dtype(np.float32)) for name, variable in values.items()}
        with safetensors_file.writing(files[1], header) as writer:
            for variable in values.values():
                writer.write(variable.numpy())
        return files

    def _options(self, base: str | None) -> dict[str, Any]:
        """Return peft's configuration; ``fan_in_fan_out`` because transformers' ``Conv1D`` is ``[in, out]``."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.lora.r,
            "lora_alpha": self.lora.alpha,
            "target_modules": list(self.lora.targets),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": True,
            "init_lora_weights": True,
            "inference_mode": True,
        }


def _kaiming_uniform(shape: tuple[int, int], seed: Sequence[int]) -> Array:
    """Draw float32 as ``kaiming_uniform_(a=sqrt(5))`` of PyTorch, which peft calls: up to 1 / sqrt(in) either way."""
    bound = shape[1] ** -0.5
    return np.random.default_rng(seed).uniform(-bound, bound, shape).astype(np.float32)
