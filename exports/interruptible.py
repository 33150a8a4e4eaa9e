"""Ctrl-C in the middle of a call of TensorFlow, which would otherwise have to end first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def interruptible(call: Callable[[], T]) -> T:
    """Return ``call()``; in the main thread a ``KeyboardInterrupt`` cancels TensorFlow's work in it, and is raised.

    Python looks at signals only between its own steps, so the call runs in a thread of its own while this one waits.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    from tf_model.tensorflow_internals import CancellationManager, CancellationManagerContext

    manager = CancellationManager()
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with CancellationManagerContext(manager):
                results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="tensorflow-call", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        manager.start_cancel()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
