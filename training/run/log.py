"""``log.csv``: a row a step, and never two rows of one step, however often a run was stopped."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.files import replacing
from training.run.run_folder import MAKE_ROOM, writing_to

COLUMNS = (
    "step", "epoch", "tokens", "loss", "learning_rate", "gradient_norm", "val_loss", "val_perplexity",
    "tokens_per_second", "seconds",
)  # fmt: skip


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
        self._file.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the rows of a log, without their empty columns; a row that was cut off is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in map(_numbers, rows) if len(row) > 1 and "step" in row]


def perplexity(loss: float) -> float:
    """e to the loss, infinite where no float holds it."""
    return math.exp(loss) if loss < 700 else math.inf


def _numbers(row: Mapping[str | None, Any]) -> dict[str, float]:
    """Return the columns of a row that are numbers; none of a row that is not as long as the others."""
    if None in row or any(value is None for value in row.values()):
        return {}
    try:
        values = {str(name): float(value) for name, value in row.items() if value}
    except ValueError:
        return {}
    return {name: int(value) if name in ("step", "tokens") else value for name, value in values.items()}


def _line(row: Mapping[str, Any]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
    return text.getvalue()
