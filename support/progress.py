"""How far long work has come: a callback for library code, and what shows it on stderr.

Library code takes a ``Progress`` and calls it; a command passes a ``TerminalProgress``, which draws a bar on a terminal
and prints a line every few seconds elsewhere.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from tqdm import tqdm

Progress = Callable[[str, int, int], object]
"""Called as ``progress(stage, done, total)``: a word for what is being done, and bytes done so far of all bytes."""

BYTES = "B"
"""The unit of bytes, which are shown as kB, MB and GB."""
INTERVAL = 5.0
"""Seconds between the lines that are printed where nobody sees a bar, in a log file for example."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


class TerminalProgress:
    """A ``Progress`` that shows each stage on stderr; a context, at whose end the last bar is closed.

    Args:
        quiet: show nothing.
        unit: what is counted, ``" steps"`` for example.
        interval: seconds between two lines where stderr is no terminal.
        clock: seconds from some moment on.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        unit: str = BYTES,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet, self._unit, self._interval, self._clock = quiet, unit, interval, clock
        self._stage: str | None = None
        self._show: _Bar | _Lines | None = None

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show how far a stage has come; ``note`` follows, such as what was measured last."""
        if self._quiet:
            return
        if stage != self._stage or self._show is None:
            self._close()
            self._stage = stage
            if sys.stderr.isatty():
                self._show = _Bar(stage, total, self._unit, done)
            else:
                self._show = _Lines(stage, total, self._unit, self._interval, self._clock)
        self._show.update(done, note)

    def write(self, text: str) -> None:
        """Print lines above the bar."""
        if not self._quiet:
            tqdm.write(text, file=sys.stderr)

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._show is not None:
            self._show.close()
        self._show = None


class _Bar:
    def __init__(self, stage: str, total: int, unit: str, before: int) -> None:
        self._bar = tqdm(total=total, unit=unit, unit_scale=unit == BYTES, desc=stage, initial=before)

    def update(self, done: int, note: str) -> None:
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """Prints ``convert: 3.10G of 10.4GB, 412MB/s, 00:18 left`` when the last line is long enough ago."""

    def __init__(self, stage: str, total: int, unit: str, interval: float, clock: Callable[[], float]) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._interval, self._clock = interval, clock
        self._started: float | None = None

    def update(self, done: int, note: str) -> None:
        if not done:  # it has not begun
            return
        now = self._clock()
        if self._started is None:  # not before: TensorFlow may have traced a graph for many seconds
            self._started = self._printed = now
            self._before = done
        if now - self._printed < self._interval or done == self._before:
            return
        self._printed = now
        rate = (done - self._before) / (now - self._started)
        left = tqdm.format_interval(max(0, self._total - done) / rate)
        if self._unit == BYTES:
            shown, total, speed = (tqdm.format_sizeof(value) for value in (done, self._total, rate))
            line = f"{self._stage}: {shown} of {total}B, {speed}B/s, {left} left"
        else:  # how fast it goes is in the note, if anybody wants to know
            line = f"{self._stage}: {done:,} of {self._total:,}{self._unit}, {left} left"
        print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is to be closed."""


@contextlib.contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], object]]:
    """Give a function that counts ``total`` bytes; goes when its two callers take a ``Progress``."""
    done = 0
    with TerminalProgress(quiet=quiet) as show:

        def count(more: int) -> None:
            nonlocal done
            done += more
            show(what, done, total)

        yield count
