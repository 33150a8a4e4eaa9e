"""Start the workers of a cluster: one on this machine in this process's place, or all of them here, to try it out."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, NoReturn

from training.cluster.place import TF_CONFIG, WAIT_SECONDS, Place, WorkersError

COMMANDS = ("finetune",)
"""What several workers can do."""
MOST_LOCAL_WORKERS = 64
"""That may be started on one machine, where they are for trying it out."""

_START = "import sys; del sys.path[0]; from training.cli import main; sys.exit(main())"
"""Runs a command with the Python path of this process: ``-c`` puts the current folder first."""
_GRACE_SECONDS = 30.0
"""How long the others may take to end by themselves, with a line that says why, when one has ended badly."""


def check_command(words: Sequence[str]) -> None:
    """Check that a command is one that several workers can do.

    Raises:
        WorkersError: it is another.
    """
    if not words or words[0] not in COMMANDS:
        found = words[0] if words else "nothing"
        raise WorkersError(f"workers: expected {' or '.join(COMMANDS)} and its options after --, found {found}")


def become(place: Place, words: Sequence[str]) -> NoReturn:
    """Become the worker at ``place``: run a command in this process's place, with ``TF_CONFIG``."""
    sys.stdout.flush()
    os.execve(sys.executable, _command(words), _environment(place))


def run_here(count: int, words: Sequence[str], wait_seconds: float = WAIT_SECONDS) -> int:
    """Run a command in ``count`` processes on this machine, and return the chief's exit code.

    The chief has this process's streams, the others none. When one ends badly, the others do, too. A signal that asks
    this process to end goes to the chief, which saves its state first.

    Raises:
        WorkersError: a worker has ended badly and the chief could not say it.
    """
    hosts = free_hosts(count)
    places = [Place(hosts, index, wait_seconds) for index in range(count)]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    processes: list[_Process] = []
    try:
        for place in places:
            processes.append(_Process.start(place, words, threads))
        _wait(processes)
    finally:
        for process in processes:
            process.kill()
    return _exit_code(processes)


def free_hosts(count: int) -> tuple[str, ...]:
    """Return ``count`` addresses of this machine with ports that are free now."""
    endpoints = [socket.socket() for _ in range(count)]
    try:
        for endpoint in endpoints:
            endpoint.bind(("127.0.0.1", 0))
        return tuple(f"127.0.0.1:{endpoint.getsockname()[1]}" for endpoint in endpoints)
    finally:
        for endpoint in endpoints:
            endpoint.close()


@dataclasses.dataclass(frozen=True)
class _Process:
    """A worker on this machine; ``errors`` has what it prints to stderr, None for the chief."""

    place: Place
    process: subprocess.Popen[bytes]
    errors: IO[bytes] | None

    @classmethod
    def start(cls, place: Place, words: Sequence[str], threads: str) -> _Process:
        """Start it in a session of its own: a Ctrl-C is for this process, which passes it on."""
        environment = {"OMP_NUM_THREADS": threads, "TF_NUM_INTRAOP_THREADS": threads, **_environment(place)}
        streams: dict[str, Any] = {}
        if not place.is_chief:
            streams = {"stdout": subprocess.DEVNULL, "stderr": tempfile.TemporaryFile()}  # noqa: SIM115  in kill
        process = subprocess.Popen(_command(words), env=environment, start_new_session=True, **streams)
        return cls(place, process, streams.get("stderr"))

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def describe_end(self) -> str:
        """Say how a process has ended that ended badly."""
        name = self.place.name(self.place.index)
        if (code := self.process.returncode) < 0:
            return f"{name} was killed by signal {-code}"
        self.errors.seek(0) if self.errors else None
        lines = self.errors.read().decode("utf-8", "replace").split("\n") if self.errors else []
        last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
        return f"{name}: {last.removeprefix('error: ')}"

    def kill(self) -> None:
        """End it, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _wait(processes: Sequence[_Process]) -> None:
    """Wait until all have ended; or until one has ended badly, and the others had their time to do so, too."""
    chief, asked = processes[0], 0
    deadline: float | None = None
    while any(process.code is None for process in processes) and (deadline is None or time.monotonic() < deadline):
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:
            asked = signal.SIGINT
        except SystemExit as error:  # SIGTERM, SIGHUP
            asked = int(str(error.code)) - 128
        if asked:
            chief.process.send_signal(asked)
            asked = 0
        if deadline is None and any(process.code for process in processes):
            deadline = time.monotonic() + _GRACE_SECONDS


def _exit_code(processes: Sequence[_Process]) -> int:
    """Return the chief's exit code, or say what it could not."""
    chief = processes[0]
    code = chief.process.returncode
    if code > 0:
        return code
    bad = [process for process in processes if process.process.returncode]
    if bad:
        first = next((process for process in bad if process.process.returncode > 0), bad[0])
        raise WorkersError(first.describe_end())
    return 0


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", _START, *words]


def _environment(place: Place) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), TF_CONFIG: place.to_tf_config()}
