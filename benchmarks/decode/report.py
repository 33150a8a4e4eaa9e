"""The tables in Markdown."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence

from benchmarks.decode.plan import PROBE, Contender
from benchmarks.decode.ratios import ratios
from benchmarks.decode.results import Model, Sample, Spread, Value
from benchmarks.markdown import machine, table


def markers(shape: str) -> tuple[str, str]:
    """Around the tables of one shape in a document."""
    return f"<!-- decode {shape}:begin -->", f"<!-- decode {shape}:end -->"


_HEAD = (
    "engine, weights", "ms per token", "weights read", "tokens/s, 8 rows", "tokens/s, 16 ragged rows", "ms at 100",
    "ms at 900", "ms beside a busy process", "prompt of 32", "prompt of 512", "load", "reading the files",
    "memory, loaded", "generating", "disk",
)  # fmt: skip


def _spread(model: Model, contender: Contender, measure: str, value: Value, digits: int, unit: str = "") -> str:
    values = model.values(contender, measure, value)
    return Spread.of(values).text(digits) + unit if values else "-"


def _milliseconds(sample: Sample) -> float:
    return 1e3 * sample.step


def _rate(sample: Sample) -> float:
    return sample.batch / sample.step


def _gigabytes(sizes: dict[str, int], contender: Contender) -> str:
    return f"{sizes[str(contender)] / 1e9:.2f} GB" if str(contender) in sizes else "-"


def _row(model: Model, contender: Contender) -> tuple[str, ...]:
    size = contender.weight_bytes(model.config)
    step = (_milliseconds, 1)
    return (
        contender.title,
        _spread(model, contender, "batch 1", *step),
        _spread(model, contender, "batch 1", lambda s: size / s.step / 1e9, 0, " GB/s"),
        _spread(model, contender, "batch 8", _rate, 0),
        _spread(model, contender, "16 ragged", _rate, 0),
        _spread(model, contender, "at 100", *step),
        _spread(model, contender, "at 900", *step),
        _spread(model, contender, "busy", *step),
        _spread(model, contender, "batch 1", lambda s: s.first, 2, " s"),
        _spread(model, contender, "prefill 512", lambda s: s.first, 2, " s"),
        _spread(model, contender, "load", lambda s: s.rest, 2, " s"),
        _spread(model, contender, "load", lambda s: s.first, 2, " s"),
        _gigabytes(model.peaks_loaded, contender),
        _gigabytes(model.peaks, contender),
        _gigabytes(model.disk, contender),
    )


def engines(model: Model) -> str:
    """All measurements of one shape, and what was left out."""
    there = [contender for contender in model.contenders() if contender != PROBE]
    lines = [f"**{model.shape}, {model.config.parameter_count / 1e6:,.0f} M**", ""]
    lines += table([_HEAD, *(_row(model, contender) for contender in there)])
    notes = []
    if rates := [s.rest for s in model.samples if s.measure == "probe"]:
        spread = Spread.of([rate / 1e9 for rate in rates])
        notes.append(f"Reading memory (sums over an array, the best of a few): {spread.text(0)} GB/s.")
    agreeing = {name: count for name, count in model.agreeing().items() if name.endswith(("/float32", "/F32"))}
    if len(agreeing) > 1:
        most = len(model.tokens["ours/float32"])
        said = ", ".join(f"{name.split('/')[0]} {count}" for name, count in agreeing.items() if name != "ours/float32")
        notes.append(f"Of {most} greedy tokens in float32, as many are this project's until one is not: {said}.")
    if model.standstills:
        notes.append(f"Measured again, because the whole machine stood still meanwhile: {model.standstills}.")
    notes += [f"Left out: {name}: {reason}." for name, reason in model.left_out.items()]
    return "\n".join([*lines, *(f"\n{textwrap.fill(note, 120, break_on_hyphens=False)}" for note in notes)])


def wanted(models: Sequence[Model]) -> str:
    """The ratios as a table."""
    rows: list[Sequence[str]] = [("model", "what", "against", "must", "aim", "measured", "reached")]
    for ratio in ratios(models):
        sign = "≥" if ratio.rule.more else "≤"
        measured = "not measured" if ratio.spread is None else ratio.spread.text(2)
        bounds = f"{sign} {ratio.rule.must:g}", f"{sign} {ratio.rule.aim:g}"
        rows.append((ratio.shape, ratio.rule.what, ratio.other, *bounds, measured, ratio.reached))
    return "\n".join(table(rows))


def text(model: Model, command: str, threads: int, repeat: int, load: float) -> str:
    """Everything that goes between the markers."""
    names = {"tensorflow": "", "torch": ""}  # machine() has them
    versions = {name: number for name, number in model.versions.items() if name not in names}
    said = "".join(f", {name} {number}" for name, number in versions.items())
    steps = {s.steps for s in model.samples if s.measure == "batch 1"}
    conditions = (
        f"{machine()}{said}; load average when it began: {load:.1f}. {threads} threads for each engine; medians (least "
        f"and most) of {repeat} rounds, in each of which all engines of a group take turns, each in a process of its "
        "own that is stopped while others run; loading in a process of its own, the files in the page cache as far as "
        "they fit. Random weights, the same for all; greedy, no end of text. ms per token: one row, a prompt of 32, "
        f"{statistics.median(steps or [0]):.0f} tokens after the first. Weights read: bytes of the matrices by that "
        "time. 16 ragged rows: prompts of 8 to 32 tokens. Busy process: another one that always computes. Memory: "
        "peak of the process, with what it maps. Each ratio is the median (least and most) of those of single rounds; "
        f"peers are CTranslate2, llama.cpp (not with 4 bits), OpenVINO and transformers. `{command}`."
    )
    filled = textwrap.fill(conditions, 120, break_on_hyphens=False, break_long_words=False)
    return "\n\n".join([engines(model), wanted([model]), filled])
