"""``log.csv``: a row a step, and never two rows of one step, however often a run was stopped."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support.files import describe_read_error, replacing
from training.run.run_folder import MAKE_ROOM, RunError, writing_to

COLUMNS = (
    "step", "epoch", "tokens", "loss", "learning_rate", "gradient_norm", "val_loss", "val_perplexity",
    "tokens_per_second", "seconds",
)  # fmt: skip
_MAY_BE_INFINITE = {"gradient_norm", "val_perplexity"}


class Log:
    """The log of a run that is at ``step``: rows of later steps, which will be done again, are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        rows = [row for row in read_log(path) if row["step"] <= step]
        with writing_to(path, MAKE_ROOM):
            with replacing(path) as new:
                new.write_text(",".join(COLUMNS) + "\n" + "".join(map(_line, rows)), "utf-8")
            self._file = path.open("a", encoding="utf-8", newline="")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row; a column that is not in it stays empty."""
        with writing_to(self._path, MAKE_ROOM):
            self._file.write(_line(row))
            self._file.flush()

    def sync(self) -> None:
        """Wait until the disk has all rows."""
        with writing_to(self._path, MAKE_ROOM):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, to which every row was flushed; after an error closing would only repeat it."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the rows of a log, without their empty columns; whatever is no row of a log is left out.

    Raises:
        RunError: it cannot be read.
    """
    try:
        text = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{describe_read_error(error, path)}: move it elsewhere") from error
    header, *lines = text.split("\n")
    if header != ",".join(COLUMNS):
        return []
    return [row for row in map(_numbers, lines[:-1]) if row]  # what no line feed ends was cut off


def perplexity(loss: float) -> float:
    """e to the loss, infinite where no float holds it."""
    return math.exp(loss) if loss < 700 else math.inf


def shortest(value: float) -> float:
    """Return the number of fewest digits that is the same float32 as ``value``, which is one."""
    return float(str(np.float32(value)))


def _numbers(line: str) -> dict[str, float]:
    """Return the columns of a line that are numbers; none where it is damaged."""
    cells = line.split(",")
    if len(cells) != len(COLUMNS):
        return {}
    try:
        row = {name: float(cell) for name, cell in zip(COLUMNS, cells, strict=True) if cell}
        row |= {name: int(row[name]) for name in ("step", "tokens") if name in row}
    except (ValueError, OverflowError):
        return {}
    is_good = len(row) > 1 and row.get("step", -1) >= 0
    return row if is_good and all(math.isfinite(row[name]) for name in row.keys() - _MAY_BE_INFINITE) else {}


def _line(row: Mapping[str, Any]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
    return text.getvalue()
