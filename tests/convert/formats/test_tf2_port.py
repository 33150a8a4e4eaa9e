"""SavedModels of CPM-LM-TF2: every weight and the logits, against the port's formulas in float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers

from convert.checkpoint import Checkpoint
from convert.conversion import to_checkpoint
from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError
from tests.helpers.tf2_port import (
    HEADS,
    IDS,
    H,
    Objects,
    Plain,
    Tensors,
    erf_gelu,
    expected_logits,
    keras_model,
    random_tensors,
    save,
    tanh_gelu,
)


def renamed(tensors: Tensors, change: Callable[[str], str]) -> Tensors:
    return {change(name): value for name, value in tensors.items()}


def second(name: str) -> str:
    """Name a variable of the second model that a program makes."""
    return name.replace("gpt/embedding/", "gpt_1/embedding_1/").replace("gpt/", "gpt_1/")


class Wrapped(tf.Module):
    """A Keras model in a module, as people wrap one to give it signatures."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.gpt = keras_model(tensors)


class Trained(Plain):
    """What ``save`` keeps of a model that was trained: moments of Adam and its counter."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__(tensors)
        self.moments = [tf.Variable(0 * value, name=f"Adam/{name}/m") for name, value in tensors.items()]
        self.count = tf.Variable(7, dtype=tf.int64, name="Adam/iter")


def weights_only(tensors: Tensors, folder: Path) -> Path:
    tf.train.Checkpoint(model=Plain(tensors)).write(str(folder / "weights"))
    return folder / "weights"


def of_tensorflow_1(tensors: Tensors, folder: Path) -> Path:
    """A SavedModel whose variables have names for keys, as TensorFlow 1 exports it."""
    made = folder / "x"
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in tensors.items():
            tf.compat.v1.get_variable(name, initializer=value)
        session.run(tf.compat.v1.global_variables_initializer())
        builder = tf.compat.v1.saved_model.builder.SavedModelBuilder(str(made))
        builder.add_meta_graph_and_variables(session, ["serve"])
        builder.save()
    return made


def keras_weights(tensors: Tensors, folder: Path) -> Path:
    """As ``save_weights`` of Keras 2 writes them: next to a file ``checkpoint``."""
    tf.train.Checkpoint(Plain(tensors)).save(str(folder / "cp"))
    return folder


def keras_h5(tensors: Tensors, folder: Path) -> Path:
    """As ``save_weights("x.h5")`` of Keras 2 writes them: a group for each layer, and the variables' names in it."""
    with h5py.File(folder / "x.h5", "w") as opened:
        for name, value in tensors.items():
            layer = name.split("/")[1] if "/" in name else "position_embedding"
            opened.create_dataset(f"{layer}/{name}:0", data=value)
        opened.create_group("top_level_model_weights")
    return folder / "x.h5"


MADE: dict[str, Callable[[Tensors, Path], Path]] = {
    "named variables": lambda tensors, folder: save(Plain(tensors), folder / "x"),
    "positions in their layer": lambda tensors, folder: save(
        Plain(renamed(tensors, lambda n: n.replace("position_e", "gpt/position_embedding/position_e"))), folder / "x"
    ),
    "the second model of a program": lambda tensors, folder: save(Plain(renamed(tensors, second)), folder / "x"),
    "names without the model": lambda tensors, folder: save(
        Plain(renamed(tensors, lambda n: n.removeprefix("gpt/"))), folder / "x"
    ),
    "a model of Keras": lambda tensors, folder: save(keras_model(tensors), folder / "x"),
    "a model of Keras in a module": lambda tensors, folder: save(Wrapped(tensors), folder / "x"),
    "a model that was trained": lambda tensors, folder: save(Trained(tensors), folder / "x"),
    "weights by the beginning of their names": weights_only,
    "weights by their index": lambda tensors, folder: weights_only(tensors, folder).with_name("weights.index"),
    "weights in a folder": keras_weights,
    "TensorFlow 1": of_tensorflow_1,
    "paths of objects": lambda tensors, folder: save(Objects(tensors), folder / "x"),
    "weights of Keras in HDF5": keras_h5,
}


def logits_by_transformers(checkpoint: Checkpoint, folder: Path) -> np.ndarray:
    to_checkpoint(checkpoint, folder, format="huggingface")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return model(torch.tensor(IDS[np.newaxis])).logits[0].numpy()


@pytest.mark.parametrize(
    "made", [pytest.param(made, marks=[pytest.mark.slow] if "Keras" in made else []) for made in MADE]
)
def test_logits_are_those_of_the_ports_formulas_with_the_gelu_that_cpm_was_trained_with(
    made: str, tmp_path: Path
) -> None:
    tensors = random_tensors()
    checkpoint = open_checkpoint(MADE[made](tensors, tmp_path), heads=HEADS)
    assert checkpoint.info.format == "tf2-port"
    assert checkpoint.config.activation_function == "gelu_new"
    assert "--activation-function gelu" in "".join(checkpoint.info.notes)
    found = logits_by_transformers(checkpoint, tmp_path / "hf")
    np.testing.assert_allclose(found, expected_logits(tensors, tanh_gelu), atol=1e-5)
    assert abs(expected_logits(tensors, erf_gelu) - found).max() > 1e-4  # the two can be told apart


def test_the_ports_own_numbers_are_an_option(tmp_path: Path) -> None:
    tensors = random_tensors()
    checkpoint = open_checkpoint(save(Plain(tensors), tmp_path / "x"), heads=HEADS, activation_function="gelu")
    assert checkpoint.info.notes == ()
    found = logits_by_transformers(checkpoint, tmp_path / "hf")
    np.testing.assert_allclose(found, expected_logits(tensors, erf_gelu), atol=1e-5)


def test_halves_keep_their_bits(tmp_path: Path) -> None:
    tensors = random_tensors(dtype="float16")
    checkpoint = open_checkpoint(save(Plain(tensors), tmp_path / "x"), heads=HEADS)
    assert {dtype.name for dtype in checkpoint.dtypes.values()} == {"float16"}
    kernel = checkpoint.read("h.1.attn.c_attn.weight", np.dtype("float16"))
    assert np.array_equal(kernel[H : 2 * H], tensors["gpt/layer01/attention/key_layer/kernel"].T)


@pytest.mark.slow
def test_layers_are_ordered_by_number(tmp_path: Path) -> None:
    tensors = random_tensors(layers=12)
    checkpoint = open_checkpoint(save(Plain(tensors), tmp_path / "x"), heads=HEADS)
    assert checkpoint.config.n_layer == 12
    for i in (2, 10):
        found = checkpoint.read(f"h.{i}.mlp.c_fc.bias", np.dtype("float32"))
        assert np.array_equal(found, tensors[f"gpt/layer{i:02d}/intermediate/bias"])


def test_tokens_are_those_of_cpm(tmp_path: Path) -> None:
    tokens = open_checkpoint(save(Plain(random_tensors()), tmp_path / "x"), heads=HEADS).tokens
    assert tokens is not None
    assert (tokens.eos_token_id, tokens.pad_token_id) == (7, 5)


def without(pattern: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tensors = {name: value for name, value in random_tensors().items() if not re.search(pattern, name)}
        return save(Plain(tensors), folder / "x")

    return make


def with_more(name: str) -> Callable[[Path], Path]:
    return lambda folder: save(Plain({**random_tensors(), name: np.ones((20, H), np.float32)}), folder / "x")


def another_shape(folder: Path) -> Path:
    tensors = random_tensors()
    tensors["gpt/layer01/attention/value_layer/bias"] = np.ones(H + 1, np.float32)
    return save(Plain(tensors), folder / "x")


def another_program(folder: Path) -> Path:
    return save(Plain({"dense/kernel": np.ones((3, 3), np.float32)}), folder / "x")


def no_variables(folder: Path) -> Path:
    made = save(Plain(random_tensors()), folder / "x")
    (made / "variables/variables.index").unlink()
    return made


def cut(folder: Path) -> Path:
    made = save(Plain(random_tensors()), folder / "x")
    data = made / "variables/variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-3000])
    return made


def damaged_index(folder: Path) -> Path:
    made = save(Plain(random_tensors()), folder / "x")
    index = made / "variables/variables.index"
    index.write_bytes(index.read_bytes()[:100])
    return made


def two_models(folder: Path) -> Path:
    return save(Plain({**random_tensors(), **renamed(random_tensors(1), second)}), folder / "x")


def two_checkpoints(folder: Path) -> Path:
    for name in ("weights", "again"):
        tf.train.Checkpoint(Objects(random_tensors())).write(str(folder / name))
    return folder


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a layer norm is missing": (without("layer02/LayerNorm_mlp_ln1/beta"), "1 missing tensor: layer02/LayerNorm_mlp_"),
    "a layer is missing": (without("layer01/"), "16 missing tensors: layer01/LayerNorm_mlp_ln0/gamma, "),
    "no positions": (without("position"), "missing tensor: position_embeddings"),
    "another shape": (another_shape, r"value_layer/bias: expected the shape \[32\], found \[33\]"),
    "a PanGu-alpha": (with_more("top_query"), "a PanGu-alpha, whose last block has a query of its own: not a GPT-2"),
    "a Grover": (with_more("gpt/LayerNorm_embed_norm/gamma"), r"a Grover \(imcaspar's gpt2-ml\).*: not a GPT-2"),
    "another program's": (
        another_program,
        r"SavedModel that this program did not write \(dense/kernel\): give",
    ),
    "no variables": (no_variables, "a SavedModel that this program did not write: give the checkpoint"),
    "cut off": (cut, "the graph of objects ends too early: damaged or cut off, get it again"),
    "a damaged index": (damaged_index, "variables.index: the names of its variables cannot be read: .*: damaged"),
    "two models": (two_models, "two variables .*: several models, save one of them alone"),
    "two checkpoints": (two_checkpoints, "several checkpoints: give one of again, weights"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_one_is_an_error_of_one_line(case: str, tmp_path: Path) -> None:
    make, words = BROKEN[case]
    made = make(tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(made, heads=HEADS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_heads_are_asked_for_where_no_published_model_has_this_size(tmp_path: Path) -> None:
    made = save(Plain(random_tensors()), tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"the number of heads is not in the file .*: give --heads"):
        open_checkpoint(made)
