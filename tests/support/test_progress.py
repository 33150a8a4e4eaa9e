"""Progress: a line every few seconds in a log, a bar on a terminal, nothing when quiet."""

from __future__ import annotations

import io
import sys

import pytest

from support.progress import TerminalProgress


def test_the_rate_counts_from_the_first_call(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([100.0, 101.0, 105.5, 106.0, 111.0])
    with TerminalProgress(clock=lambda: next(clock)) as progress:
        for done in (500_000_000, 1_500_000_000, 3_250_000_000, 3_500_000_000, 6_000_000_000):
            progress("convert", done, 10_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "convert: 3.25G of 10.0GB, 500MB/s, 00:13 left",
        "convert: 6.00G of 10.0GB, 500MB/s, 00:08 left",
    ]


def test_nothing_is_shown_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress(quiet=True, interval=0.0) as progress:
        progress("convert", 5, 10)
        progress("convert", 10, 10)
    assert capsys.readouterr() == ("", "")


def test_each_stage_has_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with TerminalProgress() as progress:
        progress("source", 2_000_000, 2_000_000)
        progress("compare", 3_000_000, 3_000_000)
    assert "2.00M/2.00M" in terminal.getvalue()
    assert "3.00M/3.00M" in terminal.getvalue()


def test_other_things_than_bytes_are_counted_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([100.0, 110.0])
    with TerminalProgress(unit=" steps", clock=lambda: next(clock)) as progress:
        progress("train", 1000, 3000, "loss 4.2")
        progress("train", 1200, 3000, "loss 4.1")
        progress.write("step 1200: done")
    assert capsys.readouterr().err.splitlines() == [
        "train: 1,200 of 3,000 steps, 01:30 left, loss 4.1",
        "step 1200: done",
    ]


def test_a_bar_of_steps_has_the_note_and_the_steps_of_an_earlier_run(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with TerminalProgress(unit=" steps") as progress:
        progress("train", 1000, 3000, "loss 4.2")
        progress("train", 3000, 3000, "loss 4.1")
    assert "1000/3000" in terminal.getvalue()
    assert "3000/3000" in terminal.getvalue()
    assert "loss 4.1" in terminal.getvalue()
