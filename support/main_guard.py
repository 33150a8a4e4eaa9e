"""What surrounds a program: exit codes, errors as one line, signals, and streams that can always be written to."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from support.errors import UserError


def main_guard(run: Callable[[], object], when_stopped: str = "") -> int:
    """Call ``run`` as the whole of a program: return its exit code, print an error for the user as one line.

    An exception is for the user if its class has an ``exit_code``. Other exceptions are defects and pass.

    Args:
        when_stopped: what else to say when Ctrl-C, SIGTERM or SIGHUP has stopped it.
    """
    _prepare_streams()
    with _termination_raises():
        try:
            run()
            sys.stdout.flush()
        except BaseException as error:
            return _exit_code(error, when_stopped)
    return 0


def missing_package(name: str) -> str:
    """Say in one line which package is missing, and how to install it: in a clone with make, elsewhere with pip."""
    if (Path(__file__).resolve().parents[1] / "Makefile").is_file():
        advice = "run `make demo` and use .venv/bin/python"
    else:
        advice = f"{sys.executable} -m pip install {name.replace('_', '-')}"
    return f"{name} is not installed for {sys.executable}: {advice}"


class _Terminated(SystemExit):
    """SIGTERM, or SIGHUP of a terminal that closes; raised where the program was, so that it clears up."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated(128 + signum)


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """Make SIGTERM and SIGHUP exceptions within the block, except those that nohup has switched off."""
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare_streams() -> None:
    """Open the streams that the caller has closed, and let them take any character."""
    if sys.stdout is None:  # what is printed goes nowhere
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the end of the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a path may have characters that the terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


_STDOUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Why printing fails."""
_NO_ROOM = re.compile("failed to map segment|annot allocate memory")
"""What the loader says of a library, TensorFlow's above all, that a limit on memory leaves no room for."""


_OWN = (
    "benchmarks",
    "convert",
    "demo",
    "exports",
    "gpt2_savedmodel",
    "inference",
    "support",
    "tf_model",
    "tokenization",
    "training",
)
"""Packages of this project: if one of their modules is missing, that is a defect."""


def _exit_code(error: BaseException, when_stopped: str) -> int:
    """Print what has ended a program and give its exit code; raise ``error`` again if nobody foresaw it."""
    signalled = _signalled(error)
    if isinstance(signalled, KeyboardInterrupt):
        return _fail("; ".join(filter(None, ["interrupted", when_stopped])), 128 + signal.SIGINT)
    if isinstance(signalled, _Terminated):
        return _fail("; ".join(filter(None, ["terminated", when_stopped])), int(str(signalled.code)))
    if isinstance(error, BrokenPipeError):  # `| head` has seen enough
        _drop_stdout()
        return 128 + signal.SIGPIPE
    if isinstance(code := getattr(type(error), "exit_code", None), int):
        return _fail(str(error), code)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in _OWN:
        return _fail(missing_package(error.name.partition(".")[0]), UserError.exit_code)
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and _NO_ROOM.search(str(error))):
        return _fail("not enough memory: make some free, or raise the limit (ulimit -v)", UserError.exit_code)
    if isinstance(error, OSError) and error.filename is None and error.errno in _STDOUT_ERRORS:
        _drop_stdout()
        return _fail(f"stdout cannot be written: {error.strerror}", UserError.exit_code)
    raise error


def _signalled(error: BaseException | None) -> BaseException | None:
    """Find the signal in the chain of ``error``: TensorFlow's contexts raise errors of their own when one passes."""
    while error is not None and not isinstance(error, (KeyboardInterrupt, _Terminated)):
        error = error.__context__
    return error


def _drop_stdout() -> None:
    """Drop what is still in stdout's buffer: the interpreter's own attempt at its end would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    print("error:", " ".join(message.split("\n")), file=sys.stderr)
    return code
