"""State dicts as people have them: under any name, in any dict, with any prefix; known by their tensors."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError
from tests.convert.formats import test_uer
from tests.helpers.checkpoints import random_state
from tests.helpers.huggingface import SIZES, random_model
from tf_model.config import GPT2Config

State = dict[str, torch.Tensor]
CONFIG = GPT2Config(SIZES["vocab_size"], SIZES["n_positions"], SIZES["n_embd"], SIZES["n_layer"], SIZES["n_head"])
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}]}


def states() -> dict[str, State]:
    """Return a random model's state dict by the name of its format."""
    return {
        "huggingface": dict(random_model(4).state_dict()),
        "uer": test_uer.random_state(),
        "megatron": random_state(CONFIG, np.random.default_rng(5)),
    }


FIRST = {
    "huggingface": {"ln_f.bias": "transformer.ln_f.bias", "wte.weight": "transformer.wte.weight"},
    "uer": {"ln_f.bias": "encoder.layer_norm.beta", "wte.weight": "embedding.word.embedding.weight"},
    "megatron": {"ln_f.bias": "transformer.final_layernorm.bias", "wte.weight": "word_embeddings.weight"},
}
"""Format -> canonical name -> the name in its state dict."""


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def torch_file(name: str, wrap: Callable[[State], Any]) -> Callable[[Path, State], Path]:
    def save(folder: Path, state: State) -> Path:
        torch.save(wrap(state), folder / name)
        return folder / name

    return save


def alone_in_a_folder(name: str, wrap: Callable[[State], Any]) -> Callable[[Path, State], Path]:
    def save(folder: Path, state: State) -> Path:
        torch_file(name, wrap)(folder, state)
        (folder / "README.md").write_text("how it was made")
        torch.save(OPTIMIZER, folder / "optimizer.pt")
        return folder

    return save


def deepspeed(tag: str, tracker: str, wrap: Callable[[State], Any]) -> Callable[[Path, State], Path]:
    def save(folder: Path, state: State) -> Path:
        (folder / tag).mkdir()
        (folder / tracker).write_text(tag)
        torch.save({"module": wrap(state), "dp_world_size": 4}, folder / tag / "mp_rank_00_model_states.pt")
        torch.save({}, folder / tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
        return folder

    return save


def bare_safetensors(folder: Path, state: State) -> Path:
    whole = {name: tensor.clone().contiguous() for name, tensor in prefixed(state, "gpt.").items()}
    safetensors.torch.save_file(whole, folder / "weights_v2.safetensors")
    return folder / "weights_v2.safetensors"


LAYOUTS: dict[str, Callable[[Path, State], Path]] = {
    "alone, with no ending": torch_file("epoch_7", lambda s: s),
    "in the format before PyTorch 1.6": lambda folder, state: (
        torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False),
        folder / "old.pth",
    )[1],
    "a loop's dict": torch_file("step.tar", lambda s: {"epoch": 2, "net": s, "optimizer": OPTIMIZER, "loss": 0.5}),
    "a key that nobody knows": torch_file("x.pt", lambda s: {"policy_weights": s, "rng": torch.ones(5)}),
    "two dicts deep": torch_file("y.pt", lambda s: {"checkpoint": {"model_state": prefixed(s, "module.")}}),
    "Lightning": torch_file(
        "last.ckpt", lambda s: {"state_dict": prefixed(s, "lm.net."), "hyper_parameters": {"a": 1}}
    ),
    "an ordered dict": torch_file("o.pt", lambda s: collections.OrderedDict(prefixed(s, "_orig_mod._module."))),
    "with its moving average": torch_file("e.pt", lambda s: {"ema": {k: v + 1 for k, v in s.items()}, "model": s}),
    "with an average of its own weights in it": torch_file(
        "f.pt", lambda s: {**s, "ema": {name: tensor * 2 for name, tensor in s.items()}}
    ),
    "with a part of an average": torch_file("p.pt", lambda s: {"weights": s, "ema": dict(list(s.items())[:2])}),
    "with moments by the names of the weights": torch_file(
        "m.pt",
        lambda s: {
            "app": {"net": s, "optim": {"state": {name: {"exp_avg": tensor * 3} for name, tensor in s.items()}}}
        },
    ),
    "with moments next to the weights": torch_file(
        "n.pt", lambda s: {"model": s, **{f"optim.state.{name}.exp_avg": tensor * 3 for name, tensor in s.items()}}
    ),
    "safetensors of any name": bare_safetensors,
    "a folder with one file": alone_in_a_folder("gpt2_lyric.bin-20000", lambda s: s),
    "a folder with a file without ending": alone_in_a_folder("weights", lambda s: {"state": s}),
    "DeepSpeed": deepspeed("global_step300", "latest", lambda s: s),
    "DeepSpeed of a wrapper": deepspeed("300", "latest", lambda s: prefixed(s, "_forward_module.model.")),
}


@pytest.mark.parametrize("format", ["huggingface", "uer", "megatron"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_dict_is_known_by_its_tensors(layout: str, format: str, tmp_path: Path) -> None:
    state = states()[format]
    checkpoint = open_checkpoint(LAYOUTS[layout](tmp_path, state), heads=4)
    assert checkpoint.info.format == format
    for canonical, name in FIRST[format].items():
        found = checkpoint.read(canonical, np.dtype(np.float32))
        assert np.array_equal(found, state[name].numpy()), canonical


def test_an_average_that_is_not_taken_is_named(tmp_path: Path) -> None:
    state = states()["huggingface"]
    torch.save({**state, "ema": {name: tensor * 2 for name, tensor in state.items()}}, tmp_path / "m.pt")
    assert open_checkpoint(tmp_path / "m.pt", heads=4).info.left_out == ("ema",)


def test_names_that_are_too_long_take_no_time(tmp_path: Path) -> None:
    names = {f"{'h.1.' * 200}{number}": torch.ones(1) for number in range(4000)}
    torch.save({**states()["huggingface"], **names}, tmp_path / "m.pt")
    started = time.monotonic()
    open_checkpoint(tmp_path / "m.pt", heads=4)
    assert time.monotonic() - started < 5


def test_what_stands_next_to_the_model_is_named(tmp_path: Path) -> None:
    torch.save({"model": states()["huggingface"], "optimizer": OPTIMIZER, "step": 3}, tmp_path / "m.pt")
    assert open_checkpoint(tmp_path / "m.pt", heads=4).info.left_out == ("optimizer",)


def _two_models(folder: Path) -> None:
    state = states()["huggingface"]
    torch.save({"actor": state, "critic": state}, folder / "m.pt")


def _two_files(folder: Path) -> None:
    for name in ("best.pt", "last.pt"):
        torch.save(states()["uer"], folder / name)


def _cut(folder: Path) -> None:
    torch.save(states()["uer"], folder / "best.pt")
    (folder / "best.pt").write_bytes((folder / "best.pt").read_bytes()[:-900])


def _many_times(folder: Path) -> None:
    value: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(30):
        value = {str(number): value for number in range(8)}
    torch.save({"model": value, **states()["uer"]}, folder / "m.pt")


def _in_itself(folder: Path) -> None:
    value: dict[str, Any] = {"x": torch.ones(1)}
    value["model"] = value
    torch.save(value, folder / "m.pt")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "two models in a file": (_two_models, "two models: actor.transformer.wte.weight and critic.transformer.wte"),
    "two files": (_two_files, "2 files with weights: best.pt, last.pt: give one as the path"),
    "a file that is cut": (_cut, "best.pt: "),
    "a dict that is there many times": (_many_times, "entries in nested dicts"),
    "a dict inside itself": (_in_itself, "m.pt"),
    "a shard without its index": (
        lambda f: torch.save(states()["uer"], f / "model-00001-of-00002.bin"),
        "model.bin.index.json: is missing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_single_model_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, words = REFUSED[case]
    make(tmp_path)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint(tmp_path, heads=4)
    assert "\n" not in str(error.value)
