"""The worker: its one protocol, and that it ends whenever and however the process that started it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from convert.verification import worker
from support.errors import CheckpointError, ConvertError
from support.progress import Progress
from tests.conftest import ROOT
from tests.helpers.processes import is_running, wait_until

SELF = "tests.convert.verification.test_worker"


def add(arguments: Mapping[str, Any], progress: Progress) -> float:
    for number in range(1, 4):
        progress("add", number, 3)
    return float(arguments["a"] + arguments["b"])


def chatter(arguments: Mapping[str, Any], progress: Progress) -> str:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.system("echo from a child")
    return "done"


def refuse(arguments: Mapping[str, Any], progress: Progress) -> None:
    raise CheckpointError(arguments["message"])


def crash(arguments: Mapping[str, Any], progress: Progress) -> None:
    raise MemoryError("unable to allocate 9 GiB")


def exit_at_once(arguments: Mapping[str, Any], progress: Progress) -> None:
    os._exit(7)


def be_killed(arguments: Mapping[str, Any], progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(arguments: Mapping[str, Any], progress: Progress) -> None:
    """With a temporary folder; reports its process and waits, deaf to SIGTERM where told."""
    if arguments.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(dir=arguments["folder"]):
        progress("wait", os.getpid(), 1 << 40)
        time.sleep(60)


def stopped(arguments: Mapping[str, Any], progress: Progress) -> None:
    """Waits in a worker of its own."""
    worker.call(wait, arguments, progress)


def test_result_and_progress_come_back() -> None:
    calls: list[tuple[str, int, int]] = []
    assert worker.call(add, {"a": 1, "b": 1.5}, lambda *call: calls.append(call)) == 2.5
    assert calls == [("add", 1, 3), ("add", 2, 3), ("add", 3, 3)]


def test_what_libraries_print_is_not_shown_and_not_taken_for_an_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert worker.call(chatter, {}) == "done"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("message", ["词.pt: is damaged", "\udcff.pt: a name that is not UTF-8", '{"result": 1}'])
def test_errors_for_the_user_come_back_as_they_are(message: str) -> None:
    with pytest.raises(ConvertError) as error:
        worker.call(refuse, {"message": message})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (crash, "the process that ran a model ended with code 1: MemoryError: unable to allocate 9 GiB"),
        (exit_at_once, "the process that ran a model ended with code 7: it gave no reason"),
        (be_killed, "the process that ran a model was killed: there is probably too little memory"),
    ],
)
def test_early_end_is_one_line(task: worker.Task, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConvertError) as error:
        worker.call(task, {})
    assert str(error.value) == words
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("deaf", [False, True], ids=["cleans up", "is killed"])
def test_interrupted_call_ends_its_worker(deaf: bool, tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        pids.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.call(wait, {"folder": str(tmp_path), "deaf": deaf}, interrupt, patience=20 if not deaf else 0.5)
    assert not is_running(pids[0])
    assert deaf or list(tmp_path.iterdir()) == []


PARENT = f"""
import sys
from convert.verification import worker
from {SELF} import stopped, wait
worker.call({{task}}, {{{{"folder": sys.argv[1]}}}}, lambda *call: print(call[1], flush=True))
"""


@pytest.mark.parametrize("task", ["wait", "stopped"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_worker_ends_with_the_process_that_started_it(task: str, number: signal.Signals, tmp_path: Path) -> None:
    """Also the worker of a worker. Each cleans up what it had."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(task=task), tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(number)
        assert parent.wait(20) == -number
        wait_until(lambda: not is_running(pid))
    wait_until(lambda: not list(tmp_path.iterdir()))


def test_a_module_of_the_same_name_in_the_current_folder_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "convert.py").write_text("raise SystemExit('the wrong convert')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from convert.verification import worker; "
        f"from {SELF} import add; print(worker.call(add, dict(a=1, b=2)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert (result.stdout, result.returncode) == ("3.0\n", 0), result.stderr
