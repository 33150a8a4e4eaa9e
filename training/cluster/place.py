"""Where this process stands among the workers of a cluster: read from ``TF_CONFIG``, or written into it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from support.errors import UserError
from support.messages import short_repr

TF_CONFIG = "TF_CONFIG"
"""The environment variable that TensorFlow, Kubernetes' TFJob and clouds use."""

WAIT_SECONDS = 300.0
"""How long a worker waits for the others to start."""
_LONGEST_WAIT = 1e6
"""Seconds; sockets take no time that is much longer."""


class WorkersError(UserError):
    """A cluster that cannot be formed, or that has lost a worker."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
        hosts: ``host:port`` of every worker; the first one is the chief.
        index: which of them this process is.
        wait_seconds: how long it waits for the others to start.
    """

    hosts: tuple[str, ...]
    index: int
    wait_seconds: float = WAIT_SECONDS

    def __post_init__(self) -> None:
        """Check hosts and index.

        Raises:
            WorkersError: one of them cannot be used.
        """
        for host in self.hosts:
            split_host(host)
        repeated = sorted({host for host in self.hosts if self.hosts.count(host) > 1})
        if repeated:
            raise WorkersError(f"hosts: {repeated[0]} is there twice: give each worker a port of its own")
        if not 0 <= self.index < len(self.hosts):
            raise WorkersError(
                f"index: expected 0 to {len(self.hosts) - 1}, as there are {len(self.hosts)} hosts, "
                f"found {short_repr(self.index)}"
            )

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes."""
        return self.index == 0

    def name(self, index: int) -> str:
        """Name a worker in a message."""
        return f"{'the chief' if index == 0 else f'worker {index}'} ({self.hosts[index]})"

    def to_tf_config(self) -> str:
        """Return the value of ``TF_CONFIG`` for this place; ``wait_seconds`` is not TensorFlow's."""
        return json.dumps(
            {
                "cluster": {"worker": list(self.hosts)},
                "task": {"type": "worker", "index": self.index},
                "wait_seconds": self.wait_seconds,
            }
        )


def check_wait(name: str, seconds: float) -> None:
    """Check how long a worker waits for the others.

    Raises:
        WorkersError: it is no time.
    """
    if not 0 < seconds < _LONGEST_WAIT:
        raise WorkersError(f"{name} {seconds:g}: expected seconds above 0 and below {_LONGEST_WAIT:g}")


def split_host(text: str) -> tuple[str, int]:
    """Return host and port of ``host:port``, where an IPv6 address stands in brackets.

    Raises:
        WorkersError: it is written otherwise.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise WorkersError(f"hosts: expected HOST:PORT with a port from 1 to 65535, found {short_repr(text)}")
    return host, int(port)


def read_place(environment: Mapping[str, str]) -> Place | None:
    """Return the place that ``TF_CONFIG`` names, or None for a process that is alone.

    Raises:
        WorkersError: it cannot be used.
    """
    text = environment.get(TF_CONFIG)
    if not text:
        return None
    try:
        content = json.loads(text)
        cluster: Mapping[str, Sequence[str]] = content.get("cluster") or {}
        task: Mapping[str, Any] = content.get("task") or {}
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        chiefs, workers = tuple(cluster.get("chief", ())), tuple(cluster.get("worker", ()))
        wait_seconds = float(content.get("wait_seconds", WAIT_SECONDS))
        if not all(isinstance(word, str) for word in (kind, *cluster, *chiefs, *workers)):
            raise TypeError
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WorkersError(f"{TF_CONFIG}: expected JSON with cluster and task, found {text[:100]!r}") from error
    if not chiefs + workers:
        return None
    check_wait(f"{TF_CONFIG}: wait_seconds", wait_seconds)
    others = sorted({*cluster, kind} - {"chief", "worker"})
    if others:
        raise WorkersError(f"{TF_CONFIG}: there are no tasks of type {others[0]!r} here: expected chief and worker")
    place = Place(chiefs + workers, index + (len(chiefs) if kind == "worker" else 0), wait_seconds)
    return place if len(place.hosts) > 1 else None
