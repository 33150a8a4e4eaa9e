"""Running it: processes of one group side by side, each stopped while another one trains, steps in turn."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.process import EngineError, Process, Standstills
from benchmarks.training.plan import TRAINERS, Group

_STARTS = 3
"""Processes of each trainer that are started, in turn: the last ones stay."""
_WARM = 2
"""Steps before those that count; the first is part of the start."""


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of one step by the clock, and of all threads together; ``number`` is the round."""

    trainer: str
    number: int
    seconds: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Start:
    """Seconds from the start of a process to the end of its first step, and those of Python's tracing in them."""

    trainer: str
    number: int
    seconds: float
    tracing: float


@dataclasses.dataclass
class Result:
    """What was measured of a group. Dicts are by the trainer's name.

    Attributes:
        peaks: bytes that were resident at most.
        left_out: reasons.
        load: average of the machine when it began and when it ended.
        standstills: how often the machine stood still during a measurement, which was made again.
    """

    name: str
    group: Group
    steps: list[Step] = dataclasses.field(default_factory=list)
    starts: list[Start] = dataclasses.field(default_factory=list)
    peaks: dict[str, int] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    load: tuple[float, float] = (0.0, 0.0)
    standstills: int = 0

    def rounds(self, trainer: str, measure: str) -> dict[int, float]:
        """The values of each round: of a field of ``Step``, ``start``, ``tracing``, or ``before``.

        ``before`` is what the start takes more than a usual step does: what is waited for before the first one.
        """
        if measure in ("start", "tracing"):
            field = {"start": "seconds", "tracing": "tracing"}[measure]
            return {start.number: getattr(start, field) for start in self.starts if start.trainer == trainer}
        if measure == "before":
            steps = self.rounds(trainer, "seconds").values()
            usual = statistics.median(steps) if steps else 0.0
            return {number: seconds - usual for number, seconds in self.rounds(trainer, "start").items()}
        return {step.number: getattr(step, measure) for step in self.steps if step.trainer == trainer}

    def ratios(self, trainer: str, measure: str) -> list[float]:
        """Those to the first of the group, one for each round that both have."""
        mine, first = self.rounds(trainer, measure), self.rounds(self.group.members[0], measure)
        return [mine[number] / first[number] for number in sorted(mine.keys() & first.keys())]


class Run:
    """The measurements of a group.

    Args:
        name: of the group.
        group: who trains what.
        threads: of each process.
        repeat: rounds.
    """

    def __init__(self, name: str, group: Group, threads: int, repeat: int) -> None:
        self.result = Result(name, group)
        self._threads, self._repeat = threads, repeat
        self._living: dict[str, Process] = {}
        self._standstills = Standstills()

    def run(self) -> Result:
        """Starts the processes and has them train."""
        members = self.result.group.members
        starts = min(_STARTS, self._repeat)
        try:
            for number in range(starts):
                for member in _turn(members, number):
                    self._try(member, lambda: self._start(member, number))  # noqa: B023
            for _ in range(_WARM):
                for member in members:
                    self._try(member, lambda: self._living[member].call("step"))  # noqa: B023
            for number in range(self._repeat):
                for member in _turn(members, number):
                    self._try(member, lambda: self._step(member, number))  # noqa: B023
                self._say(f"round {number + 1} of {self._repeat}")
        finally:
            for process in self._living.values():
                process.close()
        return self.result

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.result.name}: {text}", file=sys.stderr, flush=True)

    def _try(self, member: str, action: Callable[[], object]) -> None:
        """One trainer's turn: where it fails it is left out, and the others go on."""
        if member in self.result.left_out:
            return
        try:
            action()
        except EngineError as error:
            self._say(f"{member}: left out: {error}")
            self.result.left_out[member] = str(error)
            if member in self._living:
                self._living.pop(member).close()

    def _undisturbed(self, action: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """What ``action`` gives, made again if the machine stood still meanwhile."""
        while True:
            before = self._standstills.count
            answer = action()
            if self._standstills.count == before:
                return answer
            self.result.standstills += 1

    def _start(self, member: str, number: int) -> None:
        def start() -> Mapping[str, Any]:
            if member in self._living:
                self._living.pop(member).close()
            group = self.result.group
            worker = [sys.executable, "-m", "benchmarks.training.worker", member, group.shape]
            started = time.perf_counter()
            process = self._living[member] = Process([*worker, str(group.batch), str(group.length)], self._threads)
            answer = process.call("start", threads=self._threads)
            return {**answer, "seconds": time.perf_counter() - started}

        answer = self._undisturbed(start)
        self.result.starts.append(Start(member, number, answer["seconds"], answer["tracing"]))
        self._say(f"{TRAINERS[member].title}: started in {answer['seconds']:.1f} s")

    def _step(self, member: str, number: int) -> None:
        process = self._living[member]
        answer = self._undisturbed(lambda: process.call("step"))
        self.result.steps.append(Step(member, number, answer["seconds"], answer["cpu"]))
        self.result.peaks[member] = process.memory()[1]


def _turn(members: Sequence[str], number: int) -> list[str]:
    """All of them, another one first in each round."""
    return [*members[number % len(members) :], *members[: number % len(members)]]
