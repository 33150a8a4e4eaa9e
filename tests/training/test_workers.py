"""Two processes train as one, and end together: with real processes on this machine."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.worker_process import CLIP, STEPS
from training.cluster.launcher import free_hosts
from training.cluster.place import TF_CONFIG, Place

BOTH = (None, None)


def start(folder: Path, place: Place | None, kill_at: int | None) -> subprocess.Popen[str]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
    environment.pop(TF_CONFIG, None)
    if place is not None:
        environment[TF_CONFIG] = place.to_tf_config()
    words = [sys.executable, "-m", "tests.helpers.worker_process", str(folder), *([str(kill_at)] if kill_at else [])]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def run_workers(folder: Path, kill_at: tuple[int | None, ...]) -> list[tuple[int, list[str]]]:
    """Return exit code and lines on stderr of each worker."""
    hosts = free_hosts(len(kill_at))
    processes = [start(folder, Place(hosts, i, 120.0), step) for i, step in enumerate(kill_at)]
    ends = []
    for process in processes:
        _, errors = process.communicate(timeout=300)
        ends.append((process.returncode, [line for line in errors.split("\n") if line]))
    return ends


def weights(folder: Path, index: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"worker-{index}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with ``one``, a training in one process, and ``two``, the same of two workers."""
    folder = tmp_path_factory.mktemp("workers")
    for name in ("one", "two"):
        (folder / name).mkdir()
    alone = start(folder / "one", None, None)
    assert run_workers(folder / "two", BOTH) == [(0, []), (0, [])]
    assert alone.wait(timeout=300) == 0, alone.stderr.read()
    return folder


@pytest.mark.tensorflow
@pytest.mark.slow
def test_two_workers_train_what_one_process_trains(trained):
    """Unequal token counts, dropout and clipping on, five micro-batches of an update, validation shared."""
    one, two = weights(trained / "one", 0), weights(trained / "two", 0)
    assert len(one["norms"]) == STEPS
    assert one["norms"].min() > CLIP
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-6)
    for name, values in one.items():
        if name.startswith("weight.") and values.shape == (48,):  # the key's bias has no gradient but rounding
            np.testing.assert_allclose(np.delete(two[name], range(16, 32)), np.delete(values, range(16, 32)), atol=1e-6)
        else:
            np.testing.assert_allclose(two[name], values, atol=1e-6, rtol=1e-5 if name == "norms" else 0)


@pytest.mark.tensorflow
def test_all_workers_have_the_same_weights(trained):
    chief, other = weights(trained / "two", 0), weights(trained / "two", 1)
    assert all(np.array_equal(chief[name], other[name]) for name in chief)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_all_with_a_line_and_the_same_command_goes_on(trained, tmp_path):
    began = time.monotonic()
    (chief_code, chief_lines), (other_code, _) = run_workers(tmp_path, (None, 7))
    assert (chief_code, other_code) == (2, -9)
    assert len(chief_lines) == 1
    assert chief_lines[0].startswith("error: worker 1 (127.0.0.1:")
    assert "was lost" in chief_lines[0]
    assert time.monotonic() - began < 200
    (chief_code, _), (other_code, other_lines) = run_workers(tmp_path, (10, None))
    assert (chief_code, other_code) == (-9, 2)
    assert len(other_lines) == 1
    assert other_lines[0].startswith("error: the chief (127.0.0.1:")
    assert run_workers(tmp_path, BOTH) == [(0, []), (0, [])]
    for index in (0, 1):
        again, never_stopped = weights(tmp_path, index), weights(trained / "two", index)
        for name in (name for name in again if name.startswith("weight.")):
            np.testing.assert_array_equal(again[name], never_stopped[name])


@pytest.mark.tensorflow
def test_the_method_of_keras_that_is_overridden_is_still_there():
    """``TrainedGPT2._maybe_symbolic_build`` mends fit with several workers: keras issue 20585, seen in Keras 3.15."""
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    parameters = inspect.signature(TensorFlowTrainer._maybe_symbolic_build).parameters
    assert list(parameters) == ["self", "iterator", "data_batch"]
    for method in (TensorFlowTrainer.fit, TensorFlowTrainer.evaluate):
        assert "_maybe_symbolic_build(iterator=" in inspect.getsource(method)
