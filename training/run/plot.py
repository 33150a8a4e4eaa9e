"""A picture of both losses: what was learned, and from where on it was learned by heart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.files import replacing

_POINTS = 200
"""Of the curve of the training loss: more would show the noise of single steps."""


def draw_losses(rows: Sequence[Mapping[str, float]], best_step: int | None, path: Path) -> None:
    """Draw training and validation loss over the steps as a PNG.

    Args:
        rows: of the log.
        best_step: is marked; None where nothing was validated.
        path: is replaced.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(*smooth_curve(rows, "loss", _POINTS), label="training", color="tab:blue", linewidth=1)
    if best_step is not None:
        curve = smooth_curve(rows, "val_loss", len(rows))
        axes.plot(*curve, "o-", label="validation", color="tab:orange", markersize=4)
        axes.axvline(best_step, color="gray", linestyle=":", label=f"best: step {best_step}")
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as new:
        figure.savefig(new, format="png")


def smooth_curve(rows: Sequence[Mapping[str, float]], column: str, points: int) -> tuple[Any, Any]:
    """Return steps and values of a column; where there are more than ``points`` rows, means of neighbours."""
    pairs = np.array([(row["step"], row[column]) for row in rows if column in row]).reshape(-1, 2)
    means = [part.mean(0) for part in np.array_split(pairs, max(1, min(points, len(pairs)))) if len(part)]
    curve = np.array(means).reshape(-1, 2)
    return curve[:, 0], curve[:, 1]
