"""The options of UER-py and TencentPretrain, against their formulas written out in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.formats.registry import open_checkpoint
from convert.verification.reference_forward import CheckpointReference
from support.errors import ConvertError
from tests.convert.formats.test_uer import HEADS, SIZES, Array, State, random_state
from tests.helpers.assertions import assert_one_line
from tests.helpers.huggingface import IDS
from tests.helpers.light import main, run

BASE = {"emb_size": 48, "hidden_size": 48, "feedforward_size": 40, "layers_num": 2, "heads_num": HEADS,
        "max_seq_length": 24, "hidden_act": "gelu_fast", "dropout": 0.1}  # fmt: skip
ERF = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu_fast": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: x * 0.5 * (1 + ERF(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}
USED: dict[str, dict[str, Any]] = {
    "both programs' defaults": {},
    "another epsilon": {"layernorm_eps": 0.3},
    "an epsilon of PyTorch's": {"layernorm_eps": 1e-5},
    "no epsilon": {"layernorm_eps": 0},
    "no attention scale": {"remove_attention_scale": True},
    "a switch as a number": {"remove_attention_scale": 1, "remove_transformer_bias": 0},
    "erf gelu": {"hidden_act": "gelu"},
    "relu": {"hidden_act": "relu"},
    "silu": {"hidden_act": "silu", "layernorm_eps": 0.01},
    "PyTorch's layer norm": {"layernorm": "normal_torch", "layernorm_eps": 0.2},
    "PyTorch's layer norm, default epsilon": {"layernorm": "normal_torch", "remove_attention_scale": True},
    "TencentPretrain's words": {
        "layernorm": "normal", "embedding": ["word", "pos"], "target": ["lm"], "mask": "causal", "tie_weights": True,
        "rotary_position_embedding": False, "use_mp": False, "image_height": 256, "prefix_lm_loss": False,
    },
    "no biases": {"remove_transformer_bias": True, "layernorm_eps": 0.1},
    "no biases, PyTorch's layer norm": {"remove_transformer_bias": 1, "layernorm": "normal_torch"},
    "older words": {"embedding": "word_pos", "target": "lm", "encoder": "transformer", "has_lmtarget_bias": True},
}  # fmt: skip
"""What config.json may say of a GPT-2."""


def reference_logits(state: State, options: dict[str, Any]) -> Array:
    """The model of ``layers/``, ``encoders/`` and ``targets/`` of TencentPretrain, float64 ``[S, V]``."""
    weights = {name: tensor.double().numpy() for name, tensor in state.items()}
    epsilon, ids = options.get("layernorm_eps", 1e-6), IDS[0]
    size, layers = len(ids), range(SIZES["layers"])

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        if options.get("layernorm") == "normal_torch":
            root = np.sqrt(x.var(-1, keepdims=True) + epsilon)
            return weights[f"{name}.weight"] * centred / root + weights[f"{name}.bias"]
        return (
            weights[f"{name}.gamma"] * centred / (x.std(-1, ddof=1, keepdims=True) + epsilon) + weights[f"{name}.beta"]
        )

    def linear(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    x = weights["embedding.word.embedding.weight"][ids] + weights["embedding.pos.embedding.weight"][:size]
    for block in (f"encoder.transformer.{layer}" for layer in layers):
        normed = norm(x, f"{block}.layer_norm_1")
        q, k, v = (
            linear(normed, f"{block}.self_attn.linear_layers.{i}").reshape(size, HEADS, -1).transpose(1, 0, 2)
            for i in range(3)
        )
        scores = q @ k.transpose(0, 2, 1)
        if not options.get("remove_attention_scale"):
            scores = scores / math.sqrt(q.shape[-1])
        scores = scores - 10000.0 * (1 - np.tril(np.ones((size, size))))
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(size, -1)
        x = x + linear(mixed, f"{block}.self_attn.final_linear")
        inner = linear(norm(x, f"{block}.layer_norm_2"), f"{block}.feed_forward.linear_1")
        x = x + linear(ACTIVATIONS[options.get("hidden_act", "gelu_fast")](inner), f"{block}.feed_forward.linear_2")
    logits: Array = norm(x, "encoder.layer_norm") @ weights["target.lm.output_layer.weight"].T
    return logits


def save(folder: Path, options: dict[str, Any], state: State | None = None) -> Path:
    """Save a random model with a config.json that says ``options``."""
    folder.mkdir(parents=True)
    torch.save(_state(options) if state is None else state, folder / "poems.bin")
    (folder / "config.json").write_text(json.dumps({**BASE, **options}))
    return folder


def _state(options: dict[str, Any]) -> State:
    state = random_state(seed=5)
    if options.get("layernorm") == "normal_torch":
        state = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): value for name, value in state.items()}
    if options.get("remove_transformer_bias"):
        state = {name: value for name, value in state.items() if not _is_linear_bias(name)}
    return state


def _is_linear_bias(name: str) -> bool:
    return name.endswith(".bias") and "layer_norm" not in name


def our_logits(folder: Path) -> Array:
    reference = CheckpointReference(open_checkpoint(folder))
    return reference.project(reference.rows_of(IDS)[0]).numpy()


@pytest.mark.parametrize("case", USED)
def test_an_option_that_changes_the_maths_is_used(case: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "theirs", USED[case])
    expected = reference_logits(_state(USED[case]), USED[case])
    assert expected.std() > 1
    np.testing.assert_allclose(our_logits(folder), expected, atol=1e-5 * np.abs(expected).max())
    assert not open_checkpoint(folder).info.notes


@pytest.mark.parametrize("case", USED)
def test_a_copy_for_the_same_programs_keeps_the_maths(case: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "theirs", USED[case])
    if USED[case].get("layernorm") == "normal_torch" and USED[case].get("layernorm_eps", 0) > 1e-5:
        assert main(["to-uer", "--checkpoint", str(folder), "--output", str(tmp_path / "ours"), "--quiet"]) == 2
        return
    run("to-uer", "--checkpoint", folder, "--output", tmp_path / "ours")
    expected = our_logits(folder)
    np.testing.assert_allclose(our_logits(tmp_path / "ours"), expected, atol=2e-5 * np.abs(expected).max())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "T5's layer norm": ({"layernorm": "t5"}, "layernorm is 't5': no GPT-2, where it is normal"),
    "root mean squares": ({"layernorm": "rms"}, "layernorm is 'rms': no GPT-2"),
    "PyTorch's layer norm without its names": ({"layernorm": "normal_torch"}, "normal_torch with weight and bias"),
    "post layer norm": ({"layernorm_positioning": "post"}, 'where it is "pre"'),
    "gates": ({"feed_forward": "gated"}, "feed_forward is 'gated'"),
    "rotation": ({"rotary_position_embedding": True}, "rotary_position_embedding is True: no GPT-2"),
    "alibi": ({"alibi_position_embedding": True, "layer_number_scale": True}, "alibi_position_embedding is True"),
    "relative positions": ({"relative_position_embedding": 1}, "relative_position_embedding is True"),
    "no biases": ({"remove_transformer_bias": True}, "remove_transformer_bias is true, but there are biases: enc"),
    "residual attention": ({"has_residual_attention": True}, "has_residual_attention is True"),
    "one layer for all": ({"parameter_sharing": True}, "parameter_sharing is True"),
    "a layer norm on the embedding": ({"remove_embedding_layernorm": False}, "remove_embedding_layernorm is False"),
    "segments": ({"embedding": ["word", "pos", "seg"]}, "embedding is word, pos, seg: no GPT-2, where it is word and"),
    "older segments": ({"embedding": "word_pos_seg"}, "embedding is word_pos_seg"),
    "waves": ({"embedding": ["word", "sinusoidalpos"]}, "embedding is word, sinusoidalpos"),
    "pictures": ({"embedding": ["patch", "pos"]}, "embedding is patch, pos"),
    "everything is seen": ({"mask": "fully_visible"}, "mask is 'fully_visible'"),
    "a prefix is seen": ({"mask": "causal_with_prefix"}, "mask is 'causal_with_prefix'"),
    "a decoder": ({"decoder": "transformer"}, "decoder is 'transformer'"),
    "another encoder": ({"encoder": "gatedcnn"}, "encoder is 'gatedcnn'"),
    "another target": ({"target": ["mlm"]}, "target is a list: no GPT-2, where it is lm"),
    "a line": ({"hidden_act": "linear"}, "hidden_act is 'linear': known are gelu_fast, gelu, relu, silu"),
    "quick gelu": ({"hidden_act": "gelu_quick"}, "hidden_act is 'gelu_quick'"),
    "an epsilon as text": ({"layernorm_eps": "1e-5"}, "layernorm_eps is '1e-5': expected a number from 0 to 1"),
    "a negative epsilon": ({"layernorm_eps": -1}, "layernorm_eps is -1"),
    "an epsilon that is none": ({"layernorm_eps": float("nan")}, "layernorm_eps is nan"),
    "a switch as text": ({"remove_attention_scale": "no"}, "remove_attention_scale is 'no': expected true or false"),
    "wide heads": ({"attention_head_size": 16}, "attention_head_size is 16, but heads_num and the tensors have 12"),
    "few keys": ({"local_kv_heads_num": 2}, "local_kv_heads_num is 2, but heads_num and the tensors have 4"),
    "other positions": ({"max_seq_length": 512}, "max_seq_length is 512, but the tensors have 24"),
    "another width": ({"hidden_size": 64}, "hidden_size is 64, but the tensors have 48"),
    "parts": ({"tensor_model_parallel_size": 2}, "tensor_model_parallel_size is above 1"),
    "low rank": ({"use_lora": True}, "use_lora is True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_option_that_makes_another_model_is_refused_by_name(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, words = REFUSED[case]
    folder = save(tmp_path / "theirs", options, random_state())
    assert main(["to-huggingface", "--checkpoint", str(folder), "--output", str(tmp_path / "new")]) == 2
    assert_one_line(capsys.readouterr().err, words)


def test_an_output_matrix_must_be_as_tie_weights_says(tmp_path: Path) -> None:
    head, state = "target.lm.output_layer.weight", random_state()
    for name, is_tied, change, words in (
        ("other", True, {head: state[head] + 1}, "tie_weights is true, but target.lm.output_layer.weight differs"),
        ("none", False, None, "missing tensor: target.lm.output_layer.weight: config.json says that it is not the"),
    ):
        changed = {**state, **change} if change else {n: value for n, value in state.items() if n != head}
        with pytest.raises(ConvertError, match=words):
            open_checkpoint(save(tmp_path / name, {"tie_weights": is_tied}, changed))
    assert open_checkpoint(save(tmp_path / "copy", {"tie_weights": False})).config.tie_word_embeddings


def test_biases_that_are_not_there_are_zeros_unless_the_options_say_that_there_are(tmp_path: Path) -> None:
    state = _state({"remove_transformer_bias": True})
    (note,) = open_checkpoint(save(tmp_path / "unsaid", {}, state)).info.notes
    assert "linear layers without biases, as remove_transformer_bias leaves them: zeros are taken" in note
    with pytest.raises(ConvertError, match="12 missing tensors"):
        open_checkpoint(save(tmp_path / "said", {"remove_transformer_bias": False}, state))
    some = {name: value for name, value in random_state().items() if not (_is_linear_bias(name) and ".1." in name)}
    with pytest.raises(ConvertError, match="missing tensors"):
        open_checkpoint(save(tmp_path / "some", {}, some))


def test_what_is_not_used_is_a_note(tmp_path: Path) -> None:
    folder = save(tmp_path / "theirs", {"mixture": 4, "learning_rate": 1e-4})
    assert [note.partition("config.json: ")[2] for note in open_checkpoint(folder).info.notes] == [
        "not used: mixture: no options of UER-py or TencentPretrain that are known"
    ]
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_head": 4}')
    assert "not used: none of its keys is of UER-py" in open_checkpoint(folder, heads=4).info.notes[0]


def test_usual_layer_norms_do_not_take_a_large_epsilon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "theirs", {"layernorm_eps": 0.3})
    arguments = ["to-huggingface", "--checkpoint", str(folder), "--output", str(tmp_path / "new")]
    assert main(arguments) == 2
    assert_one_line(capsys.readouterr().err, "0.3 is added to the deviation (layernorm_eps)")
    assert main([*arguments, "--uer-layer-norm", "standard"]) == 0
    assert "layernorm_eps 0.3 becomes 1e-05 inside the root" in capsys.readouterr().err
