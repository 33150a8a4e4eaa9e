"""How glibc allocates: settings of the process that loads a model. Other C libraries have none of them."""

from __future__ import annotations

import ctypes
import os

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of <malloc.h>


def use_one_arena() -> None:
    """Has all threads allocate from one arena, unless the environment says how many there may be. Threads that have
    allocated already keep their arena.

    Each thread of TensorFlow has an arena of its own otherwise, and what one frees another cannot use: when the kernels
    of int8 pack their matrices, holes stay behind: 0.6 of 6.8 GB with CPM-Generate.
    """
    if not os.environ.get("MALLOC_ARENA_MAX") and "arena_max" not in os.environ.get("GLIBC_TUNABLES", ""):
        _mallopt(_M_ARENA_MAX, 1)


def map_blocks(size: int) -> None:
    """Has blocks of ``size`` bytes and more mapped, each for itself: they go back to the system when they are freed."""
    _mallopt(_M_MMAP_THRESHOLD, size)


def _mallopt(parameter: int, value: int) -> None:
    try:
        ctypes.CDLL(None).mallopt(parameter, value)
    except (OSError, TypeError, AttributeError):  # no such library, or no such function in it
        return
