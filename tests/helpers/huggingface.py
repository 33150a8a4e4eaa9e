"""Random models of transformers' GPT-2, of every kind that there is, and the logits that SavedModels compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import torch
import transformers

from convert.checkpoint import Checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 96, "n_positions": 24, "n_embd": 48, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "n_inner": {"n_inner": 40},
    "gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "epsilon": {"layer_norm_epsilon": 0.05},
    "untied": {"tie_word_embeddings": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "not scaled": {"scale_attn_weights": False},
    "scaled by layer only": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "all": {
        "n_inner": 72, "activation_function": "relu", "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False,
        "scale_attn_by_inverse_layer_idx": True,
    },
}  # fmt: skip
IDS = [[int(i) for i in np.random.default_rng(3).integers(0, 96, 24)]]


def random_model(seed: int = 0, **options: Any) -> transformers.GPT2LMHeadModel:
    """Make a model with these options: no bias is zero, no layer norm trivial, and logits are of order 10."""
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SIZES, **options}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.7 if "wte" in name or "lm_head" in name else 0.2
            parameter.copy_(torch.randn_like(parameter) * scale + (".ln_" in name and name.endswith("weight")))
    return model.eval()


def logits_of(folder: Path, ids: list[list[int]] = IDS) -> np.ndarray:
    """Return the logits ``[B, S, V]`` of ``ids``, by the SavedModel in ``folder``."""
    model = tf.saved_model.load(str(folder))
    return model.signatures["logits"](input_ids=tf.constant(ids, tf.int64))["logits"].numpy()


def model_of(checkpoint: Checkpoint) -> transformers.GPT2LMHeadModel:
    """Make the model of transformers with all weights of a checkpoint, as ``read`` gives them in float32."""
    config = transformers.GPT2Config(**checkpoint.config.to_dict(), attn_pdrop=0, resid_pdrop=0, embd_pdrop=0)
    model = transformers.GPT2LMHeadModel(config)
    state = {}
    for name in checkpoint.config.tensor_shapes():
        value = torch.from_numpy(checkpoint.read(name, np.dtype(np.float32)))
        is_conv1d = value.ndim == 2 and name.startswith("h.")
        state[name if name == "lm_head.weight" else f"transformer.{name}"] = value.t() if is_conv1d else value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return model.eval()
