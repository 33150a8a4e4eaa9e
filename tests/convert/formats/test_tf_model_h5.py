"""What transformers' TensorFlow GPT-2 saved, opened as a checkpoint: logits, notes, and what a folder may have."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from convert.conversion import to_checkpoint
from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError
from tests.helpers.huggingface import IDS, SIZES, random_model
from tests.helpers.keras_h5 import KerasH5, numpy_state, write_shards


@functools.cache
def model(activation: str = "gelu_new") -> transformers.GPT2LMHeadModel:
    return random_model(activation_function=activation)


def write_config(folder: Path, **more: Any) -> None:
    values = {key: value for key, value in model().config.to_dict().items() if key != "transformers_version"}
    (folder / "config.json").write_text(json.dumps({**values, **more}))


def logits(found: transformers.GPT2LMHeadModel) -> np.ndarray:
    with torch.no_grad():
        return found.double()(torch.tensor(IDS)).logits.numpy()


def quickly(folder: Path) -> Path:
    """As gpt2-quickly saves its models."""
    write_config(folder, architectures=["TFGPT2LMHeadModel"], n_ctx=24, transformers_version="3.5.1")
    KerasH5().write(folder / "tf_model.h5", numpy_state(model()))
    return folder


def of_a_newer_version(folder: Path) -> Path:
    write_config(folder, transformers_version="4.30.2")
    KerasH5(token_embedding="embeddings").write(folder / "tf_model.h5", numpy_state(model()))
    return folder


def without_head(folder: Path) -> Path:
    write_config(folder, architectures=["TFGPT2Model"])
    KerasH5(model="tfgpt2_model/").write(folder / "tf_model.h5", numpy_state(model()))
    return folder


def with_two_heads(folder: Path) -> Path:
    write_config(folder, architectures=["TFGPT2DoubleHeadsModel"])
    layout = KerasH5(model="tfgpt2double_heads_model/")
    path = "multiple_choice_head/tfgpt2double_heads_model/multiple_choice_head/summary/kernel:0"
    layout.write(folder / "tf_model.h5", numpy_state(model()), {path: np.ones((48, 1), np.float32)})
    return folder


def in_shards(folder: Path) -> Path:
    write_config(folder)
    write_shards(folder, numpy_state(model()), 3)
    return folder


def by_a_shard(folder: Path) -> Path:
    return in_shards(folder) / "tf_model-00002-of-00003.h5"


def by_the_index(folder: Path) -> Path:
    return in_shards(folder) / "tf_model.h5.index.json"


def weights_of_keras(folder: Path) -> Path:
    KerasH5(model="gpt/tfgpt2lm_head_model/", group="tfgpt2lm_head_model").write(
        folder / "epoch-3.h5", numpy_state(model())
    )
    return folder / "epoch-3.h5"


def any_name(folder: Path) -> Path:
    write_config(folder)
    KerasH5(inside="model_weights").write(folder / "poems.hdf5", numpy_state(model()))
    return folder


def with_a_user_block(folder: Path) -> Path:
    write_config(folder)
    KerasH5(user_block=512).write(folder / "tf_model.h5", numpy_state(model()))
    return folder


def next_to_flax(folder: Path) -> Path:
    (folder / "flax_model.msgpack").write_bytes(b"\x81\xa1a\x01")
    return quickly(folder)


SAVED: dict[str, Callable[[Path], Path]] = {
    "gpt2-quickly": quickly,
    "a newer version": of_a_newer_version,
    "no head": without_head,
    "two heads": with_two_heads,
    "shards": in_shards,
    "one of the shards": by_a_shard,
    "the index of shards": by_the_index,
    "weights of Keras": weights_of_keras,
    "another name": any_name,
    "a user block": with_a_user_block,
    "a copy for Flax next to it": next_to_flax,
}


@pytest.mark.parametrize("case", SAVED)
def test_logits_are_those_of_the_model_in_pytorch(case: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    checkpoint = open_checkpoint(SAVED[case](tmp_path / "x"), heads=SIZES["n_head"])
    assert checkpoint.info.format == "huggingface"
    to_checkpoint(checkpoint, tmp_path / "hf", format="huggingface")
    found = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    np.testing.assert_allclose(logits(found), logits(model()), atol=1e-9)


def test_heads_of_other_tasks_are_left_out_by_name(tmp_path: Path) -> None:
    assert "multiple_choice_head.summary.kernel" in open_checkpoint(with_two_heads(tmp_path)).info.left_out


def test_weights_of_pytorch_are_preferred(tmp_path: Path) -> None:
    other = random_model(seed=1)
    other.save_pretrained(tmp_path)
    KerasH5().write(tmp_path / "tf_model.h5", numpy_state(model()))
    found = open_checkpoint(tmp_path).read("ln_f.bias", np.dtype("float32"))
    assert np.array_equal(found, other.transformer.ln_f.bias.detach().numpy())


OPINIONS = {
    "an old version": ({"transformers_version": "4.5.0"}, None, "--activation-function gelu", "gelu_new"),
    "a version that nobody knows": ({}, None, "--activation-function gelu", "gelu_new"),
    "a new version": ({"transformers_version": "4.12.0"}, None, "", "gelu_new"),
    "erf as configured": ({"activation_function": "gelu"}, None, "", "gelu"),
    "erf as given": ({"transformers_version": "4.5.0"}, "gelu", "is gelu_new, but gelu is taken, as given", "gelu"),
}


@pytest.mark.parametrize("case", OPINIONS)
def test_a_note_says_which_gelu_is_taken_where_the_file_cannot_say_it(case: str, tmp_path: Path) -> None:
    config, given, note, taken = OPINIONS[case]
    write_config(tmp_path, **config)
    KerasH5().write(tmp_path / "tf_model.h5", numpy_state(model()))
    checkpoint = open_checkpoint(tmp_path, activation_function=given)
    assert checkpoint.config.activation_function == taken
    notes = [line for line in checkpoint.info.notes if "gelu" in line]
    assert len(notes) == bool(note)
    assert note in "".join(notes)


def another_model(folder: Path) -> None:
    write_config(folder)
    path = "bert/tf_bert_model/bert/encoder/layer_._0/attention/self/query/kernel:0"
    KerasH5().write(folder / "tf_model.h5", {}, {path: np.ones((4, 4), np.float32)})


def cross_attention(folder: Path) -> None:
    path = "transformer/m/transformer/h_._0/crossattention/c_attn/weight:0"
    write_config(folder)
    KerasH5().write(folder / "tf_model.h5", numpy_state(model()), {path: np.ones((48, 96), np.float32)})


def no_layer_norm(folder: Path) -> None:
    write_config(folder)
    state = {name: value for name, value in numpy_state(model()).items() if "h.1.ln_2" not in name}
    KerasH5().write(folder / "tf_model.h5", state)


def integers(folder: Path) -> None:
    write_config(folder)
    KerasH5().write(folder / "tf_model.h5", numpy_state(model(), "int32"))


def cut_off(folder: Path) -> None:
    quickly(folder)
    data = (folder / "tf_model.h5").read_bytes()
    (folder / "tf_model.h5").write_bytes(data[:-100])


def no_index(folder: Path) -> None:
    in_shards(folder)
    (folder / "tf_model.h5.index.json").unlink()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "another model": (another_model, "an HDF5 file without transformers' GPT-2 in it: load it with its own program"),
    "cross attention": (cross_attention, "1 unexpected tensor: h.0.crossattention.c_attn.weight"),
    "a missing layer norm": (no_layer_norm, "2 missing tensors: h.1.ln_2.weight, h.1.ln_2.bias"),
    "integers": (integers, "expected float16, bfloat16, float32, float64, found int32"),
    "cut off": (cut_off, r"tf_model.h5: cannot be read as HDF5: .*: damaged or cut off, get it again"),
    "no index": (no_index, r"tf_model.h5.index.json: is missing, tf_model-00001-of-00003.h5 is one file of several"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_an_error_of_one_line(case: str, tmp_path: Path) -> None:
    spoil, words = BROKEN[case]
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300
