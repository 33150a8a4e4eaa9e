"""The benchmark of the graph runs, and writes its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import graph


@pytest.mark.slow
def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "performance.md"
    graph.main(["--shape", "1x16x2x40x8", "--repeat", "1", "--folder", str(tmp_path), "--write", str(document)])
    begin, end = graph.MARKERS
    text = document.read_text("utf-8").split(begin)[1].split(end)[0]
    row = next(line for line in text.splitlines() if line.startswith("| 1x16x2x40x8"))
    assert 1000 < int(row.split("|")[2]) < 10_000
    assert text.strip() in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["performance.md"]
