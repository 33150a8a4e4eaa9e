"""Start TensorFlow quietly, with the threads and the allocation that suit a model; give its errors in one line."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from support.files import anonymous_file


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what C code writes to stderr within the block, or show it after all when the block fails.

    For ``import tensorflow``: 2.21 reports on the machine's CPU and GPU before any log level takes effect. Afterwards
    TensorFlow logs nothing but what stops a process, unless ``TF_CPP_MIN_LOG_LEVEL`` is set.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if sys.stderr is None:  # closed: there is nothing to be kept quiet
        yield
        return
    sys.stderr.flush()
    with _without_keras_home(), anonymous_file() as kept:
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


@contextlib.contextmanager
def _without_keras_home() -> Iterator[None]:
    """Keep Keras, which is imported meanwhile, from reading its settings in the home folder, or writing them there."""
    if "KERAS_HOME" in os.environ:
        yield
        return
    os.environ["KERAS_HOME"] = os.path.join(os.devnull, "keras")
    try:
        yield
    finally:
        os.environ.pop("KERAS_HOME", None)


_FRAMES = ("Graph execution error", "Detected at node", "<stack traces")
"""How lines of TensorFlow's messages begin that say where and not what."""
_ASSERTION = re.compile(r"assertion failed: \[([^\[\]]*)\]")


def one_line_message(error: Exception) -> str:
    """Return what an error is about, in one line."""
    lines = [line.strip() for line in str(getattr(error, "message", "") or error).splitlines()]
    first = next((line for line in lines if line and not line.startswith(_FRAMES)), type(error).__name__)
    match = _ASSERTION.fullmatch(first)
    return (match[1] if match else first)[:300]


SINGLE_THREAD_BYTES = 300_000_000
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
    return int(weights < SINGLE_THREAD_BYTES)


def set_threads(folder: Path, rows: int) -> None:
    """Has TensorFlow use as many threads as suit ``intra_op_threads``, unless it has begun or was told otherwise."""
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() == 0:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads(folder, rows))
        except RuntimeError:  # it has begun
            return


_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of <malloc.h>


def limit_malloc_arenas() -> None:
    """Make all threads allocate from one arena, unless the environment says how many there may be.

    Threads that have allocated already keep their arena.

    Each thread of TensorFlow has an arena of its own otherwise, and what one frees another cannot use: when the kernels
    of int8 pack their matrices, holes stay behind: 0.6 of 6.8 GB with CPM-Generate.
    """
    if not os.environ.get("MALLOC_ARENA_MAX") and "arena_max" not in os.environ.get("GLIBC_TUNABLES", ""):
        _mallopt(_M_ARENA_MAX, 1)


def set_mmap_threshold(size: int) -> None:
    """Has blocks of ``size`` bytes and more mapped, each for itself: they go back to the system when they are freed."""
    _mallopt(_M_MMAP_THRESHOLD, size)


def _mallopt(parameter: int, value: int) -> None:
    try:
        ctypes.CDLL(None).mallopt(parameter, value)
    except (OSError, TypeError, AttributeError):  # no such library, or no such function in it
        return
