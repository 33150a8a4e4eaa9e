"""``log.csv``: a row a step, whatever has become of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.tiny_training import full_disk
from training.run.events import Events
from training.run.log import COLUMNS, Log, read_log, shortest
from training.run.run_folder import RunError


def test_rows_of_steps_that_are_done_again_leave_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = Log(path, 0)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 1 / step})
    log.close()
    with path.open("a") as file:
        file.write("4,0.4,12")  # cut off when the machine stopped
    log = Log(path, 2)
    log.append({"step": 3, "loss": 0.25, "val_loss": 0.5})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_log(path)] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


GOOD_ROW = "1,0.5,40,2.5,0.001,inf,,inf,900.0,1.5\n"
DAMAGE = {
    "a step that is none": "nan,0.5,80,2.5,0.001,1,,,900,2\n",
    "an infinite step": "inf,0.5,80,2.5,0.001,1,,,900,2\n",
    "a step below 0": "-1e300,0.5,80,2.5,0.001,1,,,900,2\n",
    "a loss that is none": "2,0.5,80,nan,0.001,1,,,900,2\n",
    "infinite tokens": "2,0.5,inf,2.5,0.001,1,,,900,2\n",
    "a huge cell": f"2,0.5,{'8' * 200_000},2.5,0.001,1,,,900,2\n",
    "words": "2,0.5,many,2.5,0.001,1,,,900,2\n",
    "a quote": '2,0.5,80,"2.5,0.001,1,,,900,2\n',
    "too many cells": "2,0.5,80,2.5,0.001,1,,,900,2,7\n",
    "half a row": "2,0.5,80",
    "half a cell": "2,0.5,80,2.5,0.001,1,,,900,2",
    "an empty line": "\n",
    "bytes": "\0\ufeff\n",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_rows_leave_the_log_and_the_others_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / "log.csv").write_text(",".join(COLUMNS) + "\n" + GOOD_ROW + DAMAGE[name], "utf-8")
    log = Log(tmp_path / "log.csv", 5)
    log.append({"step": 6, "loss": 2.0})
    log.close()
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == [1, 6]
    Events(tmp_path / "events", read_log(tmp_path / "log.csv"), 0.0).close()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a,b\n1,2\n", b"\n" + GOOD_ROW.encode()])
def test_a_log_that_is_none_begins_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    Log(tmp_path / "log.csv", 5).close()
    assert (tmp_path / "log.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_a_folder_in_the_place_of_the_log_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(RunError, match=r"log.csv: cannot be read: Is a directory: move it elsewhere"):
        Log(tmp_path / "log.csv", 0)


def test_closing_the_log_hides_no_error_of_a_full_disk(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.csv", 0)
    with full_disk(100):
        with pytest.raises(RunError, match="the disk is full"):
            log.append({"step": 1, "loss": 1 / 3, "seconds": 1 / 3, "tokens": 10**60})
        log.close()


@pytest.mark.parametrize("text", ["0.1", "6.5132", "1e-05", "0.00030000001", "8.705244", "inf", "nan"])
def test_a_float32_is_logged_with_the_digits_that_it_has(text: str) -> None:
    value = float(np.float32(text))
    assert str(shortest(value)) in (text, str(np.float32(text)))
    assert np.array_equal(np.float32(shortest(value)), np.float32(text), equal_nan=True)
