"""Ctrl-C and SIGTERM in the middle of a step: the step is done, the state saved, and then the program ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WHEN_ASKED = "stopping: the state is saved after this step; a second time stops at once and saves nothing"


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
def stop_request(tell: Callable[[str], object]) -> Iterator[StopRequest]:
    """Give the request that a signal makes within the block; after the block the signal has its own effect.

    Args:
        tell: is called, in another thread, when a signal has come.

    Only the main thread can take signals: elsewhere nothing asks. A signal that is ignored, as with nohup, stays so.
    """
    request = StopRequest()
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()
        # A handler must not print itself: it may have interrupted another line.
        threading.Thread(target=tell, args=(_WHEN_ASKED,), daemon=True).start()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        known = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: handler for number, handler in known.items() if handler not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, ask)
    try:
        with contextlib.suppress(Stopped):
            yield request
    finally:
        restore()
    if request.signal is not None:
        signal.raise_signal(request.signal)
        raise KeyboardInterrupt  # the caller's handler has let it pass
