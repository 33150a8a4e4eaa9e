"""The keys of config.json, against what transformers computes with the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from convert.formats.huggingface_config import REASONS, read_fields
from convert.formats.registry import open_checkpoint
from convert.verification.reference_forward import CheckpointReference
from support.errors import CheckpointError
from tests.helpers.assertions import assert_one_line
from tests.helpers.huggingface import IDS, SIZES, random_model
from tests.helpers.light import main

SAME_MATHS: dict[str, dict[str, Any]] = {
    "nothing more": {},
    "no scale": {"scale_attn_weights": False},
    "a scale by layer": {"scale_attn_by_inverse_layer_idx": True},
    "an epsilon": {"layer_norm_epsilon": 0.07},
    "silu by its other name": {"activation_function": "swish"},
    "gelu by its other name": {"activation_function": "gelu_python"},
    "tanh gelu by its other names": {"activation_function": "gelu_accurate"},
    "tanh": {"activation_function": "tanh"},
    "upcast and reordered": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "dropouts": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "a shorter mask": {"n_ctx": 8},
    "chunks": {"chunk_size_feed_forward": 4},
    "sizes by their other names": {"hidden_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 24},
    "everything off": {"pruned_heads": {}, "add_cross_attention": False, "quantization_config": None},
    "half": {"torch_dtype": "float16", "use_cache": False},
    "a decoder without an encoder": {"is_decoder": True},
    "causal attention": {"is_causal": True},
    "keys that are null": {"attention_chunk_size": None, "sliding_window": None},
    "labels": {"id2label": {"0": "poem", "1": "prose", "2": "list"}, "problem_type": "regression"},
}
"""What may be added to a config.json, and is read without a note."""


def save(folder: Path, changes: dict[str, Any], *, without: tuple[str, ...] = ()) -> Path:
    """Save a random model, and a config.json with ``changes``."""
    random_model(seed=7).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    values = {key: value for key, value in {**values, **changes}.items() if key not in without}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def logits_of_transformers(folder: Path) -> np.ndarray[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        values: np.ndarray[Any, Any] = model(torch.tensor(IDS)).logits[0].numpy()
    return values


def our_logits(folder: Path) -> np.ndarray[Any, Any]:
    reference = CheckpointReference(open_checkpoint(folder))
    return reference.project(reference.rows_of(IDS)[0]).numpy()


@pytest.mark.parametrize("case", SAME_MATHS)
def test_a_key_is_used_as_transformers_uses_it(case: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "theirs", SAME_MATHS[case])
    if case == "upcast and reordered":  # which transformers does in float32 only
        expected = logits_of_transformers(save(tmp_path / "plain", {"scale_attn_by_inverse_layer_idx": True}))
    else:
        expected = logits_of_transformers(folder)
    np.testing.assert_allclose(our_logits(folder), expected, atol=2e-5 * np.abs(expected).max())
    assert not open_checkpoint(folder).info.notes


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention is True: only false is supported"),
    "pruned heads": ({"pruned_heads": {"1": [0, 2]}}, "pruned_heads is a dict: expected whole layers"),
    "attention that looks ahead": ({"is_causal": False}, "is_causal is False: only true is supported"),
    "attention that looks ahead, by number": ({"is_causal": 0}, "is_causal is 0: only true is supported"),
    "attention that looks ahead, by null": ({"is_causal": None}, "is_causal is None: only true is supported"),
    "layers of several kinds": ({"per_layer_config": {"0": {"n_inner": 96}}}, "per_layer_config is a dict"),
    "GPTQ": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantization_config is 'gptq': expected",
    ),
    "bitsandbytes": ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is a dict"),
    "compressed": ({"compression_config": {"format": "pack"}}, "compression_config is a dict"),
    "rows after the vocabulary": ({"n_special": 3}, "n_special is 3: expected 0"),
    "two numbers of heads": ({"num_attention_heads": 12}, "n_head is 4, but num_attention_heads is 12"),
    "another size by its other name": ({"hidden_size": 96}, "hidden_size is 96, but the tensors have 48"),
    "an epsilon as text": ({"layer_norm_epsilon": "1e-05"}, "layer_norm_epsilon is '1e-05': expected a number"),
    "a flag as text": ({"scale_attn_by_inverse_layer_idx": "false"}, "is 'false': expected true or false"),
    "a flag as a number": ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1: expected true or false"),
    **{
        name: ({"activation_function": name}, f"activation_function {name!r}: known are gelu_new")
        for name in ("quick_gelu", "gelu_10", "mish", "relu2", "sigmoid", "linear", "GELU")
    },
    "an activation by number": ({"activation_function": 3}, "activation_function 3: known are"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_key_that_makes_another_model_is_refused_by_name(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, words = REFUSED[case]
    folder = save(tmp_path / "theirs", changes)
    capsys.readouterr()
    assert main(["to-openai", "--checkpoint", str(folder), "--output", str(tmp_path / "new")]) == 2
    assert_one_line(capsys.readouterr().err, words, "config.json: ")


NOTES: dict[str, tuple[dict[str, Any], str]] = {
    "another model's positions": ({"rope_theta": 10000.0}, "not used: rope_theta: no keys of a GPT-2"),
    "several": ({"alibi": True, "sliding_window": 128}, "not used: alibi, sliding_window: no keys"),
    "switched off": ({"use_rope": False, "parallel": 0, "gates": ""}, "not used: use_rope, parallel, gates: no keys"),
    "code": ({"auto_map": {"AutoModelForCausalLM": "modeling.Poet"}}, "auto_map names a program of the model's own"),
    "how to generate": (
        {"do_sample": True, "top_p": 0.8, "temperature": 1.0}, "not used: do_sample, top_p: transformers 5 reads them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTES)
def test_a_key_that_is_not_used_is_a_note(case: str, tmp_path: Path) -> None:
    changes, words = NOTES[case]
    folder = save(tmp_path / "theirs", changes)
    (note,) = open_checkpoint(folder).info.notes
    assert words in note
    expected = logits_of_transformers(folder)
    np.testing.assert_allclose(our_logits(folder), expected, atol=2e-5 * np.abs(expected).max())


def test_heads_that_no_key_names_are_those_of_transformers(tmp_path: Path) -> None:
    folder = save(tmp_path / "theirs", {}, without=("n_head",))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.n_head == transformers.GPT2Config().n_head == 12
    assert "no n_head: 12 heads, as transformers takes it" in checkpoint.info.notes[0]
    np.testing.assert_allclose(our_logits(folder), logits_of_transformers(folder), atol=1e-3)
    assert open_checkpoint(folder, heads=4).config.n_head == 4


def test_an_epsilon_may_be_a_whole_number() -> None:
    sizes = {"vocab_size": 96, "n_positions": 24, "n_embd": 48, "n_layer": 3, "n_inner": 192}
    said = read_fields(Path("config.json"), {"layer_norm_epsilon": 0, "n_head": 4}, sizes, has_heads=False)
    assert (said.values["layer_norm_epsilon"], type(said.values["layer_norm_epsilon"])) == (0.0, float)
    with pytest.raises(CheckpointError, match="model_type is 'gptj': expected gpt2"):
        read_fields(Path("config.json"), {"model_type": "gptj"}, sizes, has_heads=False)


def test_no_key_of_transformers_is_unknown(tmp_path: Path) -> None:
    """Whatever its newest version writes is used, refused, or has a reason."""
    config = transformers.GPT2Config(**SIZES)
    folder = save(tmp_path / "theirs", {**config.to_dict(), "dtype": "float32"})
    assert not open_checkpoint(folder).info.notes
    keys = [key for keys in REASONS.values() for key in keys]
    assert len(keys) == len(set(keys))
