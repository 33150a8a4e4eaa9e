"""How fast memory is read: the best of a few sums over an array; a lower estimate, some engines read faster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.decode.weights import Weights
from tf_model.config import GPT2Config

_ROUNDS = 3


class Adapter:
    """Prepares and loads as an engine does, but generates nothing."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.several = False

    def prepare(self, weights: Weights, folder: Path) -> None:
        pass

    def start(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)

    def load(self, folder: Path, config: GPT2Config) -> None:
        import torch

        # Far more than any cache holds.
        size = min(1 << 30, max(1 << 28, config.parameter_count))
        self._values: Any = torch.ones(size // 4, dtype=torch.float32)

    def rate(self) -> float:
        import torch

        best = 0.0
        whole = self._values.view(torch.int64)
        for _ in range(_ROUNDS):
            for read in (self._values.sum, self._values.amax, whole.sum, lambda: self._values.dot(self._values)):
                started = time.perf_counter()
                read()
                best = max(best, self._values.nbytes / (time.perf_counter() - started))
        return best
