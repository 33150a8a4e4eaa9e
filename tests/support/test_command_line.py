"""Signals in the middle of other people's code, misspelt options, a Python without the dependencies."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.command_line import Program

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, action in before.items():
        signal.signal(number, action)


def program(run: Callable[[argparse.Namespace], None]) -> Program:
    module = types.ModuleType("command")

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--output", required=True)
        parser.add_argument("--force", action="store_true")

    module.__dict__.update(HELP="h", DESCRIPTION="d", EXAMPLE="e", add_arguments=add_arguments, run=run)
    return Program("prog", "d", {"go": module}, "", (ValueError,), "terminated; nothing was left behind")


def nested(number: int) -> Callable[[argparse.Namespace], None]:
    """What TensorFlow's contexts do when an exception passes that they did not expect."""

    def run(args: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            raise AssertionError("the stack of contexts is not as it was")

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_a_context_replaces_by_an_error_is_one_line(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(nested(number)).run(["go", "--output", "x"]) == 128 + number
    assert capsys.readouterr().err == "error: terminated; nothing was left behind\n"


def test_what_nohup_started_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert program(lambda args: os.kill(os.getpid(), signal.SIGHUP)).run(["go", "--output", "x"]) == 0


def test_ctrl_c_that_a_context_replaces_by_an_error_is_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt):
        program(nested(signal.SIGINT)).run(["go", "--output", "x"])


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    def run(args: argparse.Namespace) -> None:
        raise AssertionError("a defect")

    with pytest.raises(AssertionError, match="a defect"):
        program(run).run(["go", "--output", "x"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--outptu", "x"], "unrecognized arguments: --outptu; did you mean --output?"),
        (["--outptu=x"], "unrecognized arguments: --outptu=x; did you mean --output?"),
        (["--output", "x", "--forec"], "unrecognized arguments: --forec; did you mean --force?"),
        (["--force"], "the following arguments are required: --output"),
    ],
)
def test_misspelt_options_are_named(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        program(lambda args: None).run(["go", *words])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("words", [["convert", "--help"], ["inference", "--help"], ["demo"]])
def test_a_python_without_the_dependencies(words: list[str]) -> None:
    """-S: no site-packages, as with a system's Python instead of .venv's."""
    command = [sys.executable, "-S", "-m", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": ""}, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not installed for" in done.stderr
