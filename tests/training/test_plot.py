"""The picture of both losses: what its curves are, and that training goes on without matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.tiny_training import FitOptions, Observers, train
from tests.training.test_callbacks import Recorder
from training.run.plot import draw_losses, smooth_curve

ROWS = [{"step": step, "loss": 1 / step} for step in range(1, 1001)]


def test_a_long_curve_is_means_of_neighbours() -> None:
    steps, losses = smooth_curve(ROWS, "loss", 100)
    np.testing.assert_allclose(steps, np.arange(1, 1001).reshape(100, 10).mean(1))
    np.testing.assert_allclose(losses, (1 / np.arange(1, 1001)).reshape(100, 10).mean(1))


def test_a_short_curve_is_as_it_is() -> None:
    steps, losses = smooth_curve([*ROWS[:5], {"step": 6, "val_loss": 3.0}], "loss", 100)
    assert (steps.tolist(), losses.tolist()) == ([1, 2, 3, 4, 5], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])


@pytest.mark.parametrize("rows", [[], ROWS, [*ROWS, {"step": 1000, "val_loss": 0.5}]])
def test_the_picture_is_a_png(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    from matplotlib.image import imread

    best = 1000 if rows and "val_loss" in rows[-1] else None
    draw_losses(rows, best, tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").shape == (540, 960, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_without_matplotlib_there_is_a_note_and_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    watcher = Recorder()
    train(tmp_path / "run", FitOptions(2, 2), observers=Observers(watcher=watcher))
    assert not (tmp_path / "run" / "plot.png").exists()
    (note,) = watcher.notes
    assert "plot.png: not drawn: matplotlib is not installed" in note
