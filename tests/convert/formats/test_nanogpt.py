"""nanoGPT's checkpoints and those of its relatives: the logits are those of its own maths."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from convert.conversion import to_checkpoint
from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError, ConvertError
from tests.helpers.huggingface import model_of

State = dict[str, torch.Tensor]
ARGS: dict[str, Any] = {
    "n_layer": 3, "n_head": 5, "n_embd": 40, "block_size": 20, "bias": True, "vocab_size": 70, "dropout": 0.1,
}  # fmt: skip
IDS = torch.tensor([[4, 8, 15, 16, 23, 42, 69, 0, 1]])


def random_state(*, bias: bool = True, own_head: bool = False, dtype: torch.dtype = torch.float32) -> State:
    """Make the tensors of ``GPT`` in nanoGPT's ``model.py``, with its names and shapes."""
    generator = torch.Generator().manual_seed(11)
    h, vocab_size = ARGS["n_embd"], ARGS["vocab_size"]

    def normal(*shape: int, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.3 + mean).to(dtype)

    state = {"transformer.wte.weight": normal(vocab_size, h), "transformer.wpe.weight": normal(ARGS["block_size"], h)}
    for layer in range(ARGS["n_layer"]):
        for name, shape in {
            "ln_1": (h,), "attn.c_attn": (3 * h, h), "attn.c_proj": (h, h), "ln_2": (h,), "mlp.c_fc": (4 * h, h),
            "mlp.c_proj": (h, 4 * h),
        }.items():  # fmt: skip
            state[f"transformer.h.{layer}.{name}.weight"] = normal(*shape, mean=float("ln" in name))
            if bias:
                state[f"transformer.h.{layer}.{name}.bias"] = normal(shape[0])
    state["transformer.ln_f.weight"] = normal(h, mean=1)
    if bias:
        state["transformer.ln_f.bias"] = normal(h)
    state["lm_head.weight"] = normal(vocab_size, h) if own_head else state["transformer.wte.weight"]
    return state


def nanogpt_logits(
    state: State, *, approximate: str = "none", activation: Any = None, epsilon: float = 1e-5, scale: Any = None
) -> np.ndarray:
    """Compute as ``GPT.forward`` of nanoGPT does, in float64; or as a relative with other maths.

    Args:
        state: the tensors.
        approximate: which gelu.
        activation: what is computed instead of a gelu.
        epsilon: of the layer norms.
        scale: returns what scores are multiplied by, by the layer.
    """
    state = {name: value.double() for name, value in state.items()}
    h, heads = ARGS["n_embd"], ARGS["n_head"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (h,), state[f"{name}.weight"], state.get(f"{name}.bias"), epsilon)

    x = state["transformer.wte.weight"][IDS] + state["transformer.wpe.weight"][: IDS.shape[1]]
    for layer in range(ARGS["n_layer"]):
        block = f"transformer.h.{layer}"
        parts = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(h, dim=2)
        q, k, v = (part.view(1, -1, heads, h // heads).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=None if scale is None else scale(layer)
        )
        x = x + linear(y.transpose(1, 2).reshape(x.shape), f"{block}.attn.c_proj")
        y = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        y = functional.gelu(y, approximate=approximate) if activation is None else activation(y)
        x = x + linear(y, f"{block}.mlp.c_proj")
    return functional.linear(norm(x, "transformer.ln_f"), state["lm_head.weight"]).numpy()


def our_logits(path: Path, **options: Any) -> np.ndarray:
    with torch.no_grad():
        return model_of(open_checkpoint(path, **options)).double()(IDS).logits.numpy()


_SOMEBODYS = types.ModuleType("train_gpt2_of_somebody")
_SOMEBODYS.GPTConfig = type("GPTConfig", (), {"__module__": _SOMEBODYS.__name__})  # type: ignore[attr-defined]
sys.modules[_SOMEBODYS.__name__] = _SOMEBODYS


def gpt_config(**values: Any) -> Any:
    """Make an instance of the dataclass that build-nanogpt puts into its files."""
    config = _SOMEBODYS.GPTConfig()
    sizes = {name: ARGS[name] for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    config.__dict__.update(sizes, **values)
    return config


def save(content: Any, *, name: str = "ckpt.pt") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content, folder / name)
        return folder / name

    return write


def save_safetensors(state: State) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save_file({name: value.clone() for name, value in state.items()}, folder / "nano.safetensors")
        return folder / "nano.safetensors"

    return write


def save_for_hub(state: State, values: dict[str, Any]) -> Callable[[Path], Path]:
    """Write a folder as ``PyTorchModelHubMixin`` does."""

    def write(folder: Path) -> Path:
        save_file({name: value.clone() for name, value in state.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return write


def with_masks(state: State) -> State:
    mask = torch.tril(torch.ones(20, 20)).view(1, 1, 20, 20)
    return {**state, **{f"transformer.h.{layer}.attn.bias": mask for layer in range(ARGS["n_layer"])}}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


BIASED, BARE, OWN_HEAD = random_state(), random_state(bias=False), random_state(own_head=True)
BARE_ARGS = {**ARGS, "bias": False}
OLD_ARGS = {name: value for name, value in ARGS.items() if name != "bias"}
TRAINING = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "iter_num": 750, "config": {"dataset": "poems"}}
# name -> (what writes it, its tensors, the gelu, options that it needs)
FILES: dict[str, tuple[Callable[[Path], Path], State, str, dict[str, Any]]] = {
    "with biases": (save({"model": BIASED, "model_args": ARGS, **TRAINING}), BIASED, "none", {}),
    "without biases": (save({"model": BARE, "model_args": BARE_ARGS, **TRAINING}), BARE, "none", {}),
    "compiled": (save({"model": prefixed("_orig_mod.", BARE), "model_args": BARE_ARGS}), BARE, "none", {}),
    "compiled and distributed": (
        save({"model": prefixed("module._orig_mod.", BIASED), "model_args": ARGS}, name="best.pth"), BIASED, "none", {},
    ),
    "stored masks": (save({"model": with_masks(BIASED), "model_args": ARGS}), BIASED, "none", {}),
    "before there was an option for biases": (save({"model": BIASED, "model_args": OLD_ARGS}), BIASED, "tanh", {}),
    "an old one, whose gelu the user knows": (
        save({"model": BIASED, "model_args": ARGS}), BIASED, "tanh", {"activation_function": "gelu_new"},
    ),
    "sizes in the training's configuration only": (
        save({"model": BARE, "config": {"n_head": 5, "bias": False, "wandb_log": True}}), BARE, "none", {},
    ),
    "arguments under another name": (
        save({"state_dict": BARE, "hyper_parameters": {"n_head": 5, "bias": False, "lr": 3e-4}}), BARE, "none", {},
    ),
    "the state dict alone": (save(BIASED, name="model.pth"), BIASED, "none", {"heads": 5}),
    "the state dict alone without biases": (save_safetensors(BARE), BARE, "none", {"heads": 5}),
    "a folder for the hub": (save_for_hub(BARE, {"config": {**ARGS, "bias": False}}), BARE, "none", {}),
    "a folder for the hub with an activation": (
        save_for_hub(BIASED, {"n_head": 5, "activation_function": "gelu_new"}), BIASED, "tanh", {},
    ),
    "build-nanogpt's": (save({"model": BIASED, "config": gpt_config(), "step": 19072}), BIASED, "tanh", {}),
    "minGPT's": (save(with_masks(OWN_HEAD), name="model.pt"), OWN_HEAD, "tanh", {"heads": 5}),
    "half the precision": (
        save({"model": random_state(dtype=torch.bfloat16), "model_args": ARGS}),
        random_state(dtype=torch.bfloat16), "none", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_checkpoint_has_the_logits_of_nanogpts_maths(tmp_path: Path, case: str) -> None:
    write, state, approximate, options = FILES[case]
    path = write(tmp_path)
    wanted = nanogpt_logits(state, approximate=approximate)
    assert open_checkpoint(path, **options).info.format == "nanogpt"
    assert np.abs(our_logits(path, **options) - wanted).max() < 1e-5
    assert np.abs(our_logits(tmp_path, **options) - wanted).max() < 1e-5
    other = nanogpt_logits(state, approximate="none" if approximate == "tanh" else "tanh")
    assert np.abs(other - wanted).max() > 1e-4


def save_beside(values: dict[str, Any], content: Any = None) -> Callable[[Path], Path]:
    """Write the weights, and a ``config.json`` in their folder."""

    def write(folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps(values))
        return save(BIASED if content is None else content, name="pytorch_model.bin")(folder)

    return write


TRAINED = {
    "learning_rate": 3e-4,
    "max_steps": 99,
    "grad_norm_clip": 1.0,
    "adam_eps": 1e-8,
    "properties": 3,
}
# name -> (what writes it, the maths that it says)
OTHER_MATHS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "an activation of a model": (
        save({"model": BIASED, "model_args": {**ARGS, "activation": "relu"}}), {"activation": functional.relu},
    ),
    "its other name": (
        save({"model": BIASED, "model_args": {**ARGS, "activation_name": "swish"}}), {"activation": functional.silu},
    ),
    "an epsilon of a model": (save({"model": BIASED, "model_args": {**ARGS, "ln_eps": 0.02}}), {"epsilon": 0.02}),
    "switched off": (
        save({"model": BIASED, "model_args": {**ARGS, "use_rope": False, "n_kv_head": 5, "causal": True}}),
        {},
    ),
    "an activation of a training": (
        save({"state_dict": BIASED, "hyper_parameters": {"n_head": 5, **TRAINED, "activation_function": "relu"}}),
        {"activation": functional.relu},
    ),
    "an epsilon of a training": (
        save({"model": BIASED, "config": {**ARGS, **TRAINED, "layer_norm_eps": 0.25}}), {"epsilon": 0.25},
    ),
    "maths of a training next to the model": (
        save({"model": BIASED, "model_args": ARGS, "config": {**TRAINED, "n_layer": 12, "activation": "tanh"}}),
        {"activation": torch.tanh},
    ),
    "an alias beside": (save_beside({"n_head": 5, "activation_function": "swish"}), {"activation": functional.silu}),
    "an epsilon beside": (
        save_beside({**ARGS, "layer_norm_epsilon": 0.01, "activation_function": "gelu"}), {"epsilon": 0.01},
    ),
    "no scale beside": (
        save_beside({**ARGS, "model_type": "gpt2", "scale_attn_weights": False, "activation_function": "gelu_new"}),
        {"approximate": "tanh", "scale": lambda layer: 1.0},
    ),
    "a scale by layer beside": (
        save_beside({"num_attention_heads": 5, "scale_attn_by_inverse_layer_idx": True}),
        {"scale": lambda layer: 8**-0.5 / (layer + 1)},
    ),
    "beside a file with arguments": (
        save_beside({"layer_norm_epsilon": 0.125}, {"model": BIASED, "model_args": ARGS}), {"epsilon": 0.125},
    ),
    "a zero output bias": (save({"model": {**BIASED, "lm_head.bias": torch.zeros(70)}, "model_args": ARGS}), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_MATHS)
def test_an_argument_that_changes_the_maths_is_used(tmp_path: Path, case: str) -> None:
    write, maths = OTHER_MATHS[case]
    found = our_logits(write(tmp_path))
    assert np.abs(found - nanogpt_logits(BIASED, **maths)).max() < 1e-5
    assert not maths or np.abs(found - nanogpt_logits(BIASED)).max() > 1e-4


def test_arguments_of_a_training_that_may_matter_are_a_note(tmp_path: Path) -> None:
    unknown = {"embed_gain": 2, "attn_temp": 0.5, "pos_shift": False, "logit_bias": 0}
    save({"model": BIASED, "config": {**ARGS, **TRAINED, **unknown}})(tmp_path)
    first, second = open_checkpoint(tmp_path / "ckpt.pt").info.notes
    assert "config: not used: embed_gain, attn_temp, pos_shift, logit_bias: not known" in first
    assert "erf gelu" in second


def test_what_no_file_records_is_a_note_with_its_option(tmp_path: Path) -> None:
    path = save({"model": BARE, "model_args": BARE_ARGS, **TRAINING})(tmp_path)
    checkpoint = open_checkpoint(path)
    (note,) = checkpoint.info.notes
    assert "erf gelu" in note
    assert "--activation-function" in note
    assert checkpoint.info.details["iteration"] == 750
    assert checkpoint.info.left_out == ("optimizer",)
    assert open_checkpoint(path, activation_function="gelu_new").info.notes == ()


def test_a_square_projection_is_not_turned_round_when_it_is_written_elsewhere(tmp_path: Path) -> None:
    save({"model": BIASED, "model_args": ARGS})(tmp_path)
    to_checkpoint(open_checkpoint(tmp_path / "ckpt.pt"), tmp_path / "out", format="huggingface")
    assert np.abs(our_logits(tmp_path / "out") - nanogpt_logits(BIASED)).max() < 1e-5


def without(*names: str) -> State:
    return {name: value for name, value in BIASED.items() if name not in names}


BROKEN: dict[str, tuple[Any, str]] = {
    "another norm": (
        {"model": BARE, "model_args": {**BARE_ARGS, "use_rmsnorm": True}},
        "use_rmsnorm is True",
    ),
    "another attention": ({"model": BIASED, "model_args": {**ARGS, "n_kv_group": 2}}, "n_kv_group is 2: not known"),
    "another position": ({"model": BIASED, "config": gpt_config(use_rope=True)}, "config: use_rope is True: not known"),
    **{
        f"{name} is {value}": (
            {"model": BIASED, "model_args": {**ARGS, name: value}},
            f"model_args: {name} is .*: not known",
        )
        for name, value in {
            "causal": False,
            "scale_attn": False,
            "norm_name": "rms",
            "pos_init": "rotary",
            "lrope": True,
            "gates": 0,
            "gelu_dropped": 0.5,
            "n_kv_head": 1,
            "window_size": 16,
            "position_embedding_type": "alibi",
            7: True,
        }.items()
    },
    "an activation that is not known": (
        {"model": BIASED, "model_args": {**ARGS, "activation_fn": "mish"}},
        "activation_fn 'mish': known are",
    ),
    "rope in a training": (
        {"model": BIASED, "config": {**ARGS, "use_rope": True}},
        "config: use_rope is True: not known",
    ),
    "two activations": (
        {"model": BIASED, "model_args": {**ARGS, "activation": "relu"}, "config": {"activation": "gelu"}},
        "activation_function is 'gelu', but .* says 'relu'",
    ),
    "another kind of model": (
        {"model": BIASED, "model_args": {**ARGS, "model_type": "gpt_neox"}},
        "model_type is 'gpt_neox': expected gpt2",
    ),
    "an output matrix that is not there": (
        {"model": without("lm_head.weight"), "model_args": {**ARGS, "tie_weights": False}},
        "not tied, but has no",
    ),
    "an output bias": (
        {"model": {**BIASED, "lm_head.bias": torch.ones(70)}, "model_args": ARGS},
        "lm_head.bias is not zero",
    ),
    "another vocabulary": (
        {"model": BIASED, "model_args": {**ARGS, "vocab_size": 65}},
        "vocab_size is 65, but the",
    ),
    "fewer positions": (
        {"model": BIASED, "model_args": {**ARGS, "block_size": 8}},
        "block_size is 8, but the",
    ),
    "heads that do not divide": ({"model": BIASED, "model_args": {**ARGS, "n_head": 7}}, "7"),
    "heads that are no number": (
        {"model": BIASED, "model_args": {**ARGS, "n_head": "5"}},
        "n_head is '5'",
    ),
    "nobody knows the heads": (BIASED, "give --heads"),
    "biases that should be there": ({"model": BARE, "model_args": ARGS}, "missing tensors: .*bias"),
    "a bias is missing": (
        {"model": without("transformer.h.1.mlp.c_fc.bias"), "model_args": BARE_ARGS},
        "1 missing tensor: h.1.mlp.c_fc.bias",
    ),
    "a matrix is missing": (
        {"model": without("transformer.h.2.attn.c_proj.weight"), "model_args": ARGS},
        "1 missing tensor: h.2.attn.c_proj.weight",
    ),
    "a tensor too many": (
        {"model": {**BIASED, "transformer.h.0.attn.q_norm.weight": torch.ones(8)}, "model_args": ARGS},
        "1 unexpected tensor: h.0.attn.q_norm.weight",
    ),
    "a matrix the other way round": (
        {"model": {**BIASED, "transformer.h.1.mlp.c_fc.weight": torch.ones(40, 160)}, "model_args": ARGS},
        r"h.1.mlp.c_fc.weight: expected the shape \[160, 40\], found \[40, 160\]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_an_error_of_one_line(tmp_path: Path, case: str) -> None:
    content, words = BROKEN[case]
    with pytest.raises(ConvertError, match=words) as error:
        open_checkpoint(save(content)(tmp_path))
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


BESIDE: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model_type": "llama"}, "model_type is 'llama': expected gpt2"),
    "other positions": ({"position_embedding_type": "rotary"}, "position_embedding_type is 'rotary': not known"),
    "attention that looks ahead": ({"is_causal": False}, "is_causal is False: not known"),
    "an activation": ({"activation_function": "mish"}, "activation_function 'mish': known are"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config is a dict"),
    "other sizes": ({"n_embd": 48}, "n_embd is 48, but the tensors have 40"),
    "two numbers of heads": ({"num_attention_heads": 4}, "n_head is 5, but num_attention_heads is 4"),
    "a flag as text": ({"scale_attn_weights": "no"}, "scale_attn_weights is 'no': expected true or false"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_a_configuration_beside_that_makes_another_model_is_refused_by_name(tmp_path: Path, case: str) -> None:
    values, words = BESIDE[case]
    with pytest.raises(ConvertError, match=words) as error:
        open_checkpoint(save_beside({"n_head": 5, **values})(tmp_path))
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


def test_a_format_with_one_activation_takes_no_other(tmp_path: Path) -> None:
    save({"model": BIASED, "model_args": OLD_ARGS})(tmp_path)
    options = {"tensor_parallel": 1}
    to_checkpoint(open_checkpoint(tmp_path / "ckpt.pt"), tmp_path / "out", format="megatron", options=options)
    with pytest.raises(CheckpointError, match=r"the activation is gelu_new.*leave out --activation-function relu"):
        open_checkpoint(tmp_path / "out", heads=5, activation_function="relu")
    assert open_checkpoint(tmp_path / "out", heads=5, activation_function="gelu_fast").config.n_head == 5
