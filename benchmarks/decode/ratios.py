"""The ratios that this project wants to reach, each made of pairs of measurements of the same round."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from benchmarks.decode.plan import INT8, LLAMA, OPENVINO, PROBE, Contender
from benchmarks.decode.results import Model, Sample, Spread, Value
from benchmarks.random_checkpoint import SHAPES

_FLOAT, _BFLOAT = Contender("ours", "float32"), Contender("ours", "bfloat16")
_LLAMA_FLOAT, _LLAMA_BFLOAT = Contender("llama.cpp", "F32"), Contender("llama.cpp", "BF16")
_CTRANSLATE2, _DESIGN = Contender("ctranslate2", "int8"), Contender("cpm-lm-tf2", "float32")
_FOUR_BITS = Contender("llama.cpp", "Q4_0")

Found = tuple[list[float], str]
"""Ratios, one per round, and what was compared with."""
Compute = Callable[[Model], Found]


def _step(sample: Sample) -> float:
    return sample.step


def _first(sample: Sample) -> float:
    return sample.first


def _rest(sample: Sample) -> float:
    return sample.rest


def pairs(model: Model, ours: tuple[Contender, str, Value], other: tuple[Contender, str, Value]) -> list[float]:
    """Ours by the other's, for each round of the first group that has both."""
    for group in model.groups(*ours[:2]):
        a, b = model.rounds(group, *ours), model.rounds(group, *other)
        if rounds := sorted(a.keys() & b.keys()):
            return [a[number] / b[number] for number in rounds]
    return []


def against(ours: Contender, others: Sequence[Contender], measure: str, value: Value = _step) -> Compute:
    """Our time by that of the fastest of ``others``: the one over which our ratio is largest."""

    def compute(model: Model) -> Found:
        found = [(pairs(model, (ours, measure, value), (other, measure, value)), other.title) for other in others]
        return max((one for one in found if one[0]), key=lambda one: statistics.median(one[0]), default=([], ""))

    return compute


def best_peer(measure: str, value: Value = _step) -> Compute:
    """Our int8 against all peers; four bits are another model."""

    def compute(model: Model) -> Found:
        peers = [c for c in model.contenders() if c.is_peer and c != _FOUR_BITS]
        return against(INT8, peers, measure, value)(model)

    return compute


def throughput(compute: Compute) -> Compute:
    """Tokens per second instead of seconds."""

    def inverse(model: Model) -> Found:
        values, title = compute(model)
        return [1 / value for value in values], title

    return inverse


def _itself(measure: str, value: Value, other: str, other_value: Value) -> Compute:
    return lambda model: (pairs(model, (INT8, measure, value), (INT8, other, other_value)), "")


def _reading(model: Model) -> Found:
    size = INT8.weight_bytes(model.config)
    found = pairs(model, (INT8, "batch 1", _step), (PROBE, "probe", lambda s: size / s.rest))
    return found, ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """``must`` is what has to be reached, ``aim`` what is wanted; less is better unless ``more``."""

    shape: str
    what: str
    other: str
    must: float
    aim: float
    compute: Compute
    more: bool = False


_LARGE, _SMALL = "generate", "distill"
RULES = (
    Rule(_LARGE, "int8, ms per token", "the faster of llama.cpp Q8_0 and OpenVINO int8", 1.1, 0.9,
         against(INT8, (LLAMA, OPENVINO), "batch 1")),
    Rule(_LARGE, "int8, ms per token", "CTranslate2 int8", 0.5, 0.4, against(INT8, (_CTRANSLATE2,), "batch 1")),
    Rule(_LARGE, "int8, ms per token", "reading its weights once", 1.3, 1.1, _reading),
    Rule(_LARGE, "float32, ms per token", "llama.cpp F32", 1.15, 0.95, against(_FLOAT, (_LLAMA_FLOAT,), "batch 1")),
    Rule(_LARGE, "bfloat16, ms per token", "llama.cpp BF16", 1.25, 0.95, against(_BFLOAT, (_LLAMA_BFLOAT,), "batch 1")),
    Rule(_LARGE, "int8, ms per token", "CPM-LM-TF2's design, float32", 0.3, 0.25, against(INT8, (_DESIGN,), "batch 1")),
    Rule(_LARGE, "int8, tokens/s, 8 rows", "the best peer", 1.2, 2.0, throughput(best_peer("batch 8")), more=True),
    Rule(_LARGE, "int8, a step of 8 rows", "a step of one", 1.7, 1.7, _itself("batch 8", _step, "batch 1", _step)),
    Rule(_LARGE, "int8, prompt of 512", "the best peer", 1.0, 0.8, best_peer("prefill 512", _first)),
    Rule(_LARGE, "int8, beside a busy process", "llama.cpp Q8_0, likewise", 0.5, 0.2, against(INT8, (LLAMA,), "busy")),
    Rule(_LARGE, "int8, at 900 tokens", "at 100", 1.4, 1.2, _itself("at 900", _step, "at 100", _step)),
    Rule(_LARGE, "int8, loading", "reading its files once", 2.0, 1.3, _itself("load", _rest, "load", _first)),
    Rule(_SMALL, "int8, ms per token", "llama.cpp Q8_0", 1.6, 1.0, against(INT8, (LLAMA,), "batch 1")),
    Rule(_SMALL, "float32, ms per token", "llama.cpp F32", 1.2, 0.95, against(_FLOAT, (_LLAMA_FLOAT,), "batch 1")),
    Rule(_SMALL, "float32, ms per token", "CPM-LM-TF2's design", 0.5, 0.4, against(_FLOAT, (_DESIGN,), "batch 1")),
    Rule(_SMALL, "int8, tokens/s, 8 rows", "the best peer", 1.2, 2.0, throughput(best_peer("batch 8")), more=True),
    Rule(_SMALL, "int8, at 900 tokens", "at 100", 1.4, 1.2, _itself("at 900", _step, "at 100", _step)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A rule and what was found; ``spread`` is None where something was not measured."""

    shape: str
    rule: Rule
    other: str
    spread: Spread | None

    @property
    def reached(self) -> str:
        """``aim``, ``must``, ``no``, or ``-`` where it was not measured."""
        if self.spread is None:
            return "-"
        for name, bound in (("aim", self.rule.aim), ("must", self.rule.must)):
            if (self.spread.median >= bound) if self.rule.more else (self.spread.median <= bound):
                return name
        return "no"


def ratios(models: Sequence[Model]) -> list[Ratio]:
    """All rules for the shapes that were measured; for a shape without a name, all that can be."""
    found = []
    for model in models:
        named = model.shape in SHAPES
        for rule in RULES:
            if named and rule.shape != model.shape:
                continue
            values, title = rule.compute(model)
            if not values and not named:
                continue
            other = f"{rule.other}: {title}" if title and "best" in rule.other else rule.other
            found.append(Ratio(model.shape, rule, other, Spread.of(values) if values else None))
    return found
