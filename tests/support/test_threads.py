"""The number of threads that suits a model."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support.tensorflow_runtime import SINGLE_THREAD_BYTES, intra_op_threads


def _folder(path: Path, size: int) -> Path:
    (path / "variables").mkdir(parents=True)
    with (path / "variables" / "variables.data-00000-of-00001").open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize(
    ("size", "rows", "threads"),
    [
        (1, 1, 1),
        (SINGLE_THREAD_BYTES - 1, 1, 1),
        (SINGLE_THREAD_BYTES, 1, 0),
        (10 * SINGLE_THREAD_BYTES, 1, 0),
        (1, 2, 0),
    ],
)
def test_small_models_have_one_thread_for_one_text(size: int, rows: int, threads: int, tmp_path: Path) -> None:
    assert intra_op_threads(_folder(tmp_path / "model", size), rows) == threads


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("before", "expected"), [("pass", 1), pytest.param("set_(3)", 3, marks=pytest.mark.slow), ("tf.constant(1)", 0)]
)
def test_what_was_set_or_has_begun_stays(before: str, expected: int, tmp_path: Path) -> None:
    program = f"""
        import sys, pathlib
        import tensorflow as tf
        from support.tensorflow_runtime import set_threads
        set_ = tf.config.threading.set_intra_op_parallelism_threads
        {before}
        set_threads(pathlib.Path(sys.argv[1]), 1)
        print(tf.config.threading.get_intra_op_parallelism_threads())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(_folder(tmp_path / "model", 1))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == [str(expected)]
