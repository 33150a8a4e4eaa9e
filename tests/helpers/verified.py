"""A checkpoint with random weights, and what has to be done to it, for the tests of ``verify``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.checkpoint import Checkpoint
from convert.formats.megatron.cpm import open_megatron
from exports.assets import write_assets
from exports.saved_model import write_saved_model
from tests.helpers.checkpoints import random_state
from tests.helpers.light import logits_alone, main
from tf_model.config import GPT2Config
from tokenization.special_tokens import CPM_TOKENS

CONFIG = GPT2Config(vocab_size=96, n_positions=40, n_embd=48, n_layer=3, n_head=12)
STATE = random_state(CONFIG, np.random.default_rng(0))


def open_checkpoint(root: Path) -> Checkpoint:
    return open_megatron(root, n_head=CONFIG.n_head)


def convert(root: Path, folder: Path, dtype: str = "float32") -> Path:
    """The SavedModel of the checkpoint in ``root``, as ``pytorch-to-tf`` writes it, with one signature."""
    checkpoint = open_checkpoint(root)
    folder.mkdir()
    with logits_alone():
        write_saved_model(folder, checkpoint.config, dtype, CPM_TOKENS, checkpoint.read)
    write_assets(folder / "assets", checkpoint.config, dtype, CPM_TOKENS, None)
    return folder


def run(root: Path, folder: Path, *options: str) -> int:
    """The command, in this process."""
    return main(["verify", str(root), str(folder), "--heads", "12", *options])


def assert_refused(code: int, words: str, capture: pytest.CaptureFixture[str]) -> None:
    """One line, code 2, nothing on stdout."""
    out, err = capture.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
