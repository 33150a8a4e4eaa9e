"""A picture of the times per token."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.decode.plan import PROBE
from benchmarks.decode.results import Model

_OURS, _OTHERS = "#c0392b", "#7f8c8d"


def write(path: Path, model: Model) -> None:
    """A row of bars for each engine and type of weights, fastest first; a small PNG.

    Raises:
        ImportError: matplotlib is not there.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = [(c, model.values(c, "batch 1", lambda s: 1e3 * s.step)) for c in model.contenders() if c != PROBE]
    bars = sorted((statistics.median(times), c.title) for c, times in found if times)
    times, names = [time for time, _ in bars], [name for _, name in bars]
    colors = [_OURS if name.startswith("this project") else _OTHERS for name in names]
    figure, axis = plt.subplots(figsize=(6, 0.6 + 0.22 * len(bars)))
    axis.bar_label(axis.barh(names, times, color=colors), fmt="%.1f", fontsize=7, padding=2)
    axis.invert_yaxis()
    axis.set_title(f"{model.shape}, {model.config.parameter_count / 1e6:,.0f} M: ms per token", fontsize=9)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
