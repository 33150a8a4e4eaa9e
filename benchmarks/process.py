"""Worker processes as a coordinator sees them: started, told what to do, stopped while others run; and their side."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import ROOT
from support.tensorflow_runtime import one_line_message


class EngineError(RuntimeError):
    """An engine cannot do what it was told; the message is one line."""


class Process:
    """One worker. It is stopped unless it has something to do: threads of some libraries spin while they wait.

    Attributes:
        warm: what it was told to do before without being measured.
        pid: the process.
    """

    def __init__(self, command: Sequence[str], threads: int) -> None:
        count = str(threads)
        environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "CUDA_VISIBLE_DEVICES": "-1"}
        self.warm: set[str] = set()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed by close
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Has a command done, and stops the process again.

        Raises:
            EngineError: it is not done, or the process is no more.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise EngineError(
                "killed, most likely for its memory" if code == -signal.SIGKILL else f"{code}: {self._said()}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            print(self._said(2000), file=sys.stderr)
            raise EngineError(answer["error"])
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def _said(self, most: int = 200) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-most:]

    def memory(self) -> tuple[int, int]:
        """Bytes that are resident now, and were at most."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        now, most = (re.search(rf"{name}:\s+(\d+) kB", text) for name in ("VmRSS", "VmHWM"))
        return (1024 * int(now[1]), 1024 * int(most[1])) if now and most else (0, 0)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class Standstills:
    """Notices when nothing on this machine has run for seconds, as where a virtual machine is suspended.

    The clocks go on meanwhile, so what was measured across a standstill says nothing.

    Attributes:
        count: how many there were.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.count = 0
        self._most = seconds
        self._before = time.perf_counter()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(0.1)
            self.look()

    def look(self) -> None:
        """Compares the clock with what it was the last time."""
        now = time.perf_counter()
        self.count += now - self._before > self._most
        self._before = now


def answer_commands(worker: object) -> None:
    """What a worker does with its life: calls the methods that lines of JSON on stdin name, answers in lines of JSON.

    An answer has ``error`` where something went wrong. What libraries print goes to stderr.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a stopped process would outlive the coordinator
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            method: Callable[..., dict[str, Any]] = getattr(worker, command.pop("do"))
            answer = method(**command)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {one_line_message(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
