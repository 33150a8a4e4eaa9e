"""How far a long run has come: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

INTERVAL = 5.0
"""Seconds between the lines that are printed where nobody sees a bar, in a log file for example."""


@contextlib.contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], object]]:
    """Gives a function to be called with the number of bytes just done, of ``total`` bytes in all. Prints to stderr."""
    if quiet:
        yield lambda count: None
    elif sys.stderr.isatty():
        with tqdm(total=total, unit="B", unit_scale=True, desc=what) as bar:
            yield bar.update
    else:
        yield _Lines(what, total)


class _Lines:
    """Prints ``what: 3.10G of 10.4GB, 412MB/s, 00:18 left`` when the last line is long enough ago."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.started: float | None = None

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self.started is None:  # not before: TensorFlow may have traced a graph for many seconds
            self.started = self.printed = now
            self.before = self.done
        if now - self.printed < INTERVAL or self.done == self.before:
            return
        self.printed = now
        rate = (self.done - self.before) / (now - self.started)
        left = tqdm.format_interval(max(0, self.total - self.done) / rate)
        done, total, per_second = (tqdm.format_sizeof(value) for value in (self.done, self.total, rate))
        print(f"{self.what}: {done} of {total}B, {per_second}B/s, {left} left", file=sys.stderr, flush=True)
