"""The benchmark of the decode state runs and prints a row for each number of rows."""

from __future__ import annotations

import pytest

from benchmarks.decode_state import main


def test_it_measures_both_ways_for_each_number_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--shape", "2x32x4x64x128", "--dtype", "float32", "--rows", "1", "2", "--repeat", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["1", "2"]
    assert "TensorFlow" in lines[-1]
