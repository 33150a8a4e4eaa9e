"""The converter killed at random moments, and two of them at once.

``GPT2_SAVEDMODEL_KILLS`` sets the number of kills (default 30).
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from convert.output.atomic_folder import new_folder
from convert.output.hashing import Hasher
from convert.output.manifest import MANIFEST, check, write_manifest
from support.errors import ConvertError
from tests.conftest import ROOT
from tests.helpers.checkpoints import random_state, write_megatron
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=6000, n_positions=64, n_embd=192, n_layer=6, n_head=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "CPM"
    write_megatron(root, random_state(CONFIG, np.random.default_rng(0)), 2)
    return root


def start(checkpoint: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "convert", "pytorch-to-tf", "--heads", "6", "--quiet", *options]
    return subprocess.Popen(
        [*command, "--checkpoint", str(checkpoint), "--output", str(output)],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def is_complete(output: Path) -> bool:
    return (
        check(output).intact
        and not check(output).added
        and json.loads((output / MANIFEST).read_text())["source"]["format"] == "megatron"
    )


def until_it_writes(process: subprocess.Popen[str], output: Path) -> float:
    """Waits for the working folder; the time when it was there."""
    while process.poll() is None and not output.with_name(f".{output.name}.partial").exists():
        time.sleep(0.01)
    return time.monotonic()


def kills(checkpoint: Path, folder: Path, number: int) -> None:
    rng = random.Random(0)
    output = folder / "model"
    process = start(checkpoint, output)
    writing = until_it_writes(process, output)
    assert process.wait() == 0
    duration = time.monotonic() - writing
    assert is_complete(output)
    killed = 0
    for _ in range(number):
        had_older = rng.random() < 0.5  # then --force replaces it
        if not had_older:
            for path in sorted(output.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            output.rmdir()
        process = start(checkpoint, output, "--force")
        until_it_writes(process, output)
        time.sleep(duration * rng.random())
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        killed += process.wait() != 0
        process.communicate()
        if had_older:
            assert output.exists()
        if output.exists():
            assert is_complete(output)
        assert start(checkpoint, output, "--force").wait() == 0
        assert is_complete(output)
        assert [path.name for path in folder.iterdir()] == ["model"]
    assert killed or number < 10  # a few may all come too late, where the machine has become faster meanwhile


@pytest.mark.slow
def test_kills(checkpoint: Path, tmp_path: Path) -> None:
    kills(checkpoint, tmp_path, int(os.environ.get("GPT2_SAVEDMODEL_KILLS", "30")))


def test_two_at_once(checkpoint: Path, tmp_path: Path) -> None:
    """One wins; the other says so and leaves the winner alone."""
    output = tmp_path / "model"
    processes = [start(checkpoint, output) for _ in range(2)]
    results = [(process.communicate()[1], process.returncode) for process in processes]
    assert sorted(code for _, code in results) == [0, 2], results
    error = next(text for text, code in results if code)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "another run is writing it" in error or "exists already" in error or "meanwhile" in error
    assert is_complete(output)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "limit", [8 << 20, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (3_000_001, 10_000_000))]
)
def test_the_disk_fills_up(limit: int, checkpoint: Path, tmp_path: Path) -> None:
    """With the graph and some of the weights written. The kernel's limit on a file's size stands in for a disk."""
    code = (
        "import resource, signal, sys\n"
        "from convert.__main__ import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    output = tmp_path / "out" / "model"
    result = subprocess.run(
        [sys.executable, "-c", code, "pytorch-to-tf", "--checkpoint", checkpoint, "--output", output, "--heads", "6"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert result.stderr == f"error: {output}: the disk is full; nothing was left behind\n"
    assert not (tmp_path / "out").exists()


def test_many_at_once_in_one_process(tmp_path: Path) -> None:
    """The lock alone: never two winners, never nobody, never anything left."""
    for number in range(40):
        output = tmp_path / f"model-{number}"
        outcomes: list[str] = []

        def write(output: Path = output, outcomes: list[str] = outcomes) -> None:
            try:
                with new_folder(output, force=False, size=0) as folder:
                    (folder / "file").write_text("content")
                outcomes.append("won")
            except ConvertError:
                outcomes.append("lost")

        threads = [threading.Thread(target=write) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["lost"] * 7 + ["won"]
        assert (output / "file").read_text() == "content"
    assert len(list(tmp_path.iterdir())) == 40


def test_force_exchanges_old_and_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for exchange in (True, False):  # with and without the system call that does it in one step
        if not exchange:
            monkeypatch.setattr("ctypes.CDLL", lambda *args, **kwargs: object())
        output = tmp_path / "model"
        for content in ("old", "new"):
            with new_folder(output, force=True, size=0) as folder:
                (folder / "saved_model.pb").write_text(content)
                with Hasher() as hasher:
                    write_manifest(folder, {}, hasher)
            assert (output / "saved_model.pb").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_everything_is_flushed_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino) or sync(handle))

    def checked(self: Path, target: Path) -> Path:
        assert {path.stat().st_ino for path in (self, *self.rglob("*"))} <= set(flushed)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", checked)
    with new_folder(tmp_path / "model", force=False, size=0) as folder:
        (folder / "variables").mkdir()
        (folder / "variables" / "data").write_text("content")
    assert tmp_path.stat().st_ino == flushed[-1]  # the name itself, last of all


def test_the_lock_is_on_the_folder_that_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking another run may have finished and renamed the folder that was opened."""
    lock, working, calls = fcntl.flock, tmp_path / ".model.partial", []

    def late(handle: int, operation: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            working.rename(tmp_path / "finished")
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with new_folder(tmp_path / "model", force=False, size=0) as folder:
        (folder / "file").write_text("content")
    assert len(calls) == 2
    assert (tmp_path / "model" / "file").read_text() == "content"
    assert not (tmp_path / "finished" / "file").exists()
