"""Reading a checkpoint into a Keras model, new models, and what is frozen."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.random_checkpoint import parse_shape, write_checkpoint
from convert.tensors import BFLOAT16
from support.errors import UserError
from tests.helpers.in_memory import InMemory
from tf_model.config import GPT2Config
from training.model.new_model import NewModel
from training.model.weights import assign_without_copy, freeze, load_gpt2, new_gpt2

MEASURE = """
import sys
from convert import open_checkpoint
from training.model.weights import load_gpt2
import tensorflow as tf

def peak():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

tf.Variable(tf.zeros([10])).assign_add(tf.ones([10]))
checkpoint = open_checkpoint(sys.argv[1], heads=16)
before = peak()
gpt2 = load_gpt2(checkpoint, sys.argv[2])
print(peak() - before)
"""
CONFIG = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=3, n_head=2, tie_word_embeddings=False)


def test_every_tensor_of_a_checkpoint_is_in_the_float32_model() -> None:
    checkpoint = InMemory(CONFIG)
    variables = load_gpt2(checkpoint).canonical_variables()
    assert variables.keys() == checkpoint.weights.keys()
    assert all(np.array_equal(variables[name], value) for name, value in checkpoint.weights.items())


def test_bfloat16_weights_are_the_rounded_ones_and_frozen() -> None:
    checkpoint = InMemory(CONFIG)
    gpt2 = load_gpt2(checkpoint, "bfloat16")
    for name, variable in gpt2.canonical_variables().items():
        own = checkpoint.weights[name]
        expected = own if ".ln_" in f".{name}" else own.astype(BFLOAT16)
        assert variable.numpy().dtype == expected.dtype
        assert np.array_equal(variable.numpy(), expected), name
    assert not gpt2.trainable_variables


def test_int8_weights_times_their_scales_are_half_a_level_from_the_originals_and_frozen() -> None:
    checkpoint = InMemory(CONFIG)
    gpt2 = load_gpt2(checkpoint, "int8")
    variables = {name: variable.numpy() for name, variable in gpt2.canonical_variables().items()}
    for name, own in checkpoint.weights.items():
        if f"{name}_scale" not in variables:
            assert np.array_equal(variables[name], own), name
            continue
        scale = variables[f"{name}_scale"]
        assert variables[name].dtype == np.int8
        assert np.allclose(scale, np.abs(own).max(axis=1) / 127)
        assert (np.abs(variables[name] * scale[:, None] - own) <= 0.501 * scale[:, None]).all(), name
    assert not gpt2.trainable_variables


def test_loading_reports_bytes_up_to_all_of_them() -> None:
    calls: list[tuple[str, int, int]] = []
    load_gpt2(InMemory(CONFIG), progress=lambda *call: calls.append(call))
    total = 4 * CONFIG.parameter_count
    assert calls[0] == ("load", 0, total)
    assert calls[-1] == ("load", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_a_model_keeps_its_weights_when_the_checkpoints_memory_is_written_again() -> None:
    checkpoint = InMemory(CONFIG)
    gpt2 = load_gpt2(checkpoint)
    before = {name: variable.numpy() for name, variable in gpt2.canonical_variables().items()}
    for value in checkpoint.weights.values():
        value[...] = 9
    assert all(np.array_equal(variable, before[name]) for name, variable in gpt2.canonical_variables().items())


@pytest.mark.parametrize("dtype", [np.float32, np.int8, BFLOAT16])
def test_an_array_given_to_a_variable_is_its_value_and_can_be_changed_in_place(dtype: type) -> None:
    for array in (np.arange(40).reshape(5, 8).astype(dtype), np.arange(40).reshape(8, 5).astype(dtype).T):
        variable = tf.Variable(tf.zeros([5, 8], tf.as_dtype(dtype)))
        assign_without_copy(variable, array)
        assert np.array_equal(variable.numpy(), array)
        variable.assign_add(tf.cast(tf.ones([5, 8]), variable.dtype))
        assert np.array_equal(variable.numpy(), array + np.ones((), dtype))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "nbytes"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_loading_takes_the_weights_and_little_more_than_one_tensor(dtype: str, nbytes: int, tmp_path: Path) -> None:
    config = parse_shape("3x1024x16x30000x1024")
    write_checkpoint(tmp_path / "base", config, 1, np.dtype(np.float16))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "base"), dtype], capture_output=True, text=True, check=True
    )
    tensor = config.vocab_size * config.n_embd * 4
    assert int(done.stdout) < config.parameter_count * nbytes + 1.5 * tensor + 30e6


def test_a_new_model_has_gpt2s_deviations_and_depends_on_its_seed_alone() -> None:
    config = GPT2Config(vocab_size=500, n_positions=64, n_embd=64, n_layer=2, n_head=2)
    first, again, other = (new_gpt2(config, seed).canonical_variables() for seed in (1, 1, 2))
    for name, variable in first.items():
        value = variable.numpy()
        assert np.array_equal(value, again[name]), name
        if value.ndim == 1:
            assert (value == (1 if ".ln_" in f".{name}" and name.endswith("weight") else 0)).all(), name
            continue
        assert not np.array_equal(value, other[name])
        expected = 0.02 / np.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02
        assert value.std() == pytest.approx(expected, rel=0.05)
        assert abs(value.mean()) < expected / 20
    assert not np.array_equal(first["h.0.attn.c_attn.weight"], first["h.1.attn.c_attn.weight"])


def test_what_is_frozen_is_not_trained_and_everything_else_is() -> None:
    gpt2 = load_gpt2(NewModel(CONFIG, 0))
    freeze(gpt2, ["embeddings", "blocks:0-1"])
    trained = {name for name, variable in gpt2.named_variables().items() if variable.trainable}
    assert trained == {name for name in CONFIG.tensor_shapes() if name.startswith(("h.2.", "ln_f.", "lm_head."))}
    assert len(gpt2.trainable_variables) == len(trained)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks:1-3", "blocks from 0 to 2"),
        ("blocks:2-1", "blocks from 0 to 2"),
        ("blocks:-1", "expected embeddings, blocks:0-15"),
        ("layers:0", "'layers:0': expected embeddings"),
        ("", "'': expected embeddings"),
    ],
)
def test_parts_that_do_not_exist_cannot_be_frozen(name: str, message: str) -> None:
    gpt2 = load_gpt2(NewModel(CONFIG, 0))
    with pytest.raises(UserError, match=message):
        freeze(gpt2, ["embeddings", name])
    assert all(variable.trainable for variable in gpt2.variables)
