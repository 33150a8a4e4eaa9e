"""How many threads TensorFlow should use inside an operation: a setting of the process that loads a model."""

from __future__ import annotations

from pathlib import Path

SMALL = 300_000_000
"""Bytes of weights below which the products of one row are so short that waking a second thread takes longer than it
saves: on 2 cores a token of CPM-distill takes 5 ms in int8 with one thread and 6 with two, 10.3 and 12.1 in bfloat16,
19 and 16.5 in float32 (114, 218 and 435 MB). Several rows need all threads: 16 have 494 tokens/s with one and 1,137
with two."""


def intra_op_threads(folder: Path, rows: int) -> int:
    """For ``tf.config.threading.set_intra_op_parallelism_threads``: 1, or 0 for as many as there are cores.

    Args:
        folder: the SavedModel.
        rows: how many texts are generated at once at most.
    """
    if rows > 1:
        return 0
    weights = sum(path.stat().st_size for path in (folder / "variables").glob("variables.data-*"))
    return int(weights < SMALL)


def set_threads(folder: Path, rows: int) -> None:
    """Has TensorFlow use as many threads as suit ``intra_op_threads``, unless it has begun or was told otherwise."""
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() == 0:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads(folder, rows))
        except RuntimeError:  # it has begun
            return
