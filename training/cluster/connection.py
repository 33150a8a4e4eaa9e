"""A connection between two workers, next to TensorFlow's own: messages over a socket.

A message is a line of JSON, which says how many bytes come after it. There is no pickle, but nothing is encrypted
either, and TensorFlow's own port runs any graph: a cluster belongs in a network of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
from collections.abc import Mapping
from typing import Any

SILENCE_SECONDS = 60.0
"""Without a message for so long the other side counts as lost. A killed process is noticed at once."""
_LONGEST_LINE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Message:
    """What one worker sends to another: ``kind``, plain JSON values, and bytes."""

    kind: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    content: bytes | bytearray = b""


class Connection:
    """A socket that sends and receives messages.

    ``send`` may be called from several threads, ``receive`` from one.
    """

    def __init__(self, endpoint: socket.socket, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._socket = endpoint
        self._lock = threading.Lock()
        self.set_silence(silence_seconds)
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = endpoint.makefile("rb")

    def set_silence(self, seconds: float = SILENCE_SECONDS) -> None:
        """Set how long ``receive`` waits for a byte, and ``send`` for room."""
        self._socket.settimeout(max(seconds, 0.01))

    def send(self, kind: str, content: bytes | memoryview = b"", **values: Any) -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone.
        """
        line = json.dumps({"kind": kind, "bytes": len(content), "values": values}).encode() + b"\n"
        with self._lock:
            self._socket.sendall(line)
            self._socket.sendall(content)

    def receive(self) -> Message:
        """Wait for a message.

        Raises:
            OSError: the other side is gone, or silent.
            ValueError: what came is no message.
        """
        line = self._file.readline(_LONGEST_LINE)
        if not line:
            raise ConnectionResetError("the connection was closed")
        header = json.loads(line)
        if not isinstance(header, dict) or not isinstance(header.get("values"), dict):
            raise ValueError("no message of a worker")
        content = bytearray(header["bytes"])
        if self._file.readinto(content) != len(content):
            raise ConnectionResetError("the connection was closed")
        return Message(str(header["kind"]), header["values"], content)

    def close(self) -> None:
        """Close the connection; the other side notices."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()


def describe_failure(error: Exception) -> str:
    """Say in a few words why a connection cannot be made or was lost."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
