"""A process that trains a model of random weights, a step whenever a line of JSON on stdin tells it to.

python -m benchmarks.training.worker kept distill 4 256
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Protocol

from benchmarks.process import answer_commands
from benchmarks.random_checkpoint import parse_shape
from benchmarks.training.plan import TRAINERS


class Steps(Protocol):
    """A model that is trained.

    Attributes:
        tracing: seconds of the first step in which Python built the graph.
    """

    tracing: float

    def step(self) -> float:
        """An update; the loss."""


class Worker:
    """The commands; each gives what is answered."""

    def __init__(self, name: str, shape: str, batch: int, length: int) -> None:
        self._trainer, self._config, self._size = TRAINERS[name], parse_shape(shape), (batch, length)

    def start(self, threads: int) -> dict[str, Any]:
        """Imports the library, makes a model, trains a step; seconds of all that, and of what is Python's tracing."""
        started, cpu = time.perf_counter(), time.process_time()
        if self._trainer.library == "ours":
            from training.runtime import start_tensorflow

            start_tensorflow()
            from benchmarks.training.ours import OurSteps as Kind
        else:
            from benchmarks.training.torch_steps import TorchSteps as Kind  # type: ignore[assignment]
        self._steps: Steps = Kind(self._trainer, self._config, self._size, threads)
        made = time.perf_counter()
        loss = self._steps.step()
        now = time.perf_counter()
        return {
            "model": made - started, "first": now - made, "tracing": self._steps.tracing,
            "cpu": time.process_time() - cpu, "loss": loss,
        }  # fmt: skip

    def step(self) -> dict[str, Any]:
        """Trains a step; its seconds."""
        started, cpu = time.perf_counter(), time.process_time()
        loss = self._steps.step()
        return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.worker", description=__doc__)
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("shape")
    parser.add_argument("batch", type=int)
    parser.add_argument("length", type=int)
    args = parser.parse_args()
    answer_commands(Worker(args.trainer, args.shape, args.batch, args.length))


if __name__ == "__main__":
    main()
