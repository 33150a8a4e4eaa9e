"""The engines that are measured: what they are called, what they need, and where their code is.

This module is imported by the coordinator and by every worker, so it imports no library.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.decode.weights import Weights
from tf_model.config import GPT2Config

Rows = list[list[int]]
Timed = tuple[float, float, list[int]]
"""Seconds of reading the prompts and choosing a token for each; those of all further steps; the first row's tokens."""


class Engine(Protocol):
    """One library with one type of weights; greedy, no end of text.

    Attributes:
        several: whether it will be asked for several rows at once; set before ``load``.
    """

    several: bool

    def prepare(self, weights: Weights, folder: Path) -> None:
        """Writes the library's own files into ``folder``; at 2.6 billion parameters most must go tensor by tensor."""

    def start(self, threads: int) -> None:
        """Imports the library."""

    def load(self, folder: Path, config: GPT2Config) -> None:
        """Loads the files, ready for ``decode``."""

    def decode(self, rows: Rows, steps: int) -> Timed:
        """One token for each row, then ``steps`` more."""

    def deep(self, rows: Rows, steps: int) -> Timed:
        """As ``decode``, for prompts so long that the prompt should not be read for every measurement."""

    def rate(self) -> float:
        """Bytes per second; only of the probe."""


class Base(abc.ABC):
    """What all engines have in common but the probe."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.several = False

    def deep(self, rows: Rows, steps: int) -> Timed:
        return self.decode(rows, steps)

    @abc.abstractmethod
    def decode(self, rows: Rows, steps: int) -> Timed:
        """See ``Engine``."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """Attributes:

    title: what the tables call it.
    module: where its class ``Adapter`` is, within this package.
    packages: what it imports -> what that is called where packages come from.
    dtypes: the types of its weights, to bytes per weight in a matrix.
    memory: bytes that a loaded model takes for one byte of weights, about; measured, too, once it is loaded.
    peer: it may live in the other Python.
    """

    title: str
    module: str
    packages: Mapping[str, str]
    dtypes: Mapping[str, float]
    memory: float = 1.05
    peer: bool = False


_TENSORFLOW = {"tensorflow": "tensorflow"}
ENGINES: Mapping[str, Kind] = {
    "ours": Kind(
        "this project",
        "ours",
        _TENSORFLOW,
        {"int8": 1, "int8-avx2": 1, "bfloat16": 2, "float32": 4, "float16": 2},
        memory=1.15,
    ),
    "cpm-lm-tf2": Kind("CPM-LM-TF2's design", "cpm_lm_tf2", _TENSORFLOW, {"float32": 4}),
    "transformers": Kind(
        "transformers", "torch_transformers", {"transformers": "transformers", "torch": "torch"},
        {"bfloat16": 2, "float32": 4},
    ),
    "ctranslate2": Kind(
        "CTranslate2", "ctranslate_2", {"ctranslate2": "ctranslate2"}, {"int8": 1, "float32": 4}, peer=True
    ),
    "llama.cpp": Kind(
        "llama.cpp", "llama", {"llama_cpp": "llama-cpp-python", "gguf": "gguf"},
        {"Q8_0": 34 / 32, "Q4_0": 18 / 32, "BF16": 2, "F32": 4}, peer=True,
    ),
    "openvino": Kind("OpenVINO", "open_vino", {"openvino": "openvino"}, {"int8": 1}, memory=2.05, peer=True),
    "probe": Kind("reading memory", "probe", {"torch": "torch"}, {"float32": 4}, memory=0),
}  # fmt: skip


def create(name: str, dtype: str) -> Any:
    """The engine ``name`` for weights of type ``dtype``."""
    return importlib.import_module(f"benchmarks.decode.engines.{ENGINES[name].module}").Adapter(dtype)
