"""The connections of the workers while they train: who was lost, what the chief sends, when all is done.

TensorFlow reports a lost worker after its heartbeat's ten seconds in many lines, or aborts the process, or waits for
ever. So each worker has a connection of its own to the chief. A process that is killed closes its connection at once;
one whose machine is gone is silent.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from training.cluster.connection import SILENCE_SECONDS, Connection, Message, describe_failure
from training.cluster.place import Place, WorkersError

HEARTBEAT_SECONDS = 2.0


class Control:
    """The connections of one worker: the chief has one to each other worker, the others have one to the chief.

    Args:
        place: of this worker.
        connections: by the index of the worker at the other side.
        when_lost: called in another thread, once, with the line that says which worker was lost.
    """

    def __init__(self, place: Place, connections: Mapping[int, Connection], when_lost: Callable[[str], object]) -> None:
        self.place = place
        self.failure: str | None = None
        self._connections = connections
        self._when_lost = when_lost
        self._inboxes: dict[int, queue.Queue[Message]] = {index: queue.Queue(maxsize=2) for index in connections}
        self._is_over = threading.Event()
        self._has_failed = threading.Event()
        self._trained: set[int] = set()
        self._lock = threading.Lock()
        for index in connections:
            threading.Thread(target=self._listen, args=(index,), daemon=True, name=f"worker-{index}").start()
        threading.Thread(target=self._send_heartbeats, daemon=True, name="workers-heartbeat").start()

    def send(self, kind: str, content: bytes | memoryview = b"", **values: Any) -> None:
        """Send a message to everybody at the other side; a lost one is noticed by the thread that listens to it."""
        for connection in self._connections.values():
            try:
                connection.send(kind, content, **values)
            except OSError:
                connection.close()  # half a message may have gone

    def receive(self, kind: str, index: int = 0) -> Message:
        """Wait for the next message of a worker, the chief unless ``index`` says another.

        Raises:
            WorkersError: a worker was lost meanwhile.
        """
        while True:
            try:
                message = self._inboxes[index].get(timeout=0.5)
            except queue.Empty:
                self.check()
                continue
            if message.kind == kind:
                return message

    def check(self) -> None:
        """Raise WorkersError if a worker was lost."""
        if self.failure is not None:
            raise WorkersError(self.failure)

    def wait_for_failure(self, seconds: float) -> None:
        """Wait at most so long for the listening thread to notice a loss that TensorFlow has noticed first."""
        self._has_failed.wait(seconds)

    def finish(self) -> None:
        """End together: the chief says that all is done, the others wait for that, and may be lost meanwhile.

        Raises:
            WorkersError: a worker was lost before the chief was done.
        """
        if self.place.is_chief:
            self.check()
            self._is_over.set()
            self.send("done")
            for index in self._connections:
                self._wait_for_end(index)
        else:
            self.send("trained")
            self.receive("done")
        self._close()

    def fail(self, line: str) -> None:
        """Tell the others why this worker ends before it is done."""
        self._is_over.set()
        self.send("failed", line=line)
        self._close()

    def _wait_for_end(self, index: int) -> None:
        """Wait until a worker that was told that all is done has closed its connection."""
        with contextlib.suppress(queue.Empty):
            while self._inboxes[index].get(timeout=5.0).kind != "closed":
                pass

    def _close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def _listen(self, index: int) -> None:
        connection, inbox = self._connections[index], self._inboxes[index]
        try:
            while True:
                message = connection.receive()
                if message.kind == "failed":
                    self._fail(str(message.values.get("line", "")))
                elif message.kind == "trained":
                    self._trained.add(index)
                elif message.kind != "heartbeat":
                    if message.kind == "done":  # what comes now is the end of the connection
                        self._is_over.set()
                    inbox.put(message)
        except TimeoutError:
            self._fail(f"{self.place.name(index)} was lost: no sign of it for {SILENCE_SECONDS:.0f} seconds")
        except (OSError, ValueError) as error:
            if index not in self._trained:
                self._fail(f"{self.place.name(index)} was lost: {describe_failure(error)}")
            inbox.put(Message("closed"))

    def _fail(self, line: str) -> None:
        with self._lock:
            if self._is_over.is_set():
                return
            self._is_over.set()
            self.failure = line
            self._has_failed.set()
        self.send("failed", line=line)
        self._when_lost(line)

    def _send_heartbeats(self) -> None:
        while not self._is_over.wait(HEARTBEAT_SECONDS):
            self.send("heartbeat")
