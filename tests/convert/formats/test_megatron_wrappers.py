"""State dicts of CPM and of Megatron-LM under other keys, names and files than those that their programs choose."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from convert.formats.registry import open_checkpoint
from convert.verification.checkpoint_logits import write_reference_logits
from convert.verification.megatron_forward import MegatronReference
from support.errors import CheckpointError
from tests.convert.formats.test_cpm import megatron_name
from tests.helpers.checkpoints import State, fill_transformers, random_state
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=72, n_positions=20, n_embd=32, n_layer=3, n_head=4)
STATE = random_state(CONFIG, np.random.default_rng(11))
HEADS, WIDTH = 4, 8


def prefixed(prefix: str, state: State = STATE) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


CPM: dict[str, tuple[str, Callable[[], Any]]] = {
    "DeepSpeed's": ("a.pt", lambda: {"module": STATE}),
    "Megatron's": ("a.bin", lambda: {"model": STATE, "iteration": 3}),
    "bare": ("weights.pth", lambda: STATE),
    "Lightning's": ("last.ckpt", lambda: {"state_dict": prefixed("model."), "epoch": 3}),
    "DDP's": ("a.pt", lambda: {"model_state_dict": prefixed("module.")}),
    "compiled": ("a.pt", lambda: prefixed("_orig_mod.")),
    "wrapped twice": ("a.pt", lambda: {"module": prefixed("module.module.")}),
    "compiled and wrapped": ("a", lambda: {"state": {"model": prefixed("_orig_mod.module.")}, "step": 9}),
}


@pytest.mark.parametrize("case", CPM)
@pytest.mark.parametrize("as_folder", [False, True])
def test_cpms_names_are_found_whatever_is_around_them(case: str, as_folder: bool, tmp_path: Path) -> None:
    name, content = CPM[case]
    torch.save(content(), tmp_path / name)
    found = open_checkpoint(tmp_path if as_folder else tmp_path / name, heads=HEADS)
    assert found.info.format == "megatron"
    for canonical in CONFIG.tensor_shapes():
        expected = STATE[megatron_name(canonical)].numpy()
        assert np.array_equal(found.read(canonical, np.dtype(np.float32)), expected), canonical
    reference, ids = MegatronReference([tmp_path / name], HEADS), [3, 9, 27, 71]
    write_reference_logits(reference, [ids], tmp_path / "logits")
    logits = np.fromfile(tmp_path / "logits", np.float32).reshape(4, -1)
    with torch.inference_mode():
        expected = fill_transformers(STATE, CONFIG)(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["model.safetensors", "anything.safetensors"])
def test_cpms_names_in_safetensors_are_found(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(prefixed("module."), tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        found = open_checkpoint(path, heads=HEADS)
        assert found.info.format == "megatron"
        assert np.array_equal(found.read("wpe.weight", np.dtype(np.float32)), STATE["position_embeddings.weight"])


def test_the_heads_in_args_are_taken(tmp_path: Path) -> None:
    torch.save({"module": STATE, "args": argparse.Namespace(num_attention_heads=8)}, tmp_path / "a.pt")
    assert open_checkpoint(tmp_path / "a.pt").config.n_head == 8


def interleaved(tensor: torch.Tensor) -> torch.Tensor:
    """Return Q, K and V head by head: ``[heads, 3, head_dim]``, as ``SelfAttention`` of Megatron-Core has the rows."""
    thirds = [third.reshape(HEADS, WIDTH, *tensor.shape[1:]) for third in tensor.chunk(3)]
    return torch.stack(thirds, 1).reshape(tensor.shape).clone()


CORE = {
    "attention.query_key_value.": "self_attention.linear_qkv.",
    "attention.dense.": "self_attention.linear_proj.",
    "mlp.dense_h_to_4h.": "mlp.linear_fc1.",
    "mlp.dense_4h_to_h.": "mlp.linear_fc2.",
}
NORMS = {
    "local": {"post_attention_layernorm.": "pre_mlp_layernorm."},
    "transformer engine": {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "post_attention_layernorm.": "mlp.linear_fc1.layer_norm_",
    },
}


def legacy(layers: str, attention: str = "attention") -> State:
    """Return the tensors under the names that the state dict of ``GPTModel`` has in Megatron-LM before Core."""
    state = {}
    for name, tensor in STATE.items():
        value = interleaved(tensor) if "query_key_value" in name else tensor
        if name.startswith("transformer."):
            place = name.removeprefix("transformer.").replace("attention.", f"{attention}.", 1)
            place = place.replace(f"post_{attention}_", "post_attention_")
            state[f"language_model.{layers}.{place}"] = value
        else:
            state[f"language_model.embedding.{name}"] = value
    return state


def core(spec: str) -> State:
    """Return the tensors under the names of ``GPTModel`` in Megatron-Core."""
    state: dict[str, Any] = {}
    for name, tensor in STATE.items():
        value = interleaved(tensor) if "query_key_value" in name else tensor
        if not name.startswith("transformer."):
            state[f"embedding.{name}"] = value
            continue
        for old, new in (*CORE.items(), *NORMS[spec].items()):
            if f".{old}" in name:
                name = name.replace(f".{old}", f".{new}", 1)
                break
        state[name.replace("transformer.", "decoder.", 1)] = value
    for layer in range(CONFIG.n_layer):
        state[f"decoder.layers.{layer}.self_attention.core_attention._extra_state"] = torch.zeros(5, dtype=torch.uint8)
        state[f"decoder.layers.{layer}.mlp.linear_fc1._extra_state"] = None
    return state


def nested(state: State) -> dict[str, Any]:
    """Return the dict of dicts that ``state_dict_for_save_checkpoint`` makes, layers in one dict."""
    top: dict[str, Any] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        depth = next((i for i, part in enumerate(parts) if part in ("layers", "final_layernorm")), len(parts) - 1)
        at = top
        for part in parts[:depth]:
            at = at.setdefault(part, {})
        at[".".join(parts[depth:])] = tensor
    return top


VERSION = {"checkpoint_version": 3.0, "iteration": 5}
MEGATRON_LM: dict[str, Callable[[], Any]] = {
    "nested": lambda: {"model": nested(legacy("encoder", "self_attention")), **VERSION},
    "nested, older": lambda: {"model": nested(legacy("transformer")), **VERSION},
    "flat": lambda: {"model": legacy("encoder", "self_attention"), **VERSION},
    "flat and wrapped": lambda: {"model": prefixed("module.module.", legacy("encoder", "self_attention")), **VERSION},
    "compiled": lambda: {"module": prefixed("_orig_mod.", legacy("transformer")), **VERSION},
    "Core, local": lambda: {"model": core("local"), "checkpoint_version": 3.0},
    "Core, Transformer Engine": lambda: {"model": core("transformer engine"), "checkpoint_version": 3.0},
    "Core, wrapped": lambda: {"model": prefixed("module.", core("transformer engine"))},
    "Core, bare": lambda: core("local"),
    "Core, under state_dict": lambda: {"state_dict": prefixed("module.", core("local")), "epoch": 1},
}


@pytest.mark.parametrize("case", MEGATRON_LM)
@pytest.mark.parametrize("place", ["iter_0000005/mp_rank_00/model_rng.pt", "my-model.pt"])
def test_megatron_lms_names_are_found_whatever_is_around_them(case: str, place: str, tmp_path: Path) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(MEGATRON_LM[case](), file)
    if "iter" in place:
        (tmp_path / "latest_checkpointed_iteration.txt").write_text("5")
    for path in (file, tmp_path):
        found = open_checkpoint(path, heads=HEADS)
        assert found.info.format == "megatron-lm"
        assert found.config == CONFIG
        for canonical in CONFIG.tensor_shapes():
            expected = STATE[megatron_name(canonical)].numpy()
            assert np.array_equal(found.read(canonical, np.dtype(np.float32)), expected), canonical


def test_cores_tied_copy_on_the_last_stage_is_no_head_of_its_own(tmp_path: Path) -> None:
    args = argparse.Namespace(untie_embeddings_and_output_weights=False, num_attention_heads=HEADS)
    for stage, layers in enumerate((range(2), range(2, 3))):
        state = {}
        for name, tensor in core("local").items():
            layer = int(name.split(".")[2]) if ".layers." in name else None
            if layer in layers or (layer is None and name.startswith("embedding") == (stage == 0)):
                state[name.replace(f"layers.{layer}.", f"layers.{(layer or 0) - layers[0]}.")] = tensor
        if stage:
            state["output_layer.weight"] = STATE["word_embeddings.weight"].clone()
        file = tmp_path / f"mp_rank_00_{stage:03d}" / "model_optim_rng.pt"
        file.parent.mkdir()
        torch.save({"model": state, "args": args}, file)
    found = open_checkpoint(tmp_path)
    assert found.config.tie_word_embeddings
    assert np.array_equal(found.read("h.2.ln_1.bias", np.dtype(np.float32)), STATE[megatron_name("h.2.ln_1.bias")])


BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "virtual stages": (
        lambda: {"model0": core("local"), "model1": core("local")},
        "has several virtual stages of a pipeline (model0, model1, ...), which are not read: load it in Megatron-LM",
    ),
    "a layer of Core is missing": (
        lambda: {"model": {n: t for n, t in core("local").items() if ".layers.1." not in n}},
        "12 missing tensors: layers.1.input_layernorm.weight",
    ),
    "an expert": (
        lambda: {"model": core("local") | {"decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight": STATE}},
        "unexpected tensor",
    ),
    "norms of queries": (
        lambda: {"model": core("local") | {"decoder.layers.0.self_attention.q_layernorm.weight": torch.ones(8)}},
        "1 unexpected tensor: layers.0.attention.q_layernorm.weight",
    ),
    "two models": (
        lambda: {"model": legacy("encoder") | legacy("transformer")},
        "two tensors are layers.0.input_layernorm.weight",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_gpt2_of_megatron_lms_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, words = BROKEN[case]
    torch.save(content(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "a.pt", heads=HEADS, format="megatron-lm")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


LOOKED_FOR_BELOW: dict[str, tuple[str, str, Callable[[], Any], str]] = {
    "ZeRO-3, CPM": (
        "latest",
        "global_step7/mp_rank_00_model_states.pt",
        lambda: {"module": {name: torch.empty(0) for name in STATE}},
        "its tensors have the shape [0], as ZeRO-3 saves them: run DeepSpeed's zero_to_fp32.py",
    ),
    "ZeRO-3, Megatron-LM": (
        "latest",
        "global_step7/mp_rank_00_model_states.pt",
        lambda: {"module": {name: torch.empty(0) for name in legacy("encoder")}},
        "its tensors have the shape [0], as ZeRO-3 saves them",
    ),
    "ZeRO-3, parts": (
        "latest",
        "global_step7/zero_pp_rank_0_mp_rank_00_model_states.pt",
        lambda: {"module": {}},
        "a ZeRO-3 checkpoint of DeepSpeed",
    ),
    "a file for each layer": (
        "latest_checkpointed_iteration.txt",
        "global_step7/layer_01-model_00-model_states.pt",
        dict,
        "a checkpoint of Megatron-DeepSpeed with a file for each layer",
    ),
    "distributed": (
        "latest_checkpointed_iteration.txt",
        "iter_0000007/__0_0.distcp",
        dict,
        "a distributed checkpoint of PyTorch",
    ),
}


@pytest.mark.parametrize("case", LOOKED_FOR_BELOW)
def test_what_lies_in_the_folder_of_an_iteration_is_named(case: str, tmp_path: Path) -> None:
    tracker, name, content, words = LOOKED_FOR_BELOW[case]
    (tmp_path / tracker).write_text("global_step7" if tracker == "latest" else "7")
    (tmp_path / name).parent.mkdir()
    torch.save(content(), tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path, heads=HEADS)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
