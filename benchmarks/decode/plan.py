"""What is measured with what, in which company. No library is imported here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.decode.engines import ENGINES
from convert.dtype_choice import RULES, cpu_flags
from tf_model.config import GPT2Config

LARGE = 1_000_000_000
"""Parameters above which there are fewer steps, and not all engines are asked for everything."""
_OWN = {"ours": 700_000_000, "cpm-lm-tf2": 700_000_000, "transformers": 500_000_000, "probe": 1_300_000_000}
_SMALL = 150_000_000
_COPIED = 1.3
"""Copies of the weights that our int8 with VNNI makes beside them, for the two signatures that are called."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """An engine with one type of weights."""

    engine: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.engine}/{self.dtype}"

    @property
    def title(self) -> str:
        return f"{ENGINES[self.engine].title} {self.dtype}"

    @property
    def is_peer(self) -> bool:
        """An engine that others made, which a ratio may name."""
        return self.engine not in ("ours", "cpm-lm-tf2", "probe")

    def weight_bytes(self, config: GPT2Config) -> float:
        """Of all matrices that are read for one token: those of the blocks and the output matrix."""
        matrices = [
            shape[0] * shape[1]
            for name, shape in config.tensor_shapes().items()
            if len(shape) == 2 and name != "wpe.weight"
        ]
        return ENGINES[self.engine].dtypes[self.dtype] * sum(matrices)

    def memory(self, config: GPT2Config) -> float:
        """Bytes that it takes, about."""
        copies = ENGINES[self.engine].memory + (_COPIED if (self.engine, self.dtype) == ("ours", "int8") else 0)
        return _OWN.get(self.engine, _SMALL) + copies * self.weight_bytes(config)


PROBE = Contender("probe", "float32")
_FLAGS = cpu_flags() or ()
INT8 = Contender(
    "ours",
    next((r.dtype for r in RULES if r.dtype.startswith("int8") and any(flag in _FLAGS for flag in r.flags)), "int8"),
)
"""The one that is made for the machine at hand."""
LLAMA = Contender("llama.cpp", "Q8_0")
OPENVINO = Contender("openvino", "int8")
_GROUPS = {
    "int8": ("int8", "int8-avx2", "Q8_0"),
    "bfloat16": ("bfloat16", "float16", "BF16"),
    "float32": ("float32", "F32"),
    "int4": ("Q4_0",),
}
GROUPS = tuple(_GROUPS)
ALL = "all"
"""The group of everything, where everything fits into memory."""


def group_of(contender: Contender) -> str:
    return next(name for name, dtypes in _GROUPS.items() if contender.dtype in dtypes)


def contenders(engines: Sequence[str], dtypes: Sequence[str], only: Sequence[str]) -> list[Contender]:
    """Those of the chosen engines, ours first; ``dtypes`` are ours, ``only`` the groups."""
    found = [
        Contender(name, dtype)
        for name in ENGINES
        if name in engines and name != "probe"
        for dtype in (dtypes if name == "ours" else ENGINES[name].dtypes)
    ]
    return [contender for contender in found if group_of(contender) in only]


def groups(chosen: Sequence[Contender], config: GPT2Config, memory: float) -> dict[str, list[Contender]]:
    """Who is measured in turn with whom: all, or those of one type and our int8, which others are compared with too."""
    if sum(contender.memory(config) for contender in (*chosen, PROBE)) < memory:
        return {ALL: [*chosen, PROBE]}
    parts = {name: [c for c in chosen if group_of(c) == name] for name in GROUPS}
    extra = [INT8] if INT8 in chosen else []
    return {name: [*dict.fromkeys([*part, *extra]), PROBE] for name, part in parts.items() if part}


@dataclasses.dataclass(frozen=True)
class Measure:
    """``batch`` prompts of ``prompt`` tokens, and ``steps`` tokens after the first; see ``Worker.decode``."""

    name: str
    batch: int
    prompt: int
    steps: int
    ragged: bool = False
    deep: bool = False
    busy: bool = False

    @property
    def is_prefill(self) -> bool:
        return not self.steps


def measures(config: GPT2Config, steps: int) -> list[Measure]:
    """All of them; ``steps`` 0 is what suits the size. A place in the text is in the middle of the steps."""
    steps = steps or (12 if config.parameter_count > LARGE else 48)
    half = steps // 2
    return [
        Measure("batch 1", 1, 32, steps),
        Measure("batch 8", 8, 32, steps),
        Measure("16 ragged", 16, 32, steps, ragged=True),
        Measure("prefill 512", 1, 512, 0),
        Measure("busy", 1, 32, max(1, steps // 4), busy=True),  # one that spins takes a second per token
        Measure("at 100", 1, 100 - half, steps, deep=True),
        Measure("at 900", 1, 900 - half, steps, deep=True),
    ]


def wanted(measure: Measure, contender: Contender, group: str, config: GPT2Config) -> bool:
    """Whether ``contender`` is asked for ``measure``: not where it would take minutes and no ratio needs it."""
    ours = contender.engine == "ours"
    if measure.ragged and not ours:  # some have rows of one length only
        return False
    if measure.busy and not (contender in (INT8, LLAMA, OPENVINO) and group in (ALL, "int8")):  # minutes, with some
        return False
    if config.parameter_count <= LARGE:
        return True
    if measure.deep or measure.ragged:
        return group in (ALL, "int8") and contender in (INT8, LLAMA, OPENVINO)
    return True
