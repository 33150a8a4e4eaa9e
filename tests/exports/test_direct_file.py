"""Files written past the page cache, against what was given to write; the kernel's refusals are played, or real."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from exports.tensor_bundle import direct_file
from exports.tensor_bundle.direct_file import DirectFile
from tests.conftest import ROOT

BLOCK = 8192
SIZES = (0, 1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 20 * BLOCK + 4096, 50 * BLOCK + 123)
PWRITE = os.pwrite


@pytest.fixture(autouse=True)
def _small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And afterwards no thread is left, nor an open file."""
    monkeypatch.setattr(direct_file, "BLOCK", BLOCK)
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
    handles = (Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    assert not [handle for handle in handles if str(tmp_path) in str(handle.resolve())]


def is_direct(handle: int) -> bool:
    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)


def check(path: Path, size: int) -> None:
    """Writes ``size`` bytes in pieces of all sizes; the file has them, and its hash is told."""
    rng = np.random.default_rng(size)
    data = rng.integers(0, 256, size, np.uint8)
    piece, start = np.empty(3 * BLOCK, np.uint8), 0
    with DirectFile(path) as file:
        while start < size:
            count = min(size - start, int(rng.choice([0, 1, 100, 4096, BLOCK, 3 * BLOCK])))
            piece[:count] = data[start : start + count]
            file.write(piece[:count])
            piece[:count] = 0  # the caller's memory is the caller's again
            start += count
            assert file.size == start
        digest = file.finish()
    assert path.read_bytes() == data.tobytes()
    assert digest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_any_size(size: int, tmp_path: Path) -> None:
    check(tmp_path / "file", size)
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "file")


def test_blocks_go_past_the_cache_and_the_end_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        os.close(os.open(tmp_path / "try", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    calls = []

    def watched(handle: int, data: memoryview, offset: int) -> int:
        calls.append((is_direct(handle), len(data), offset))
        return PWRITE(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    check(tmp_path / "file", 3 * BLOCK + 5)
    assert calls == [(True, BLOCK, 0), (True, BLOCK, BLOCK), (True, BLOCK, 2 * BLOCK), (False, 5, 3 * BLOCK)]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no file system in memory")
def test_a_file_system_in_memory() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        check(Path(folder) / "file", 20 * BLOCK + 5)


@pytest.mark.parametrize("when", ["switched on", "written", "never heard of"])
def test_where_there_is_no_direct_writing(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control, calls = fcntl.fcntl, []

    def refuse(handle: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "refused")
        return control(handle, command, argument)

    def write(handle: int, data: memoryview, offset: int) -> int:
        calls.append(is_direct(handle))
        if calls[-1]:
            raise OSError(errno.EINVAL, "refused")
        return PWRITE(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    if when == "switched on":
        monkeypatch.setattr(fcntl, "fcntl", refuse)
    elif when == "never heard of":
        monkeypatch.setattr(direct_file, "_DIRECT", 0)
    check(tmp_path / "file", 20 * BLOCK + 5)
    assert sum(calls) <= (when == "written")


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal, a quota, a network: the kernel may write less than it was given, and wants what it always wants."""
    rng = random.Random(0)
    for number in range(20):
        path = tmp_path / str(number)

        def write(handle: int, data: memoryview, offset: int, path: Path = path) -> int:
            if is_direct(handle):
                assert offset % 4096 == len(data) % 4096 == np.frombuffer(data, np.uint8).ctypes.data % 4096 == 0
            count = min(len(data), rng.choice([4096] * 9 + [1, 512, 5000]))
            with path.open("r+b") as file:
                file.seek(offset)
                return file.write(data[:count])

        monkeypatch.setattr(os, "pwrite", write)
        check(path, 10 * BLOCK + 77)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EINVAL])
@pytest.mark.parametrize("failing", [0, 3, 30])
def test_errors_come_out(number: int, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a later ``write`` or at ``finish``, and again nothing hangs."""
    calls = []

    def write(handle: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > failing:
            raise OSError(number, os.strerror(number))
        return PWRITE(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    data = np.ones(BLOCK, np.uint8)
    with pytest.raises(OSError, match=os.strerror(number)) as caught, DirectFile(tmp_path / "file") as file:  # noqa: PT012
        for _ in range(31):
            file.write(data)
        file.finish()
    assert caught.value.errno == number


def test_a_write_of_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *args: 0)
    with pytest.raises(OSError, match="Input/output"), DirectFile(tmp_path / "file") as file:  # noqa: PT012
        file.write(np.ones(5, np.uint8))
        file.finish()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_left_in_the_middle(kind: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads are gone, with a slow disk too, and the file is closed: see the fixture."""

    def slow(handle: int, data: memoryview, offset: int) -> int:
        time.sleep(0.2)
        return PWRITE(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    with pytest.raises(kind), DirectFile(tmp_path / "file") as file:  # noqa: PT012
        for _ in range(5):
            file.write(np.ones(BLOCK, np.uint8))
        raise kind


@pytest.mark.parametrize("limit", [5 * BLOCK, 5 * BLOCK + 4096, 5 * BLOCK + 100])
def test_the_kernels_limit(limit: int, tmp_path: Path) -> None:
    code = (
        "import pathlib, resource, signal, sys, numpy as np\n"
        "from exports.tensor_bundle import direct_file\n"
        "direct_file.BLOCK = 8192\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "limit = int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "with direct_file.DirectFile(pathlib.Path(sys.argv[1])) as file:\n"
        "    for _ in range(20):\n"
        "        file.write(np.ones(8192, np.uint8))\n"
        "    file.finish()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "file", str(limit)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.stderr.splitlines()[-1] == "OSError: [Errno 27] File too large", result.stderr
