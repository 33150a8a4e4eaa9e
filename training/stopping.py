"""Ctrl-C and SIGTERM in the middle of a step: the step is done, the state saved, and then the program ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Training was asked to stop, and has saved its state."""


class StopRequest:
    """Whether a signal has asked to stop; the next signal acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def is_made(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Give what signals within the block ask for; a ``Stopped`` that leaves it becomes the signal's own effect.

    Only the main thread can take signals: elsewhere nothing asks. A signal that is ignored, as with nohup, stays so.
    """
    request = StopRequest()
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        known = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: handler for number, handler in known.items() if handler not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, ask)
    try:
        yield request
    except Stopped:
        restore()
        signal.raise_signal(request.signal or signal.SIGINT)
        raise KeyboardInterrupt from None  # the handler has let it pass
    finally:
        restore()
