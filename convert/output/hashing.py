"""SHA-256 of files, computed beside the work that reads or writes them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from io import RawIOBase
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

_CHUNK = 1 << 24
"""Bytes between two waits for the interpreter lock: 5 ms each, where another thread is busy with Python itself."""

MAX_OPEN_FILES = 100
"""Files that wait with an open descriptor; then ``Hasher.add`` waits, too."""

PATIENCE = 10.0
"""Seconds that a program which ends with an error waits for the thread: longer than it takes for one block."""

Hashes = dict[str, str]
"""Hexadecimal digests by name of the algorithm."""


def hash_file(path: Path, algorithms: Sequence[str] = ("sha256",)) -> Hashes:
    """Return the hashes of a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return _hash(file, algorithms, threading.Event())


def _hash(file: RawIOBase, algorithms: Sequence[str], stop: threading.Event) -> Hashes:
    """Read ``file`` once in blocks, until its end or until ``stop`` is set."""
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

    # No pool of concurrent.futures and no semaphore: a signal's exception can come just when the main thread has taken
    # one of their locks, which is then never given back, and the end of the program would wait for a thread that waits
    # for it. A SimpleQueue has no such moment.

    def __init__(self, *, max_open_files: int = MAX_OPEN_FILES, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._stop = threading.Event()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(max_open_files):
            self._places.put(None)
        self._results: dict[tuple[int, int], Future[Hashes]] = {}
        self._thread = threading.Thread(target=self._work, name="hasher", daemon=True)
        self._thread.start()

    def __enter__(self) -> Hasher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # What is still waiting runs too, and ends at once: its file must be closed.
        self._tasks.put(None)
        self._thread.join(None if error is None else self._patience)

    def _work(self) -> None:
        while task := self._tasks.get():
            task()

    def add(self, path: Path, algorithms: Sequence[str] = ("sha256",)) -> None:
        """Start with a file that is complete. It may be renamed at once: it is open already."""
        self._places.get()
        file = path.open("rb", buffering=0)
        result: Future[Hashes] = Future()

        def task() -> None:
            with file:
                try:
                    result.set_result(_hash(file, algorithms, self._stop))
                except BaseException as error:
                    result.set_exception(error)
                finally:
                    self._places.put(None)

        self._results[_identity(path)] = result
        self._tasks.put(task)

    def record(self, path: Path, hashes: Hashes) -> None:
        """Take the hashes of a file that somebody else has computed, as its writer may."""
        known: Future[Hashes] = Future()
        known.set_result(hashes)
        self._results[_identity(path)] = known

    def result(self, path: Path) -> Hashes:
        """Return the hashes of a file that was added, or of any other now; waits for them."""
        known = self._results.get(_identity(path))
        return hash_file(path) if known is None else known.result()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
