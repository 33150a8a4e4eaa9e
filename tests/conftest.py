"""What all tests share: where the data is, and quiet libraries."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a script, and on some CI systems. Tests send SIGINT to themselves and to processes that
    # they start, which would inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("GPT2_SAVEDMODEL_SHARED", ROOT.parent / "shared"))
"""Vocabularies and texts that are not in the repository."""


def shared(path: str) -> Path:
    """A file or folder of the shared data; the test is skipped where it is not there."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"no {path} in {SHARED}: set GPT2_SAVEDMODEL_SHARED to the folder that has it")
    return found


INT8 = pytest.param("int8", marks=pytest.mark.int8)
"""For tests that compute with it."""


@functools.cache
def _computes_int8() -> bool:
    import tensorflow as tf

    from tf_model.quantization import is_exact

    return bool(tf.function(is_exact)())


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector, which runs after each graph that is written, can leave it out."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("int8") and not _computes_int8():
        pytest.skip("int8 needs a processor with VNNI instructions")


@pytest.fixture(scope="session")
def cpm_vocabulary() -> Path:
    return shared("vocab/cpm")


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo checkpoint, with its tokenizer in ``tokenizer/``."""
    return ROOT / "demo" / "song-ci"


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that ``make`` writes, once for all processes that run tests; ``name`` is its own."""
    base = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(new := Path(tempfile.mkdtemp(dir=base)))
            new.rename(folder)
    return folder


@pytest.fixture(scope="session")
def song_ci(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SavedModel of the demo, as ``python -m demo`` converts it."""
    from convert.__main__ import main

    def make(folder: Path) -> None:
        arguments = ["--checkpoint", str(demo), "--tokenizer", str(demo / "tokenizer"), "--heads", "4"]
        assert main(["pytorch-to-tf", *arguments, "--output", str(folder / "model"), "--quiet"]) == 0

    return once(tmp_path_factory, "song-ci", make) / "model"
