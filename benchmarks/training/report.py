"""The tables in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from benchmarks.decode.results import Spread
from benchmarks.markdown import machine, table
from benchmarks.random_checkpoint import parse_shape
from benchmarks.training.plan import GOALS, TRAINERS, Goal
from benchmarks.training.run import Result

_HEAD = (
    "", "s a step", "fastest", "tokens/s", "time", "CPU-s", "CPU time", "peak memory", "memory", "start",
    "before the first step", "before", "tracing",
)  # fmt: skip


def markers(name: str) -> tuple[str, str]:
    """Around the tables of one group in a document."""
    return f"<!-- training {name}:begin -->", f"<!-- training {name}:end -->"


def _spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    return Spread.of(values).text(digits) + unit if values else "-"


def _memory_ratio(result: Result, trainer: str) -> list[float]:
    first = result.group.members[0]
    peaks = result.peaks
    return [peaks[trainer] / peaks[first]] if trainer in peaks and first in peaks else []


def _row(result: Result, trainer: str) -> tuple[str, ...]:
    seconds, cpu = (list(result.rounds(trainer, measure).values()) for measure in ("seconds", "cpu"))
    tokens = result.group.batch * result.group.length
    peak = result.peaks.get(trainer)
    starts, before, tracing = (
        list(result.rounds(trainer, measure).values()) for measure in ("start", "before", "tracing")
    )
    return (
        TRAINERS[trainer].title,
        _spread(seconds, 2),
        f"{min(seconds):.2f}" if seconds else "-",
        f"{tokens / Spread.of(seconds).median:.0f}" if seconds else "-",
        _spread(result.ratios(trainer, "seconds"), 2),
        _spread(cpu, 2),
        _spread(result.ratios(trainer, "cpu"), 2),
        f"{peak / 1e9:.2f} GB" if peak else "-",
        _spread(_memory_ratio(result, trainer), 2),
        _spread(starts, 1, " s"),
        _spread(before, 1, " s"),
        _spread(result.ratios(trainer, "before"), 2),
        _spread(tracing, 1, " s") if any(tracing) else "-",
    )


def measured(result: Result, goal: Goal) -> list[float]:
    """What a goal is about, one value for each round."""
    if goal.measure == "gigabytes":
        return [result.peaks[goal.trainer] / 1e9] if goal.trainer in result.peaks else []
    if goal.measure == "memory":
        return _memory_ratio(result, goal.trainer)
    return result.ratios(goal.trainer, {"time": "seconds", "start": "before"}[goal.measure])


def _goals(result: Result) -> list[str]:
    first = TRAINERS[result.group.members[0]].title
    rows = [("what", "against", "must", "aim", "measured", "reached")]
    for goal in (goal for goal in GOALS if goal.group == result.name and goal.trainer in result.group.members):
        values = measured(result, goal)
        middle = Spread.of(values).median if values else float("inf")
        reached = "aim" if middle <= goal.aim else "must" if middle <= goal.must else "no"
        against, unit = ("-", " GB") if goal.measure == "gigabytes" else (first, "")
        what = f"{TRAINERS[goal.trainer].title}: {'memory' if unit else goal.measure}"
        bounds = f"≤ {goal.must:g}{unit}", f"≤ {goal.aim:g}{unit}"
        rows.append((what, against, *bounds, _spread(values, 2, unit), reached if values else "not measured"))
    return table(rows) if len(rows) > 1 else []


def text(result: Result, command: str, threads: int) -> str:
    """Everything that goes between the markers of a group."""
    group = result.group
    rounds = max((step.number + 1 for step in result.steps), default=0)
    size = f"{parse_shape(group.shape).parameter_count / 1e6:,.0f} M"
    rows = f"{group.batch} row{'s' if group.batch > 1 else ''} of {group.length} tokens"
    lines = [f"**{group.shape}, {size}, {rows} a step**", ""]
    lines += table([_HEAD, *(_row(result, trainer) for trainer in group.members if trainer not in result.left_out)])
    for trainer, reason in result.left_out.items():
        lines += ["", f"Left out: {TRAINERS[trainer].title}: {reason}."]
    if goals := _goals(result):
        lines += ["", *goals]
    before, after = result.load
    conditions = (
        f"{machine()}; load average when it began: {before:.1f}, when it ended: {after:.1f}. {threads} threads each; "
        f"medians (least and most) of {rounds} rounds, in each of which all take turns, each in a process of its own "
        "that is stopped while others run. Each ratio is to the first line: the median (least and most) of those of "
        "single rounds. A step is forward, backward, clipping, AdamW; dropout 0.1 on embeddings and residuals, none on "
        "attention; random weights, rows without padding. Memory: peak of the process. Start: from the start of the "
        "process, with random weights made, to the end of its first step; before the first step: that less a usual "
        f"step; tracing: Python's part of making the graph. `{command}`."
    )
    return "\n".join([*lines, "", textwrap.fill(conditions, 120, break_on_hyphens=False, break_long_words=False)])
