"""A process with one engine, which does what lines of JSON on stdin tell it and answers in lines of JSON.

The coordinator keeps several of these, stopped by a signal while another one is measured. An answer has ``error`` where
something went wrong. Needs nothing but what the engine needs, and NumPy: it may run in another Python.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode.engines import ENGINES, Engine, create
from benchmarks.decode.weights import Weights
from benchmarks.process import answer_commands

_BLOCK = 1 << 24


def prompts(batch: int, length: int, vocabulary: int, ragged: bool = False) -> list[list[int]]:
    """Rows of tokens that all engines get; ``ragged`` ones have a quarter of ``length`` to all of it."""
    random = np.random.default_rng(17)
    rows = random.integers(0, vocabulary, (batch, length)).tolist()
    lengths = np.linspace(max(1, length // 4), length, batch).astype(int) if ragged else [length] * batch
    return [row[:size] for row, size in zip(rows, lengths, strict=True)]


def read_files(folder: Path) -> float:
    """Seconds for all bytes in ``folder``, which are in the page cache as far as they fit."""
    buffer = bytearray(_BLOCK)
    started = time.perf_counter()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    return time.perf_counter() - started


class Worker:
    """The commands; each gives what is answered."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._vocabulary = 0

    def prepare(self, weights: str, folder: str) -> dict[str, Any]:
        """Writes the engine's own files into the new folder ``folder``."""
        Path(folder).mkdir(parents=True)
        self._engine.prepare(Weights(Path(weights)), Path(folder))
        return {}

    def load(self, weights: str, folder: str, threads: int, several: bool) -> dict[str, Any]:
        """Loads those files; seconds of that, and of reading them once. Importing the library is not counted."""
        config = Weights(Path(weights)).config
        self._vocabulary = config.vocab_size
        self._engine.start(threads)
        read_files(Path(folder))
        read = read_files(Path(folder))
        started = time.perf_counter()
        self._engine.several = several
        self._engine.load(Path(folder), config)
        return {"read": read, "load": time.perf_counter() - started}

    def decode(self, batch: int, prompt: int, steps: int, ragged: bool = False, deep: bool = False) -> dict[str, Any]:
        """Seconds of the prompt and the first token, and of ``steps`` more; and the first row's tokens."""
        rows = prompts(batch, prompt, self._vocabulary, ragged)
        first, rest, tokens = (self._engine.deep if deep else self._engine.decode)(rows, steps)
        return {"first": first, "rest": rest, "tokens": [int(token) for token in tokens]}

    def probe(self) -> dict[str, Any]:
        """Bytes per second that this machine reads."""
        return {"rate": self._engine.rate()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode.worker", description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("dtype")
    parser.add_argument("--version", action="store_true", help="print the versions of its packages, or fail")
    args = parser.parse_args()
    if args.version:
        packages = ENGINES[args.engine].packages
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            raise SystemExit(f"{' and '.join(missing)} cannot be imported")
        print(json.dumps({name: importlib.metadata.version(packages[name]) for name in packages}))
        return
    answer_commands(Worker(create(args.engine, args.dtype)))


if __name__ == "__main__":
    main()
