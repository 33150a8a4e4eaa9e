"""glibc's arenas, as its own report has them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
    import ctypes, sys, threading
    from support.tensorflow_runtime import limit_malloc_arenas
    if sys.argv[2] == "one":
        limit_malloc_arenas()
    begun = threading.Barrier(4)
    def allocate():
        begun.wait()
        kept = [bytes(4000) for _ in range(1000)]
        begun.wait()
    threads = [threading.Thread(target=allocate) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    c = ctypes.CDLL(None)
    c.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(c.fopen(sys.argv[1].encode(), b"w"))
    c.malloc_info(0, file)
    c.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's arenas")
@pytest.mark.parametrize(
    ("setting", "environment", "one"),
    [
        ("as it is", {}, False),
        ("one", {}, True),
        ("one", {"MALLOC_ARENA_MAX": "4"}, False),
        ("one", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}, False),
    ],
)
def test_all_threads_share_an_arena(setting: str, environment: dict[str, str], one: bool, tmp_path: Path) -> None:
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "report"), setting]
    subprocess.run(program, env={**os.environ, **environment}, check=True)
    arenas = (tmp_path / "report").read_text().count("<heap ")
    assert (arenas == 1) is one, arenas
