"""The benchmark of training: what it computes from measurements, and that it runs; not how fast anything is."""

import json
from pathlib import Path

import pytest

from benchmarks.training import __main__ as benchmark
from benchmarks.training import report
from benchmarks.training.plan import GOALS, GROUPS, KEPT, LORA, LORA_INT8, PEFT, TORCH, TRAINERS
from benchmarks.training.run import Result, Start, Step

TINY = "2x32x2x100x64"


def result() -> Result:
    found = Result("lora", GROUPS["lora"], load=(0.1, 1.4))
    for number, (theirs, ours) in enumerate([(4.0, 2.0), (5.0, 3.0), (8.0, 2.0)]):
        found.steps += [Step(PEFT, number, theirs, 2 * theirs), Step(LORA, number, ours, ours)]
    found.starts += [Start(PEFT, 0, 8.0, 0.0), Start(LORA, 0, 20.0, 6.0)]
    found.peaks.update({PEFT: 3_000_000_000, LORA: 2_100_000_000})
    return found


def test_ratios_are_those_of_single_rounds() -> None:
    assert result().ratios(LORA, "seconds") == [0.5, 0.6, 0.25]


def test_the_table_has_a_line_for_each_and_the_goals() -> None:
    lines = report.text(result(), "python -m benchmarks.training", 2).splitlines()
    assert lines[0] == "**distill, 109 M, 4 rows of 256 tokens a step**"
    assert lines[4:6] == [
        "| peft, LoRA rank 8 | 5.00 (4.00-8.00) | 4.00 | 205 | 1.00 | 10.00 (8.00-16.00) | 1.00 | 3.00 GB | 1.00 "
        "| 8.0 s | 3.0 s | 1.00 | - |",
        "| this project, LoRA rank 8 | 2.00 (2.00-3.00) | 2.00 | 512 | 0.50 (0.25-0.60) | 2.00 (2.00-3.00) "
        "| 0.25 (0.12-0.30) | 2.10 GB | 0.70 | 20.0 s | 18.0 s | 6.00 | 6.0 s |",
    ]
    assert "| this project, LoRA rank 8: time | peft, LoRA rank 8 | ≤ 0.8 | ≤ 0.65 | 0.50 (0.25-0.60) | aim |" in lines
    assert "| this project, LoRA rank 8: memory | peft, LoRA rank 8 | ≤ 0.75 | ≤ 0.65 | 0.70 | must |" in lines
    assert "load average when it began: 0.1, when it ended: 1.4" in " ".join(lines)


def test_what_was_not_measured_is_said() -> None:
    found = Result("full", GROUPS["full"], left_out={TORCH: "no module named torch"})
    text = report.text(found, "command", 2)
    assert "Left out: transformers, torch AdamW: no module named torch." in text
    assert "| this project: time | transformers, torch AdamW | ≤ 0.85 | ≤ 0.7 | - | not measured |" in text


def test_memory_by_itself_is_in_gigabytes() -> None:
    found = Result("generate", GROUPS["generate"], peaks={LORA_INT8: 5_000_000_000})
    assert "| - | ≤ 7 GB | ≤ 4.5 GB | 5.00 GB | must |" in report.text(found, "command", 2)


def test_groups_and_goals_name_trainers_that_there_are() -> None:
    for group in GROUPS.values():
        assert set(group.members) <= set(TRAINERS)
    for goal in GOALS:
        assert goal.trainer in GROUPS[goal.group].members


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "2x7"], "--shape 2x7"),
        (["--shape", TINY, "--length", "65"], "2x32x2x100x64 has 64 positions"),
        (["--group", "lora", "--trainer", KEPT], "none of them is in the group lora"),
        (["--json", "nowhere/x.json"], "nowhere: no such folder"),
        (["--repeat", "0"], "expected 1 or more"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_it_runs(group: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "performance.md"
    arguments = ["--group", group, "--shape", TINY, "--length", "16", "--batch", "2", "--repeat", "1"]
    outputs = ["--json", str(tmp_path / "all.json"), "--write", str(document)]
    benchmark.main([*arguments, *outputs])
    out = capfd.readouterr().out
    assert out.strip() in document.read_text()
    assert str(tmp_path) not in out
    (measured,) = json.loads((tmp_path / "all.json").read_text())["groups"]
    assert not measured["left_out"]
    assert {step["trainer"] for step in measured["steps"]} == set(GROUPS[group].members)
