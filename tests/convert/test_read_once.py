"""Opening a checkpoint parses the pickle of each of its files once, whoever looks at it on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.convert.formats import test_megatron_lm, test_uer
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.huggingface import random_model
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=96, n_positions=40, n_embd=48, n_layer=2, n_head=4)

COUNT_OPENS = """
import collections, json, os, sys

root, opened = sys.argv[1], collections.Counter()

def count(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        path = os.path.abspath(os.fspath(arguments[0]))
        if path.startswith(root):
            opened[os.path.relpath(path, root)] += 1

from convert.formats.registry import open_checkpoint

sys.addaudithook(count)
open_checkpoint(root, heads=4)
print(json.dumps(opened))
"""


def opens_of(root: Path) -> dict[str, int]:
    """Open the checkpoint at ``root`` in a process of its own, and return how often each of its files was opened."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, "-c", COUNT_OPENS, str(root)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    opens: dict[str, int] = json.loads(done.stdout)
    return opens


def save_huggingface(folder: Path, files: int) -> None:
    """Write ``pytorch_model.bin``, or as many shards and their index."""
    model = random_model()
    model.config.save_pretrained(folder)
    state = model.state_dict()
    if files == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    file_of = {name: f"pytorch_model-{number % files}.bin" for number, name in enumerate(state)}
    for file in set(file_of.values()):
        torch.save({name: tensor for name, tensor in state.items() if file_of[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": file_of}))


def write_cpm(root: Path, *, legacy: bool = False) -> None:
    write_megatron(root, random_state(CONFIG, np.random.default_rng(7)), 2, legacy=legacy)


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "CPM, two shards": write_cpm,
    "CPM, two shards of old PyTorch": lambda root: write_cpm(root, legacy=True),
    "Megatron-LM, two ranks of two stages": lambda root: test_megatron_lm.write(root, 2.0, 2, 2, args=None),
    "UER": lambda root: test_uer.save(root, test_uer.random_state()),
    "Hugging Face, one file": lambda root: save_huggingface(root, 1),
    "Hugging Face, an index": lambda root: save_huggingface(root, 2),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_each_pickle_is_parsed_once(name: str, tmp_path: Path) -> None:
    CHECKPOINTS[name](tmp_path)
    weights = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.suffix in (".pt", ".bin")}
    weights = {path for path in weights if "optim_states" not in path and not Path(path).name.startswith("._")}
    opens = opens_of(tmp_path)
    # The first bytes of a file that may be anything are looked at before.
    assert {path for path, count in opens.items() if count <= 2} >= weights
