"""The other process of ``verify``, and the one protocol between the two.

A comparison needs two models, and each may nearly fill the memory. So one of them runs in a process that ends, and
gives back all its memory, before the other is loaded.

The task is JSON on the worker's stdin: ``[module, function, arguments]``. The answers are JSON lines on its stdout:
``{"progress": [stage, done, total]}`` any number of times, then ``{"result": ...}`` or ``{"error": "one line"}``.
Whatever libraries print in the worker is kept away from the terminal.

A worker ends with the process that started it, however that one went. It runs in a session of its own, so Ctrl-C comes
to the parent alone, which ends the worker and waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, NoReturn

from support.errors import ConvertError, UserError
from support.files import anonymous_file
from support.progress import Progress, no_progress
from support.tensorflow_runtime import set_mmap_threshold
from tokenization import TokenizerError

Task = Callable[[Mapping[str, Any], Progress], Any]
"""A function of a module, ``task(arguments, progress) -> result``; arguments and result are what JSON can hold."""

MMAP_THRESHOLD = 1 << 20
"""Bytes from which on the C library maps memory, which goes back to the system as soon as it is freed."""

_SECONDS_TO_END = 5.0
"""How long a worker may take to clean up before it is killed."""

_START = "import sys; sys.path[:] = filter(None, sys.path); from convert.verification.worker import main; main()"
"""The current folder is not searched: it may have a ``convert.py`` of the user's own."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def call(
    task: Task, arguments: Mapping[str, Any], progress: Progress = no_progress, *, patience: float = _SECONDS_TO_END
) -> Any:
    """Run a task in a process of its own and return its result.

    Args:
        task: what to run.
        arguments: of the task.
        progress: called with what the worker reports.
        patience: seconds that an interrupted worker may take to clean up before it is killed.

    Raises:
        ConvertError: the task failed, or its process ended early: it was killed, or had too little memory.
    """
    search_path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with anonymous_file() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        with process:
            try:
                answer = _converse(process, [task.__module__, task.__qualname__, arguments], progress)
            except BaseException:
                _end(process, patience)
                raise
        if "error" in answer:
            raise ConvertError(answer["error"])
        if "result" not in answer:
            raise ConvertError(_describe_end(process.returncode, errors))
        return answer["result"]


def _converse(process: subprocess.Popen[str], message: list[Any], progress: Progress) -> dict[str, Any]:
    """Send the task and read the answers; the last one is returned, an empty one where the worker gave none."""
    assert process.stdin
    assert process.stdout
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it has ended: its exit code says how
        json.dump(message, pipe)
    last: dict[str, Any] = {}
    for line in process.stdout:
        answer = json.loads(line)
        if "progress" in answer:
            progress(*answer["progress"])
        else:
            last = answer
    return last


def _end(process: subprocess.Popen[str], patience: float) -> None:
    """Ask the worker to clean up and end, and wait for it."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:  # within one long operation of TensorFlow or PyTorch
        process.kill()
        process.wait()


def _describe_end(code: int, errors: IO[bytes]) -> str:
    """One line about a worker that gave no result; ``errors`` is what it wrote to stderr."""
    if code == -signal.SIGKILL:
        return "the process that ran a model was killed: there is probably too little memory"
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").split("\n")
    reason = next((line.strip() for line in reversed(lines) if line.strip()), "it gave no reason")
    return f"the process that ran a model ended with code {code}: {reason[:300]}"


def _end_with_parent() -> None:
    """In a new process: ask the kernel for a SIGTERM when the process that started it is gone, however it went."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # may be ignored by whoever started the parent
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Run the task that comes on stdin: the worker's side of ``call``."""
    signal.signal(signal.SIGTERM, _terminate)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    try:
        module, function, arguments = json.load(sys.stdin)
    except ValueError:  # who started it is gone
        return

    def send(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    set_mmap_threshold(MMAP_THRESHOLD)
    task: Task = getattr(importlib.import_module(module), function)
    try:
        result = task(arguments, lambda stage, done, total: send(progress=[stage, done, total]))
    except (UserError, TokenizerError) as error:
        send(error=str(error))
    else:
        send(result=result)


def _terminate(number: int, frame: object) -> NoReturn:
    """Leave through the same clean-up as an exception."""
    raise SystemExit(128 + number)
