"""A model that no file holds, and what it takes to write it in any format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.checkpoint import CheckpointInfo
from convert.conversion import find_writer
from tf_model.config import GPT2Config

REQUIRED = {"tensor_parallel": 2}
"""A value for every option that a writer requires."""


class InMemory:
    """A ``Checkpoint`` in memory, such as one after a training: float32 weights, random where none are given."""

    tokens, tokenizer, info = None, None, CheckpointInfo("training")

    def __init__(self, config: GPT2Config, weights: Mapping[str, Any] | None = None) -> None:
        rng = np.random.default_rng(0)
        self.config = config
        drawn = {n: rng.normal(size=s).astype(np.float32) for n, s in config.tensor_shapes().items()}
        self.weights = {**drawn, **(weights or {})}
        self.dtypes = {name: value.dtype for name, value in self.weights.items()}

    def read(self, name: str, dtype: np.dtype[Any], buffer: Any = None) -> np.ndarray[Any, Any]:
        return self.weights[name].astype(dtype)


def required_options(format: str) -> dict[str, Any]:
    """Return the options that have to be given to the writer of ``format``."""
    return {option.name: REQUIRED[option.name] for option in find_writer(format).options if option.required}
