"""Silence for libraries that write to the terminal behind Python's back."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import IO


def _temporary_file() -> IO[bytes]:
    """In memory where the system can: there may be no folder for temporary files."""
    return os.fdopen(os.memfd_create("stderr"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """What C code writes to stderr within the block is dropped, and shown after all when the block fails.

    For ``import tensorflow``: 2.21 reports on the machine's CPU and GPU before any log level takes effect.
    """
    if sys.stderr is None:  # closed: there is nothing to be kept quiet
        yield
        return
    sys.stderr.flush()
    with _temporary_file() as kept:
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


_FRAMES = ("Graph execution error", "Detected at node", "<stack traces")
"""How lines of TensorFlow's messages begin that say where and not what."""
_ASSERTION = re.compile(r"assertion failed: \[([^\[\]]*)\]")


def tensorflow_says(error: Exception) -> str:
    """What an error is about, in one line."""
    lines = [line.strip() for line in str(getattr(error, "message", "") or error).splitlines()]
    first = next((line for line in lines if line and not line.startswith(_FRAMES)), type(error).__name__)
    match = _ASSERTION.fullmatch(first)
    return (match[1] if match else first)[:300]
