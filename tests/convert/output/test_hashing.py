"""Hashing beside other work: its end, when the program is stopped. ``test_manifest.py`` has the hashes themselves."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from convert.output import hashing
from convert.output.hashing import Hasher


def test_a_thread_that_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's exception may leave any lock taken; a run that is stopped has to end all the same."""
    goes_on = threading.Event()

    def hangs(*arguments: Any) -> dict[str, str]:
        goes_on.wait()
        return {}

    monkeypatch.setattr(hashing, "_hash", hangs)
    (tmp_path / "file").touch()

    def stopped() -> None:
        with Hasher(patience=0.1) as hasher:
            hasher.add(tmp_path / "file")
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert time.monotonic() - started < 30
    goes_on.set()


def test_files_wait_where_only_a_few_may_be_open(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(10)]
    with Hasher(max_open_files=2) as hasher:
        for path in paths:
            path.write_bytes(path.name.encode() * 1000)
            hasher.add(path)
        for path in paths:
            assert hasher.result(path) == {"sha256": hashlib.sha256(path.name.encode() * 1000).hexdigest()}
        hasher.add(paths[0], ["no such algorithm"])
        with pytest.raises(ValueError, match="no such algorithm"):
            hasher.result(paths[0])
