"""A checkpoint with random weights, and what has to be done to it, for the tests of ``verify``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from convert.__main__ import main
from convert.checkpoint import Checkpoint
from convert.formats import registry
from exports.assets import write_assets
from exports.saved_model import write_saved_model
from tests.helpers.checkpoints import random_state
from tf_model.config import GPT2Config
from tokenization.special_tokens import CPM_TOKENS

CONFIG = GPT2Config(vocab_size=96, n_positions=40, n_embd=48, n_layer=3, n_head=12)
STATE = random_state(CONFIG, np.random.default_rng(0))


def open_checkpoint(root: Path) -> Checkpoint:
    """Open CPM's shards in ``root``."""
    return registry.open_checkpoint(root, heads=CONFIG.n_head)


Read = Callable[[str, Any], np.ndarray]
BrokenRead = Callable[[Read, str, Any], np.ndarray]
"""Given the right reader, a tensor's name and the type: what a broken reader would give."""


def convert(root: Path, folder: Path, dtype: str = "float32", broken: BrokenRead | None = None) -> Path:
    """Write the SavedModel of the checkpoint in ``root``, as ``pytorch-to-tf`` does, with the signature ``logits``."""
    checkpoint = open_checkpoint(root)
    read = checkpoint.read if broken is None else functools.partial(broken, checkpoint.read)
    folder.mkdir()
    write_saved_model(folder, checkpoint.config, dtype, CPM_TOKENS, read, signatures=("logits",))
    write_assets(folder / "assets", checkpoint.config, dtype, CPM_TOKENS, None)
    return folder


def run_verify(root: Path, folder: Path, *options: str) -> int:
    """Run the command in this process."""
    return main(["verify", str(root), str(folder), "--heads", "12", *options])
