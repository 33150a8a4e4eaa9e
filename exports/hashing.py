"""SHA-256 of files, computed beside the work that reads or writes them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import RawIOBase
from pathlib import Path
from types import TracebackType

_CHUNK = 1 << 24
"""Bytes between two waits for the interpreter lock: 5 ms each, where another thread is busy with Python itself."""

_OPEN_FILES = 100
"""Files that wait with an open descriptor; then ``Hasher.add`` waits, too."""

Hashes = dict[str, str]
"""Hexadecimal digests by name of the algorithm."""


def hash_file(path: Path, algorithms: Sequence[str] = ("sha256",)) -> Hashes:
    """The hashes of a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return _hash(file, algorithms, threading.Event())


def _hash(file: RawIOBase, algorithms: Sequence[str], stop: threading.Event) -> Hashes:
    """Reads ``file`` once in blocks, until its end or until ``stop`` is set."""
    digests = [hashlib.new(name, usedforsecurity=False) for name in algorithms]
    buffer = bytearray(min(_CHUNK, max(1, os.fstat(file.fileno()).st_size)))
    view = memoryview(buffer)
    while (size := file.readinto(buffer)) and not stop.is_set():
        for digest in digests:
            digest.update(view[:size])
    return {name: digest.hexdigest() for name, digest in zip(algorithms, digests, strict=True)}


class Hasher:
    """Hashes files in a thread of its own, in the order given: Python's hashes let go of the interpreter lock.

    A file is remembered by its inode, so that its hash is found again after it was renamed.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hasher")
        self._waiting = threading.BoundedSemaphore(_OPEN_FILES)
        self._results: dict[tuple[int, int], Future[Hashes]] = {}

    def __enter__(self) -> Hasher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # What is still waiting runs too, and ends at once: its file must be closed.
        self._pool.shutdown(wait=True)

    def add(self, path: Path, algorithms: Sequence[str] = ("sha256",)) -> None:
        """Starts with a file that is complete. It may be renamed at once: it is open already."""
        self._waiting.acquire()
        file = path.open("rb", buffering=0)

        def work() -> Hashes:
            with file:
                try:
                    return _hash(file, algorithms, self._stop)
                finally:
                    self._waiting.release()

        self._results[_identity(path)] = self._pool.submit(work)

    def record(self, path: Path, hashes: Hashes) -> None:
        """Takes the hashes of a file that somebody else has computed, as its writer may."""
        known: Future[Hashes] = Future()
        known.set_result(hashes)
        self._results[_identity(path)] = known

    def result(self, path: Path) -> Hashes:
        """The hashes of a file that was added, or of any other now; waits for them."""
        known = self._results.get(_identity(path))
        return hash_file(path) if known is None else known.result()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
