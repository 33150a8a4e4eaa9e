"""Errors of the ``tokenizers`` library as ours: it raises plain ``Exception``, and panics of Rust."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from tokenization.base import TokenizerError

_SILENCE = threading.RLock()


class LibraryPanicError(TokenizerError):
    """Something that the library takes for impossible: a file that contradicts itself."""


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Raise whatever the library raises as a ``TokenizerError`` that begins with ``what``."""
    try:
        yield
    except TokenizerError:
        raise
    except Exception as error:
        raise TokenizerError(f"{what}: {_one_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3, which has no public name; a KeyboardInterrupt is none
            raise
        raise LibraryPanicError(f"{what}: {_one_line(error)}") from error


@contextlib.contextmanager
def silent_panics() -> Iterator[None]:
    """Keep a panic's traceback, which Rust writes itself, from the terminal; one thread at a time."""
    with _SILENCE:
        kept = os.dup(2)
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nothing)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
