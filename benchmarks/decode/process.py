"""Worker processes of this benchmark: what starts them, their versions; and a core that is busy."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping

from benchmarks.decode.engines import ENGINES
from benchmarks.decode.plan import Contender
from benchmarks.markdown import ROOT
from benchmarks.process import EngineError

Pythons = Mapping[bool, str]
"""The interpreter of this project and of peers."""


def worker_command(contender: Contender, pythons: Pythons) -> list[str]:
    python = pythons[ENGINES[contender.engine].peer]
    return [python, "-m", "benchmarks.decode.worker", contender.engine, contender.dtype]


def versions(contender: Contender, pythons: Pythons) -> dict[str, str]:
    """Of the packages that it needs.

    Raises:
        EngineError: one of them is not there.
    """
    command = [*worker_command(contender, pythons), "--version"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        raise EngineError(f"its Python cannot be run: {error.strerror}") from error
    if done.returncode:
        raise EngineError((done.stderr.strip().splitlines() or ["no answer"])[-1])
    found: dict[str, str] = json.loads(done.stdout)
    return found


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Another process that computes all the time, on whatever core the system gives it."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
