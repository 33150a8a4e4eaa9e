"""How the C library allocates: a setting of the process that loads a model."""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8
"""Of glibc's ``malloc.h``: how many arenas there may be."""


def use_one_arena() -> None:
    """Has glibc allocate from one arena, unless the environment says how many; other C libraries have no such setting.

    Each thread of TensorFlow has an arena of its own otherwise, and what one frees another cannot use: when the kernels
    of int8 pack their matrices, holes stay behind: 0.6 of 6.8 GB with CPM-Generate.
    """
    if "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (OSError, TypeError, AttributeError):  # no such library, or no such function in it
        return
