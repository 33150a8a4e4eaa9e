"""A run that was killed goes on to the very same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


def check_that_kills_change_nothing(kind: str, folder: Path, steps: int, kills: list[dict[str, Any]]) -> None:
    """Check the SHA-256 of the weights of a run that was killed and started again, several times."""
    command = [sys.executable, "-m", "tests.helpers.killed_training", kind, str(folder), str(steps), json.dumps(kills)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    killed, whole = done.stdout.split()
    assert killed == whole


@pytest.mark.tensorflow
def test_a_run_that_is_killed_three_times_ends_with_the_same_weights(tmp_path: Path) -> None:
    kills = [{"step": 3}, {"step": 7, "in_file_of": 12_000}, {"step": 10}]
    check_that_kills_change_nothing("tiny", tmp_path / "run", 14, kills)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["tiny", "gpt2"])
def test_a_run_that_is_killed_at_every_tenth_step_and_in_every_state_ends_with_the_same_weights(
    kind: str, tmp_path: Path
) -> None:
    size = {"tiny": 12_000, "gpt2": 30_000}[kind]
    kills: list[dict[str, Any]] = []
    for step in range(10, 60, 10):
        kills += [{"step": step - 3, "in_file_of": size}, {"step": step}]
    check_that_kills_change_nothing(kind, tmp_path / "run", 60, kills)
