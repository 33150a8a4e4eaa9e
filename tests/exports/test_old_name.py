"""``python -m exports``: the old name of ``python -m inference``."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def test_the_old_name_works_and_says_where_it_went() -> None:
    command = [sys.executable, "-m", "exports", "generate", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m inference generate ")
    assert done.stderr.startswith("note: `python -m exports` is now `python -m inference`")
    assert done.stderr.count("\n") == 1
