"""How the workers of a cluster meet before TensorFlow starts, which would wait for ever for one that never comes.

The chief listens at its own port, compares the facts of the others with its own, and leaves the port to
TensorFlow. The connections stay.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from support.messages import list_names
from training.cluster.connection import SILENCE_SECONDS, Connection, Message, describe_failure
from training.cluster.place import Place, WorkersError, split_host
from training.differences import find_differences

_RETRY_SECONDS = 0.2

Facts = Mapping[str, object]
"""What has to be alike on all workers, by the name that a message gives it: plain JSON values."""


def meet(place: Place, facts: Facts) -> dict[int, Connection]:
    """Wait until all workers are there and have the same facts; return the connections by the index of the other side.

    The chief has one to each other worker, the others have one to the chief.

    Raises:
        WorkersError: one does not come in time, has other facts, or cannot be reached; the port is not free.
    """
    for host in place.hosts:
        _resolve(host)
    meeting = _gather if place.is_chief else _join
    return meeting(place, facts, time.monotonic() + place.wait_seconds)


def _resolve(text: str) -> tuple[int, Any]:
    """Return family and address of ``host:port``."""
    host, port = split_host(text)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise WorkersError(f"{text}: there is no host of this name: {describe_failure(error)}") from error
    return family, address


@contextlib.contextmanager
def _listening(place: Place) -> Iterator[socket.socket]:
    """Listen at this worker's own port, which TensorFlow takes afterwards."""
    text = place.hosts[place.index]
    family, address = _resolve(text)
    with socket.socket(family, socket.SOCK_STREAM) as endpoint:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            endpoint.bind(address)
            endpoint.listen(len(place.hosts))
        except OSError as error:
            raise WorkersError(f"{text}: {_advice(place, error)}") from error
        yield endpoint


def _advice(place: Place, error: OSError) -> str:
    """Say why a port cannot be listened at."""
    if error.errno == errno.EADDRINUSE:
        return "the port is in use: end the process that has it, or give all workers another port for this one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"is no address of this machine: is index {place.index} right?"
    return f"cannot be listened at: {describe_failure(error)}"


def _gather(place: Place, facts: Facts, deadline: float) -> dict[int, Connection]:
    """Wait for all others, as the chief."""
    connections: dict[int, Connection] = {}
    try:
        with _listening(place) as endpoint:
            while len(connections) < len(place.hosts) - 1:
                accepted = _accept(endpoint, deadline)
                if accepted is None:
                    missing = [place.name(k) for k in range(1, len(place.hosts)) if k not in connections]
                    raise WorkersError(
                        f"{', '.join(missing)} did not come within {place.wait_seconds:g} seconds: "
                        f"start {'it' if len(missing) == 1 else 'them'} with the same hosts, and the chief again"
                    )
                connection, hello = accepted
                index = int(hello.values.get("index", 0))
                if index not in range(1, len(place.hosts)) or index in connections:
                    connection.send("failed", line=f"index {index} is taken: give each worker an index of its own")
                    raise WorkersError(f"two workers have come with index {index}: give each an index of its own")
                connections[index] = connection
                _compare(place, index, facts, hello.values.get("facts", {}))
        for connection in connections.values():
            connection.send("welcome")
    except WorkersError as error:
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.send("failed", line=str(error))
            connection.close()
        raise
    except OSError as error:
        raise WorkersError(f"a worker was lost before training began: {describe_failure(error)}") from error
    return connections


def _accept(endpoint: socket.socket, deadline: float) -> tuple[Connection, Message] | None:
    """Return the next worker that says hello, or None after the deadline; others that connect are sent away."""
    while (left := deadline - time.monotonic()) > 0:
        endpoint.settimeout(left)
        try:
            caller, _ = endpoint.accept()
        except TimeoutError:
            return None
        connection = Connection(caller, min(left, 5.0))
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, MemoryError):
            hello = connection.receive()
            if hello.kind == "hello":
                connection.set_silence()
                return connection, hello
        connection.close()
    return None


def _compare(place: Place, index: int, ours: Facts, theirs: object) -> None:
    """Compare the facts of a worker with the chief's."""
    found = theirs if isinstance(theirs, dict) else {}
    if others := find_differences(json.loads(json.dumps(ours)), found, "the chief's is"):
        raise WorkersError(
            f"{place.name(index)} has other options or files than the chief: {list_names(others, 4)}: "
            "give all workers the same"
        )


def _join(place: Place, facts: Facts, deadline: float) -> dict[int, Connection]:
    """Come to the chief, as another worker."""
    with _listening(place):  # only to see that TensorFlow can have the port
        pass
    family, address = _resolve(place.hosts[0])
    while True:
        endpoint = socket.socket(family, socket.SOCK_STREAM)
        left = deadline - time.monotonic()
        endpoint.settimeout(max(left, 0.01))
        try:
            endpoint.connect(address)
            break
        except OSError as error:
            endpoint.close()
            if left <= _RETRY_SECONDS:
                raise WorkersError(
                    f"{place.name(0)} did not answer within {place.wait_seconds:g} seconds "
                    f"({describe_failure(error)}): start it with the same hosts"
                ) from error
            time.sleep(_RETRY_SECONDS)
    connection = Connection(endpoint)
    try:
        connection.send("hello", index=place.index, facts=dict(facts))
        connection.set_silence(max(deadline - time.monotonic(), 0) + SILENCE_SECONDS)
        answer = connection.receive()
        connection.set_silence()
    except (OSError, ValueError) as error:
        connection.close()
        raise WorkersError(f"{place.name(0)} was lost before training began: {describe_failure(error)}") from error
    if answer.kind != "welcome":
        connection.close()
        raise WorkersError(str(answer.values.get("line", "the chief refused this worker")))
    return {0: connection}
