"""The ``args`` of Megatron-LM: each that changes the maths is used, against float64 NumPy, or refused by its name."""

from __future__ import annotations

import argparse
import enum
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.formats.registry import open_checkpoint
from convert.verification.checkpoint_logits import any_reference, write_reference_logits
from support.errors import CheckpointError
from tests.helpers.checkpoints import random_state
from tf_model.config import GPT2Config

V, S, H, HEADS, LAYERS = 40, 12, 24, 4, 2
STATE = random_state(GPT2Config(V, S, H, LAYERS, HEADS), np.random.default_rng(17))
IDS = [3, 1, 39, 20, 7, 7, 11]


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def logits64(gelu: Callable[[np.ndarray], np.ndarray], epsilon: float) -> np.ndarray:
    """Return the logits of ``IDS`` in float64, by the formulas of Megatron-LM's ``transformer.py``."""
    weights = {name: tensor.double().numpy() for name, tensor in STATE.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = weights["word_embeddings.weight"][IDS] + weights["position_embeddings.weight"][: len(IDS)]
    for layer in range(LAYERS):
        name = f"transformer.layers.{layer}"
        mixed = linear(norm(x, f"{name}.input_layernorm"), f"{name}.attention.query_key_value")
        query, key, value = (part.reshape(len(IDS), HEADS, -1).swapaxes(0, 1) for part in np.split(mixed, 3, -1))
        scores = query @ key.swapaxes(1, 2) / math.sqrt(H // HEADS)
        scores = np.where(np.tri(len(IDS), dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        context = (shares / shares.sum(-1, keepdims=True) @ value).swapaxes(0, 1).reshape(len(IDS), H)
        x = x + linear(context, f"{name}.attention.dense")
        inner = gelu(linear(norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp.dense_h_to_4h"))
        x = x + linear(inner, f"{name}.mlp.dense_4h_to_h")
    return norm(x, "transformer.final_layernorm") @ weights["word_embeddings.weight"].T


def write(root: Path, args: Any) -> Path:
    """Save the model as Megatron-LM does, with rows of Q, K and V in the order of version 0."""
    embedding = {name.removesuffix(".weight"): {"weight": STATE[name]} for name in STATE if "embeddings" in name}
    layers = {name.removeprefix("transformer."): t for name, t in STATE.items() if name.startswith("transformer.")}
    content = {"model": {"language_model": {"embedding": embedding, "transformer": layers}}}
    torch.save(content if args is None else {**content, "args": args}, root / "model_optim_rng.pt")
    return root / "model_optim_rng.pt"


class PositionEmbeddingType(enum.Enum):
    rotary, absolute, alibi = 1, 2, 3


def as_megatron_deepspeed(member: str) -> Any:
    """Return a member of an enumeration that lies in a module of Megatron-DeepSpeed."""
    module = types.ModuleType("megatron.enums")
    PositionEmbeddingType.__module__, module.PositionEmbeddingType = "megatron.enums", PositionEmbeddingType  # type: ignore[attr-defined]
    sys.modules.setdefault("megatron", types.ModuleType("megatron"))
    sys.modules["megatron.enums"] = module
    return PositionEmbeddingType[member]


HERE = {"num_attention_heads": HEADS, "hidden_size": H, "num_layers": LAYERS}
USED: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray], float]] = {
    "nothing said": ({}, tanh_gelu, 1e-5),
    "fused": ({"bias_gelu_fusion": True}, tanh_gelu, 1e-5),
    "not fused": ({"bias_gelu_fusion": False}, erf_gelu, 1e-5),
    "OpenAI's": ({"bias_gelu_fusion": False, "openai_gelu": True}, tanh_gelu, 1e-5),
    "for ONNX, 2021": ({"bias_gelu_fusion": True, "onnx_safe": True}, tanh_gelu, 1e-5),
    "for ONNX, not fused": ({"bias_gelu_fusion": False, "onnx_safe": True}, erf_gelu, 1e-5),
    "for ONNX, since 2023": ({"bias_gelu_fusion": True, "onnx_safe": True, "squared_relu": False}, erf_gelu, 1e-5),
    "layernorm_epsilon": ({"layernorm_epsilon": 0.25}, tanh_gelu, 0.25),
    "norm_epsilon": ({"norm_epsilon": 0.125, "bias_gelu_fusion": False}, erf_gelu, 0.125),
    "how it is computed": (
        {
            "apply_query_key_layer_scaling": True,
            "attention_softmax_in_fp32": True,
            "masked_softmax_fusion": False,
            "fp32_residual_connection": True,
            "hidden_dropout": 0.3,
            "add_qkv_bias": True,
            "rotary_base": 10000,
        },
        tanh_gelu,
        1e-5,
    ),
    "as many groups as heads": (
        {"group_query_attention": True, "num_query_groups": HEADS, "kv_channels": H // HEADS, "num_experts": [1]},
        tanh_gelu,
        1e-5,
    ),
    "other programs' arguments, switched off": (
        {
            "final_logit_softcapping": 0.0,
            "embedding_multiplier": 1.0,
            "parallel_attention": False,
            "sandwich_norm": None,
            "rms_norm_eps": 1e-6,
            "alibi": False,
            "activation": "gelu",
            "is_causal": True,
            "lr_multiplier": 0.5,
            "recompute_activations": True,
            "deepspeed_activation_checkpointing": True,
            "distribute_saved_activations": True,
            "bias_gelu_fusion": True,
        },
        tanh_gelu,
        1e-5,
    ),
    "groups that are not used": ({"group_query_attention": False, "num_query_groups": 1}, tanh_gelu, 1e-5),
    "the usual scale": (
        {"softmax_scale": (H // HEADS) ** -0.5, "window_size": None, "qk_layernorm": False},
        tanh_gelu,
        1e-5,
    ),
    "Megatron-DeepSpeed's": (
        {
            "position_embedding_type": as_megatron_deepspeed("absolute"),
            "normalization": "layernorm",
            "num_key_value_heads": HEADS,
            "glu_activation": None,
            "embed_layernorm": False,
        },
        tanh_gelu,
        1e-5,
    ),
}


def assert_computes(found: Any, expected: np.ndarray, folder: Path) -> None:
    write_reference_logits(any_reference(found), [IDS], folder / "logits")
    logits = np.fromfile(folder / "logits", np.float32).reshape(expected.shape)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", USED)
def test_arguments_are_used_as_megatron_lm_computes(case: str, tmp_path: Path) -> None:
    args, gelu, epsilon = USED[case]
    found = open_checkpoint(write(tmp_path, argparse.Namespace(**HERE, **args)))
    assert_computes(found, logits64(gelu, epsilon), tmp_path)
    other = erf_gelu if gelu is tanh_gelu else tanh_gelu
    for expected in (logits64(other, epsilon), logits64(gelu, epsilon / 2 + 1e-3)):
        with pytest.raises(AssertionError):
            assert_computes(found, expected, tmp_path)


@pytest.mark.parametrize(("given", "gelu"), [(None, tanh_gelu), ("gelu", erf_gelu), ("gelu_new", tanh_gelu)])
def test_the_user_says_which_gelu_where_no_args_do(given: str | None, gelu: Any, tmp_path: Path) -> None:
    found = open_checkpoint(write(tmp_path, None), heads=HEADS, activation_function=given)
    assert_computes(found, logits64(gelu, 1e-5), tmp_path)
    notes = [note for note in found.info.notes if "--activation-function gelu" in note]
    assert len(notes) == (given is None)


REFUSED: dict[str, Any] = {
    "position_embedding_type": "rope",
    "add_position_embedding": False,
    "use_rotary_position_embeddings": True,
    "normalization": "RMSNorm",
    "apply_layernorm_1p": True,
    "apply_residual_connection_post_layernorm": True,
    "embed_layernorm": True,
    "multi_query_attention": True,
    "is_causal": False,
    "multi_latent_attention": True,
    "qk_layernorm": True,
    "qk_l2_norm": True,
    "attention_output_gate": True,
    "softmax_type": "off-by-one",
    "softmax_scale": 0.5,
    "window_size": (128, 0),
    "kv_channels": 8,
    "num_key_value_heads": 2,
    "swiglu": True,
    "squared_relu": True,
    "quick_geglu": True,
    "glu_activation": "geglu",
    "add_bias_linear": False,
    "num_experts": 8,
    "mtp_num_layers": 1,
    "use_mup": True,
    "retro_add_retriever": True,
    "hybrid_override_pattern": "M-M*",
    "spec": ["my_models.gpt", "layer_spec"],
    "experimental_attention_variant": "gated_delta_net",
    "scale_emb": 12.0,
    "attn_logit_softcapping": 50.0,
}


OTHER_PROGRAMS: dict[str, Any] = {
    "final_logit_softcapping": 30.0,
    "embedding_multiplier": 12,
    "residual_multiplier": 0.0,
    "parallel_attention": True,
    "use_parallel_residual": True,
    "sandwich_norm": True,
    "sandwich_ln": 1,
    "rms_norm": True,
    "use_rms": True,
    "alibi": True,
    "alibi_bias_max": 8,
    "bidirectional": True,
    "activation": "relu",
    "activation_function": ["relu"],
    "quick_gelu": True,
}


@pytest.mark.parametrize("name", OTHER_PROGRAMS)
def test_arguments_of_other_programs_that_may_matter_are_refused_by_name(name: str, tmp_path: Path) -> None:
    file = write(tmp_path, argparse.Namespace(**HERE, **{name: OTHER_PROGRAMS[name]}))
    with pytest.raises(CheckpointError, match=f"args.{name} is .*: not known of a GPT-2: it may make another model"):
        open_checkpoint(file)


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_of_other_models_are_refused_by_name(name: str, tmp_path: Path) -> None:
    file = write(tmp_path, argparse.Namespace(**HERE, **{name: REFUSED[name]}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file)
    assert str(caught.value).startswith(f"{file}: args.{name} is ")
    assert ": no GPT-2, where it is " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"group_query_attention": True, "num_query_groups": 2}, "args.num_query_groups is 2: no GPT-2, where it is 4"),
        ({"position_embedding_type": as_megatron_deepspeed("alibi")}, "args.position_embedding_type is megatron.enums"),
    ],
)
def test_other_attention_and_positions_are_refused_by_name(args: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(write(tmp_path, argparse.Namespace(**HERE, **args)))


def test_a_gelu_that_args_contradict_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, argparse.Namespace(**HERE, bias_gelu_fusion=False))
    with pytest.raises(CheckpointError, match="args say gelu, but --activation-function gelu_new: leave that out"):
        open_checkpoint(file, activation_function="gelu_new")
