"""Writing one large file from its beginning to its end, hashed on the way, past the page cache.

Where the kernel has to find memory for every page of the cache first, buffered writes can be several times slower than
the disk. Here bytes are collected in a few blocks of memory, and the kernel's O_DIRECT lets the disk take them from
there. Source: open(2), fcntl(2).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

BLOCK = 8 << 20
"""Bytes handed over in one step; a multiple of every disk's block."""

_BLOCKS = 12
"""About one large matrix, so that disk and hash have something to do while the next one is read and cast."""

_SECTOR = 4096
"""O_DIRECT wants offsets, sizes and addresses at multiples of the disk's block, which is this or less."""

_DIRECT = getattr(os, "O_DIRECT", 0)
"""0 where the platform has no such thing."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class _Pending(NamedTuple):
    """A block that is being written and hashed."""

    block: Bytes
    jobs: tuple[Future[None], Future[None]]


class DirectFile:
    """A new file that is written in the order of its bytes; writing and hashing go on in a thread each.

    To be used in a ``with`` statement: leaving it closes the file and ends the threads, whatever has happened. The file
    is complete only when ``finish`` has returned, and not flushed to the disk (fsync) even then. Where the file system
    refuses O_DIRECT, ordinary writes take its place.

    Attributes:
        size: bytes given to ``write`` so far.

    Raises:
        OSError: the file exists or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._direct = False
        self._switch(on=bool(_DIRECT))
        self._free = deque(np.frombuffer(mmap.mmap(-1, BLOCK), np.uint8) for _ in range(_BLOCKS))  # pages: aligned
        self._filled = 0  # bytes in the first of them
        self._pending: deque[_Pending] = deque()
        self._offset = 0  # where the first free block will go
        self._digest = hashlib.sha256(usedforsecurity=False)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._hasher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="block-hasher")

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._writer, self._hasher):
            pool.shutdown(wait=True, cancel_futures=True)
        self._close()

    def write(self, data: Bytes) -> None:
        """Add bytes; they may be changed as soon as this returns.

        Raises:
            OSError: these bytes, or some that were given earlier, cannot be written.
        """
        self.size += len(data)
        while len(data):
            part = data[: BLOCK - self._filled]
            self._free[0][self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == BLOCK:
                self._hand_over()

    def finish(self) -> str:
        """Wait until everything is written, and close the file.

        Returns:
            the hexadecimal SHA-256 of its content.

        Raises:
            OSError: some of the bytes cannot be written.
        """
        if self._filled:
            self._hand_over()
        while self._pending:
            self._wait()
        self._close()
        return self._digest.hexdigest()

    def _hand_over(self) -> None:
        """Start writing and hashing the first free block; afterwards there is a free one again."""
        block = self._free.popleft()
        part = block[: self._filled].data
        jobs = self._writer.submit(self._put, part, self._offset), self._hasher.submit(self._digest.update, part)
        self._pending.append(_Pending(block, jobs))
        self._offset += self._filled
        self._filled = 0
        if not self._free:
            self._wait()

    def _wait(self) -> None:
        """Wait for the oldest block, which is free then."""
        block, jobs = self._pending.popleft()
        for job in jobs:
            job.result()
        self._free.append(block)

    def _put(self, part: memoryview, offset: int) -> None:
        """Write all of ``part``; in the writer's thread."""
        while len(part):
            if self._direct and len(part) % _SECTOR:  # the end of the file; or the rest of a write that was cut short
                self._switch(on=False)
            try:
                count = os.pwrite(self._handle, part, offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._switch(on=False)  # some file systems refuse it only here
                continue
            if not count:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            part, offset = part[count:], offset + count

    def _switch(self, *, on: bool) -> None:
        """Switches O_DIRECT on, where the file system has it, or off for good."""
        flags = fcntl.fcntl(self._handle, fcntl.F_GETFL) & ~_DIRECT
        try:
            fcntl.fcntl(self._handle, fcntl.F_SETFL, flags | _DIRECT if on else flags)
            self._direct = on
        except OSError as error:
            if not on or error.errno != errno.EINVAL:
                raise

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
