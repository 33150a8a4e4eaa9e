"""Random GPT-2 checkpoints in Megatron's layouts, and the same weights as a model of transformers.

Nothing here uses the project's code for names or splitting: a mistake there would be made here too, and go unnoticed.
The rules are those of ``mpu/layers.py`` (the initialisation of the parallel layers) and ``utils.py`` of CPM-1-Generate.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from tf_model.config import GPT2Config

State = dict[str, torch.Tensor]
Edit = Callable[[int, dict[str, Any]], None]


def random_state(config: GPT2Config, rng: np.random.Generator) -> State:
    """Make whole float32 tensors under Megatron's names; logits have a standard deviation of about 5.

    No bias is zero and no layer norm is trivial, and matrices are large enough that leaving one out shows.
    """
    h, inner = config.n_embd, config.n_inner

    def normal(*shape: int, scale: float, mean: float = 0.0) -> torch.Tensor:
        return torch.from_numpy((mean + scale * rng.standard_normal(shape)).astype(np.float32))

    def norm(name: str) -> State:
        return {f"{name}.weight": normal(h, scale=0.2, mean=1.0), f"{name}.bias": normal(h, scale=0.1)}

    def linear(name: str, out: int, inputs: int) -> State:
        weight = normal(out, inputs, scale=1 / math.sqrt(inputs))
        return {f"{name}.weight": weight, f"{name}.bias": normal(out, scale=0.2)}

    state = {
        "word_embeddings.weight": normal(config.vocab_size, h, scale=5 / math.sqrt(h)),
        "position_embeddings.weight": normal(config.n_positions, h, scale=0.3),
    }
    for i in range(config.n_layer):
        layer = f"transformer.layers.{i}"
        state |= norm(f"{layer}.input_layernorm")
        state |= linear(f"{layer}.attention.query_key_value", 3 * h, h)
        state |= linear(f"{layer}.attention.dense", h, h)
        state |= norm(f"{layer}.post_attention_layernorm")
        state |= linear(f"{layer}.mlp.dense_h_to_4h", inner, h)
        state |= linear(f"{layer}.mlp.dense_4h_to_h", h, inner)
    return state | norm("transformer.final_layernorm")


def shards(state: State, p: int) -> list[State]:
    """Cut tensors into what each of ``p`` ranks holds, as upstream's parallel layers cut their master weights."""

    def cut(name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        module, kind = name.split(".")[-2:]
        if module == "query_key_value":
            # ColumnParallelLinear with stride 3: chunks of 1/(3p) of the rows, every p-th of them is the rank's
            chunks = torch.split(tensor, tensor.shape[0] // p // 3, dim=0)
            return [torch.cat(chunks[rank::p], dim=0) for rank in range(p)]
        if module in ("word_embeddings", "dense_h_to_4h"):
            return list(torch.chunk(tensor, p, dim=0))
        if module in ("dense", "dense_4h_to_h") and kind == "weight":
            return list(torch.chunk(tensor, p, dim=1))
        return [tensor] * p

    pieces = {name: cut(name, tensor) for name, tensor in state.items()}
    return [{name: parts[rank].contiguous().clone() for name, parts in pieces.items()} for rank in range(p)]


def _vanishing_object() -> Any:
    """Make an instance of a class that can be pickled now and that no reader of the file has."""
    module = types.ModuleType("somebodys_training_code")
    exec("class LossScaler:\n    def __init__(self):\n        self.cur_scale = 4096.0", module.__dict__)
    sys.modules[module.__name__] = module
    return module.LossScaler()


def _extras(p: int, iteration: int | str) -> dict[str, Any]:
    """Return what DeepSpeed and the training scripts save next to the weights."""
    return {
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(5)}}, "loss_scaler": _vanishing_object()},
        "lr_scheduler": {"start_lr": 1e-5, "num_iters": 3},
        "csr_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 3,
        "global_samples": None,
        "dp_world_size": 1,
        "mp_world_size": p,
        "iteration": iteration if isinstance(iteration, int) else 80000,
        "args": argparse.Namespace(num_layers=2, fp16=True),
        "random_rng_state": random.Random(1).getstate(),
        "np_rng_state": np.random.RandomState(1).get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": None,
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }


def write_megatron(
    root: Path,
    state: State,
    p: int,
    *,
    layout: Literal["deepspeed", "megatron"] = "deepspeed",
    key: Literal["module", "model"] = "module",
    iteration: int | Literal["release"] = 80000,
    dtype: torch.dtype | None = None,
    extras: bool = True,
    legacy: bool = False,
    edit: Edit | None = None,
) -> list[Path]:
    """Write ``state`` below ``root``, split over ``p`` ranks, and the tracker file.

    Args:
        dtype: the type of all tensors; None leaves each as it is.
        extras: whether the files have what training adds, and the folder the files that lie next to them.
        legacy: the serialisation of torch before 1.6.
        edit: called with each rank and the dict to be saved, to spoil it.

    Returns:
        The files of the ranks, rank 0 first.
    """
    name = str(iteration) if layout == "deepspeed" or iteration == "release" else f"iter_{iteration:07d}"
    folder = root / name
    folder.mkdir(parents=True)
    files = []
    for rank, tensors in enumerate(shards(state, p)):
        content: dict[str, Any] = _extras(p, iteration) if extras else {}
        content[key] = {n: t if dtype is None else t.to(dtype) for n, t in tensors.items()}
        if edit:
            edit(rank, content)
        file = folder / (
            f"mp_rank_{rank:02d}_model_states.pt" if layout == "deepspeed" else f"mp_rank_{rank:02d}/model_optim_rng.pt"
        )
        file.parent.mkdir(exist_ok=True)
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        files.append(file)
        if extras:
            torch.save({"optimizer": None}, folder / f"zero_pp_rank_0_mp_rank_{rank:02d}_optim_states.pt")
            (folder / f"._mp_rank_{rank:02d}_model_states.pt").write_bytes(b"\0\5\26\7")
    sys.modules.pop("somebodys_training_code", None)
    (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    if extras:
        (root / "latest").write_text(str(iteration))
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return files


_TRANSFORMERS = {
    "input_layernorm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.dense": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.dense_h_to_4h": "mlp.c_fc",
    "mlp.dense_4h_to_h": "mlp.c_proj",
}


def fill_transformers(state: State, config: GPT2Config) -> transformers.GPT2LMHeadModel:
    """Make the model of transformers with the weights of ``state``: float32, for inference, without dropout.

    Linear layers of transformers' GPT-2 are ``Conv1D``, whose weights are ``[in, out]``.
    """
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_inner=config.n_inner,
            activation_function="gelu_new",
            layer_norm_epsilon=1e-5,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=True,
            attn_implementation="eager",
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    weights = {
        "transformer.wte.weight": state["word_embeddings.weight"],
        "transformer.wpe.weight": state["position_embeddings.weight"],
        "transformer.ln_f.weight": state["transformer.final_layernorm.weight"],
        "transformer.ln_f.bias": state["transformer.final_layernorm.bias"],
        "lm_head.weight": state["word_embeddings.weight"],
    }
    for i in range(config.n_layer):
        for theirs, ours in _TRANSFORMERS.items():
            weight, bias = (state[f"transformer.layers.{i}.{theirs}.{kind}"] for kind in ("weight", "bias"))
            weights[f"transformer.h.{i}.{ours}.weight"] = weight.t() if weight.ndim == 2 else weight
            weights[f"transformer.h.{i}.{ours}.bias"] = bias
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in weights.items()}, strict=True)
    return model.eval()
