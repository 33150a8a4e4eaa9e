"""What was measured, as it was measured: the JSON file, and the little arithmetic that the tables share."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.decode.plan import Contender
from tf_model.config import GPT2Config


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measurement.

    Attributes:
        group: in which company; rounds of one group can be compared.
        contender: ``engine/dtype``.
        measure: its name; ``load`` and ``probe`` are measures, too.
        number: the round.
        rest: seconds of ``steps`` tokens after the first; of loading; bytes per second of the probe.
        first: seconds of the prompt and the first token; of reading the files once.
        batch, steps: how many rows, and tokens after the first.
    """

    group: str
    contender: str
    measure: str
    number: int
    rest: float
    first: float
    batch: int
    steps: int

    @property
    def step(self) -> float:
        """Seconds for one token of every row."""
        return self.rest / self.steps


Value = Callable[[Sample], float]


@dataclasses.dataclass
class Model:
    """All about one shape. Dicts are by ``engine/dtype``; sizes are bytes.

    Attributes:
        versions: of packages.
        left_out: reasons.
        peaks_loaded, peaks: most resident memory after loading, after generating at batch 1.
        tokens: the first row's greedy tokens.
        standstills: how often the machine stood still during a measurement, which was made again.
    """

    shape: str
    config: GPT2Config
    samples: list[Sample] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    disk: dict[str, int] = dataclasses.field(default_factory=dict)
    peaks_loaded: dict[str, int] = dataclasses.field(default_factory=dict)
    peaks: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    standstills: int = 0

    def groups(self, contender: Contender, measure: str) -> list[str]:
        """The groups in which it was measured, in their order."""
        found = (s.group for s in self.samples if s.contender == str(contender) and s.measure == measure)
        return list(dict.fromkeys(found))

    def contenders(self) -> list[Contender]:
        """All that were measured."""
        names = dict.fromkeys(s.contender for s in self.samples)
        return [Contender(*name.split("/")) for name in names]

    def rounds(self, group: str, contender: Contender, measure: str, value: Value) -> dict[int, float]:
        """The values of each round."""
        mine = (s for s in self.samples if (s.group, s.contender, s.measure) == (group, str(contender), measure))
        return {s.number: value(s) for s in mine}

    def values(self, contender: Contender, measure: str, value: Value) -> list[float]:
        """All values in the first of its groups."""
        groups = self.groups(contender, measure)
        return list(self.rounds(groups[0], contender, measure, value).values()) if groups else []

    def agreeing(self) -> dict[str, int]:
        """How many greedy tokens are those of our float32, until one is not."""
        if (reference := self.tokens.get("ours/float32")) is None:
            return {}
        found = {}
        for name, tokens in self.tokens.items():
            same = (a == b for a, b in zip(tokens, reference, strict=False))
            found[name] = next((i for i, equal in enumerate(same) if not equal), min(len(tokens), len(reference)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything, for the JSON file."""
        return {
            **dataclasses.asdict(self),
            "config": self.config.to_dict(),
            "parameters": self.config.parameter_count,
            "tokens_as_our_float32": self.agreeing(),
        }


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """``1.2 (1.1-1.3)``"""
        middle, low, high = (f"{value:.{digits}f}" for value in (self.median, self.least, self.most))
        return middle if low == high else f"{middle} ({low}-{high})"
