"""Progress: a line every few seconds in a log, nothing when quiet."""

from __future__ import annotations

import io
import sys

import pytest

from support import progress as module
from support.progress import progress


def test_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done before the clock started, with the first call, is no part of the rate."""
    clock = iter([100.0, 101.0, 105.5, 106.0, 111.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("convert", 10_000_000_000) as done:
        for count in (500_000_000, 1_000_000_000, 1_750_000_000, 250_000_000, 2_500_000_000):
            done(count)
    assert capsys.readouterr().err.splitlines() == [
        "convert: 3.25G of 10.0GB, 500MB/s, 00:13 left",
        "convert: 6.00G of 10.0GB, 500MB/s, 00:08 left",
    ]


def test_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    with progress("convert", 10, quiet=True) as done:
        done(10)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("convert", 2_000_000) as done:
        done(2_000_000)
    assert "2.00M/2.00M" in terminal.getvalue()
