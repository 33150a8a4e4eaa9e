"""OpenAI's checkpoints, against TensorFlow's own files and the formulas of OpenAI's model, written out in NumPy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import torch
from tokenizers.pre_tokenizers import ByteLevel

from convert.conversion import to_checkpoint
from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError, ConvertError
from tests.helpers.assertions import assert_one_line
from tests.helpers.huggingface import random_model
from tests.helpers.light import main, run

Tensors = dict[str, np.ndarray[Any, Any]]

V, S, H, L, HEADS = 96, 24, 48, 3, 4
HPARAMS = {"n_vocab": V, "n_ctx": S, "n_embd": H, "n_head": HEADS, "n_layer": L}
IDS = np.random.default_rng(3).integers(0, V, S)


def random_tensors(seed: int = 0) -> Tensors:
    """Under OpenAI's names. No bias is zero, no layer norm trivial, and logits are of order 10."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.2, mean: float = 0.0) -> np.ndarray[Any, Any]:
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    tensors = {"model/wte": normal(V, H, scale=0.7), "model/wpe": normal(S, H)}
    for i in range(L):
        for norm in ("ln_1", "ln_2"):
            tensors |= {f"model/h{i}/{norm}/g": normal(H, mean=1), f"model/h{i}/{norm}/b": normal(H)}
        for linear, inputs, out in (
            ("attn/c_attn", H, 3 * H), ("attn/c_proj", H, H), ("mlp/c_fc", H, 4 * H), ("mlp/c_proj", 4 * H, H),
        ):  # fmt: skip
            tensors[f"model/h{i}/{linear}/w"] = normal(1, inputs, out, scale=1 / math.sqrt(inputs))
            tensors[f"model/h{i}/{linear}/b"] = normal(out)
    return tensors | {"model/ln_f/g": normal(H, mean=1), "model/ln_f/b": normal(H)}


def expected_logits(tensors: Tensors, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float64: the model of openai/gpt-2, one text."""
    w = {name.removeprefix("model/"): value.astype(np.float64) for name, value in tensors.items()}

    def norm(x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}/g"] + w[f"{name}/b"]

    def linear(x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        return x @ w[f"{name}/w"][0] + w[f"{name}/b"]

    def gelu(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    n = len(ids)
    visible = np.tril(np.ones((n, n)))
    x = w["wte"][ids] + w["wpe"][:n]
    for i in range(L):
        q, k, v = (
            part.reshape(n, HEADS, H // HEADS).transpose(1, 0, 2)
            for part in np.split(linear(norm(x, f"h{i}/ln_1"), f"h{i}/attn/c_attn"), 3, axis=-1)
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(H // HEADS)
        scores = scores * visible - 1e10 * (1 - visible)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + linear((weights @ v).transpose(1, 0, 2).reshape(n, H), f"h{i}/attn/c_proj")
        x = x + linear(gelu(linear(norm(x, f"h{i}/ln_2"), f"h{i}/mlp/c_fc")), f"h{i}/mlp/c_proj")
    return norm(x, "ln_f") @ w["wte"].T


def save(folder: Path, tensors: Tensors, name: str = "model.ckpt") -> Path:
    """A checkpoint by TensorFlow's own writer, and the files that belong to it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = [tf.constant(value) for value in tensors.values()]
    tf.raw_ops.SaveV2(
        prefix=str(folder / name), tensor_names=list(tensors), shape_and_slices=[""] * len(values), tensors=values
    )
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n')
    return folder


def load(prefix: Path) -> Tensors:
    """All tensors of a checkpoint, by TensorFlow's own reader."""
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def test_logits_are_those_of_the_formulas(tmp_path: Path) -> None:
    tensors = random_tensors()
    run("tf-to-tf", "--checkpoint", save(tmp_path / "theirs", tensors), "--output", tmp_path / "model")
    model = tf.saved_model.load(str(tmp_path / "model"))
    found = model.signatures["logits"](input_ids=tf.constant(IDS[None], tf.int64))["logits"].numpy()[0]
    expected = expected_logits(tensors, IDS)
    assert expected.std() > 2
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_logits_of_transformers_are_those_of_the_formulas(tmp_path: Path) -> None:
    """What is written has another origin than what is read above: the two layouts meet in the formulas only."""
    model = random_model()
    model.save_pretrained(tmp_path / "theirs")
    run("to-openai", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "ours")
    with torch.inference_mode():
        expected = model(torch.from_numpy(IDS[None])).logits[0].numpy()
    np.testing.assert_allclose(expected_logits(load(tmp_path / "ours/model.ckpt"), IDS), expected, atol=1e-4)


def _train(folder: Path, steps: tuple[int, ...]) -> dict[int, Tensors]:
    """As gpt-2-simple leaves it: TensorFlow 1's Saver, slots of Adam, counters; the weights at each step."""
    folder.mkdir()
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    weights = {}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(name, initializer=value, use_resource=False)
            for name, value in random_tensors().items()
        ]
        loss = tf.add_n([tf.reduce_sum(variable**2) for variable in variables])
        step = tf.compat.v1.train.get_or_create_global_step()
        train = tf.compat.v1.train.AdamOptimizer(0.01).minimize(loss, global_step=step)
        saver = tf.compat.v1.train.Saver(max_to_keep=9)
        session.run(tf.compat.v1.global_variables_initializer())
        for number in steps:
            session.run(train)
            saver.save(session, str(folder / "model"), global_step=number)
            weights[number] = {v.op.name: session.run(v) for v in variables}
    return weights


def test_what_a_training_leaves_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = _train(tmp_path / "run1", (9, 1000, 2000))
    names = load(tmp_path / "run1/model-9").keys()
    assert {"beta1_power", "global_step", "model/wte/Adam", "model/h0/attn/c_attn/w/Adam_1"} <= names
    assert (tmp_path / "run1/model-9.meta").exists()
    for iteration, number in ((None, 2000), ("1000", 1000), ("9", 9)):
        checkpoint = open_checkpoint(tmp_path / "run1", iteration=iteration, format="openai-tf1")
        assert checkpoint.info.details == {"iteration": number}
        assert {"Adam", "Adam_1", "beta1_power", "beta2_power", "global_step"} == set(checkpoint.info.left_out)
        for theirs, ours in (("wte", "wte.weight"), ("h2/mlp/c_proj/w", "h.2.mlp.c_proj.weight")):
            value = checkpoint.read(ours, np.dtype(np.float32))
            expected = weights[number][f"model/{theirs}"]
            assert np.array_equal(value, expected[0].T if expected.ndim == 3 else expected)
    options = ["--checkpoint", str(tmp_path / "run1"), "--output", str(tmp_path / "ours"), "--iteration", "1000"]
    assert main(["to-openai", *options]) == 0
    assert "left out: beta1_power, beta2_power, global_step, Adam, Adam_1\n" in capsys.readouterr().err
    assert_same(load(tmp_path / "ours/model.ckpt"), weights[1000])


def test_every_path_that_names_the_checkpoint_opens_it(tmp_path: Path) -> None:
    folder = save(tmp_path / "你 好", random_tensors(), "model-7")
    (folder / "model-7.meta").write_bytes(b"a graph")
    for name in ("", "checkpoint", "hparams.json", "model-7", "model-7.index", "model-7.meta",
                 "model-7.data-00000-of-00001"):  # fmt: skip
        run("tf-to-pytorch", "--checkpoint", folder / name, "--output", tmp_path / f"out {name}")
        found = safetensors.numpy.load_file(tmp_path / f"out {name}" / "model.safetensors")
        assert np.array_equal(found["transformer.wte.weight"], random_tensors()["model/wte"])


@pytest.mark.parametrize(
    "text", ["/somewhere/else/model-7", "C:\\\\models\\\\model-7", "./model-7", r"\344\275\240/model-7"]
)
def test_the_checkpoint_file_of_another_machine_is_understood(text: str, tmp_path: Path) -> None:
    folder = save(tmp_path, random_tensors(), "model-7")
    save(tmp_path, random_tensors(1), "model-8")
    (folder / "checkpoint").write_text(f'all_model_checkpoint_paths: "model-8"\nmodel_checkpoint_path: "{text}"\n')
    assert open_checkpoint(folder, format="openai-tf1").info.details == {"iteration": 7}


@pytest.mark.parametrize("letter", "*?[]\\")
def test_a_path_that_tensorflow_takes_for_a_pattern_is_refused(letter: str, tmp_path: Path) -> None:
    folder = save(tmp_path / f"a{letter}b", random_tensors())
    with pytest.raises(CheckpointError, match=f"from a path with {re.escape(letter)} in it: rename it"):
        open_checkpoint(folder, format="openai-tf1")


def test_the_only_one_needs_no_checkpoint_file(tmp_path: Path) -> None:
    (save(tmp_path, random_tensors()) / "checkpoint").unlink()
    assert open_checkpoint(tmp_path, format="openai-tf1").info.details == {}


def test_sizes_are_read_from_the_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (save(tmp_path / "theirs", random_tensors()) / "hparams.json").unlink()
    arguments = ["--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]
    assert main(["to-openai", *arguments]) == 2
    assert "the number of heads is not in the file (hidden size 48" in capsys.readouterr().err
    run("to-openai", *arguments, "--heads", 4)
    assert json.loads((tmp_path / "ours" / "hparams.json").read_text()) == HPARAMS
    assert main(["inspect", str(tmp_path / "theirs")]) == 0
    assert "openai-tf1 checkpoint" in capsys.readouterr().out


def test_data_in_several_files_is_read(tmp_path: Path) -> None:
    """As MergeV2Checkpoints leaves them, which a training on several devices ends with."""
    tensors = random_tensors()
    for part in range(2):
        half = dict(list(tensors.items())[part::2])
        tf.raw_ops.SaveV2(
            prefix=str(tmp_path / f"part{part}"), tensor_names=list(half), shape_and_slices=[""] * len(half),
            tensors=[tf.constant(value) for value in half.values()],
        )  # fmt: skip
    prefix = tmp_path / "whole" / "model.ckpt"
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / f"part{i}") for i in range(2)], destination_prefix=str(prefix)
    )
    (prefix.parent / "hparams.json").write_text(json.dumps(HPARAMS))
    checkpoint = open_checkpoint(prefix.parent, format="openai-tf1")
    assert [file.name for file in checkpoint.info.files] == [f"model.ckpt.data-0000{i}-of-00002" for i in range(2)]
    run("to-openai", "--checkpoint", prefix.parent, "--output", tmp_path / "ours")
    assert_same(load(tmp_path / "ours/model.ckpt"), tensors)
    checkpoint.info.files[1].unlink()
    with pytest.raises(CheckpointError, match="data-00001-of-00002: missing in the same folder"):
        open_checkpoint(prefix.parent, format="openai-tf1")


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_hugging_face_and_back_keeps_every_bit(kind: torch.dtype, tmp_path: Path) -> None:
    """Float32 bit for bit; the two half types by way of float32, which holds them exactly."""
    name = str(kind).removeprefix("torch.")
    random_model().to(kind).save_pretrained(tmp_path / "theirs")
    run("to-huggingface", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "before")
    run("to-openai", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "between")
    run("to-huggingface", "--checkpoint", tmp_path / "between", "--output", tmp_path / "after", "--dtype", name)
    before, after = (tmp_path / folder / "model.safetensors" for folder in ("before", "after"))
    assert before.read_bytes() == after.read_bytes()
    assert {tensor.dtype for tensor in load(tmp_path / "between/model.ckpt").values()} == {np.dtype(np.float32)}


def test_savedmodel_and_back_keeps_every_bit(tmp_path: Path) -> None:
    tensors = random_tensors()
    run("to-tf", "--checkpoint", save(tmp_path / "theirs", tensors), "--output", tmp_path / "between")
    run("to-openai", "--checkpoint", tmp_path / "between", "--output", tmp_path / "ours")
    assert_same(load(tmp_path / "ours/model.ckpt"), tensors)
    assert main(["check", str(tmp_path / "ours")]) == 0


def test_the_files_that_openais_code_needs_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(activation_function="gelu_pytorch_tanh").half().save_pretrained(tmp_path / "theirs")
    capsys.readouterr()
    assert main(["to-openai", "--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]) == 0
    out, err = capsys.readouterr()
    assert "note: float16 weights are widened to float32: same values" in err
    assert "as float32 in 2 files" in out
    assert tf.train.latest_checkpoint(str(tmp_path / "ours")) == str(tmp_path / "ours/model.ckpt")
    assert json.loads((tmp_path / "ours/hparams.json").read_text()) == HPARAMS
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        "checkpoint", "hparams.json", "manifest.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001",
    }  # fmt: skip
    shapes = {name: value.shape for name, value in load(tmp_path / "ours/model.ckpt").items()}
    assert shapes == {name: value.shape for name, value in random_tensors().items()}


def test_another_type_can_be_written(tmp_path: Path) -> None:
    tensors = random_tensors()
    save(tmp_path / "theirs", tensors)
    run("to-openai", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "half", "--dtype", "bfloat16")
    expected = {name: tf.cast(value, tf.bfloat16).numpy() for name, value in tensors.items()}
    assert_same(load(tmp_path / "half/model.ckpt"), expected)
    run("to-openai", "--checkpoint", tmp_path / "half", "--output", tmp_path / "whole")
    assert_same(load(tmp_path / "whole/model.ckpt"), {name: v.astype(np.float32) for name, v in expected.items()})


def test_a_graph_of_tensorflow_1_restores_it(tmp_path: Path) -> None:
    """What gpt-2-simple does with what is written: variables of float32, and a Saver."""
    random_model().save_pretrained(tmp_path / "theirs")
    run("to-openai", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "ours")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(name, value.shape, tf.float32) for name, value in random_tensors().items()
        ]
        saver = tf.compat.v1.train.Saver(variables)
        saver.restore(session, tf.train.latest_checkpoint(str(tmp_path / "ours")))
        found = {v.op.name: session.run(v) for v in variables}
    assert_same(found, load(tmp_path / "ours/model.ckpt"))


def test_a_byte_level_tokenizer_has_its_name_in_each_format(tmp_path: Path) -> None:
    merges = "#version: 0.2\nh e\nhe l\n"
    pieces = [*sorted(ByteLevel.alphabet()), "he", "hel", "<|endoftext|>"]
    vocabulary = json.dumps({piece: index for index, piece in enumerate(pieces)})
    random_model(vocab_size=300).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "vocab.json").write_text(vocabulary)
    (tmp_path / "theirs" / "merges.txt").write_text(merges)
    run("to-openai", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "ours")
    assert (tmp_path / "ours" / "encoder.json").read_text() == vocabulary
    assert (tmp_path / "ours" / "vocab.bpe").read_text() == merges
    run("to-huggingface", "--checkpoint", tmp_path / "ours", "--output", tmp_path / "back")
    assert (tmp_path / "back" / "vocab.json").read_text() == vocabulary
    assert (tmp_path / "back" / "merges.txt").read_text() == merges
    assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] == 258


def test_another_tokenizer_keeps_its_names(demo: Path, tmp_path: Path) -> None:
    run("to-openai", "--checkpoint", demo, "--heads", 4, "--tokenizer", demo / "tokenizer", "--output", tmp_path / "a")
    for file in (demo / "tokenizer").iterdir():
        if file.suffix == ".model":
            assert (tmp_path / "a" / file.name).read_bytes() == file.read_bytes()
    assert not (tmp_path / "a" / "encoder.json").exists()
    assert open_checkpoint(tmp_path / "a", format="openai-tf1").tokenizer == tmp_path / "a"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_inner": 40}, "n_inner is 40, there it is always 192"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu', there it is always gelu_new or"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06, there it is always 1e-05"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ],
)
def test_a_model_that_the_format_cannot_hold_is_refused(
    options: dict[str, Any], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    random_model(**options).save_pretrained(tmp_path / "theirs")
    capfd.readouterr()
    output = tmp_path / "new" / "ours"
    assert main(["to-openai", "--checkpoint", str(tmp_path / "theirs"), "--output", str(output)]) == 2
    assert_one_line(capfd.readouterr().err, words)
    assert not (tmp_path / "new").exists()
    checkpoint = open_checkpoint(tmp_path / "theirs", format="huggingface")
    with pytest.raises(ConvertError, match=re.escape(words)):
        to_checkpoint(checkpoint, tmp_path / "new", format="openai-tf1")


def _resave(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = random_tensors()
        change(tensors)
        save(folder, tensors)

    return edit


def _hparams(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "hparams.json").write_text(json.dumps({**HPARAMS, **changes}))


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def _several(folder: Path) -> None:
    for name in ("model-10", "model-9"):
        save(folder, random_tensors(), name)
    (folder / "checkpoint").unlink()


FC, INDEX, DATA = "model/h1/mlp/c_fc/w", "model.ckpt.index", "model.ckpt.data-00000-of-00001"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / INDEX).unlink(), "names 'model.ckpt', but 'model.ckpt.index' is missing: there is no"),
    "no data": (lambda f: (f / DATA).unlink(), f"{DATA}: missing in the same folder: get all files"),
    "the data is cut off": (_bytes(DATA, lambda data: data[:-1]), "bytes or more, found"),
    "the data is empty": (_bytes(DATA, lambda data: b""), "bytes or more, found 0: cut off"),
    "the data is damaged": (_bytes(DATA, lambda data: data[:99] + b"\1\2" + data[101:]), "cannot be read: "),
    "the data is a pointer": (_bytes(DATA, lambda data: POINTER), f"{DATA}: a Git LFS pointer: fetch"),
    "the index is a pointer": (_bytes(INDEX, lambda data: POINTER), f"{INDEX}: a Git LFS pointer: fetch"),
    "the index is empty": (_bytes(INDEX, lambda data: b""), f"{INDEX}: cannot be read"),
    "the index is cut off": (_bytes(INDEX, lambda data: data[: len(data) // 2]), f"{INDEX}: cannot be read"),
    "the index is something else": (_bytes(INDEX, lambda data: b"<html>" * 99), f"{INDEX}: cannot be read"),
    "the index is damaged": (_bytes(INDEX, lambda data: data[:60] + b"\xff" * 9 + data[69:]), f"{INDEX}: cannot be"),
    "checkpoint is garbage": (_write("checkpoint", bytes(range(256))), "checkpoint: expected a line model_checkpoint_"),
    "checkpoint is empty": (_write("checkpoint", b""), "checkpoint: expected a line model_checkpoint_path"),
    "checkpoint names nothing": (_write("checkpoint", b'model_checkpoint_path: ""'), "expected a line model_"),
    "checkpoint has half an escape": (_write("checkpoint", rb'model_checkpoint_path: "\xff\x"'), "expected a line"),
    "checkpoint names another": (_write("checkpoint", b'model_checkpoint_path: "model-5"'), "names 'model-5', but"),
    "several and no checkpoint": (
        _several,
        "no file checkpoint, and there is model.ckpt.index, model-9.index, model-10.index: give one",
    ),
    "hparams is no JSON": (_write("hparams.json", b"{"), "hparams.json: expected JSON"),
    "hparams is a list": (_write("hparams.json", b"[]"), "hparams.json: expected a JSON object, found a list"),
    "another vocabulary": (_hparams(n_vocab=97), f"n_vocab is 97, but model/wte of {INDEX} have 96"),
    "other positions": (_hparams(n_ctx=1024), f"n_ctx is 1024, but model/wpe of {INDEX} have 24"),
    "another width": (_hparams(n_embd="48"), "n_embd is '48', but model/wte of"),
    "more layers": (_hparams(n_layer=4), f"n_layer is 4, but model/h* of {INDEX} have 3"),
    "heads that do not fit": (_hparams(n_head=5), "5 heads do not fit (hidden size 48"),
    "heads that are no number": (_hparams(n_head="4"), "n_head is '4': expected a number"),
    "a tensor is missing": (_resave(lambda t: t.pop(FC)), f"1 missing tensor: {FC}"),
    "a layer is missing": (
        _resave(lambda t: [t.pop(name) for name in list(t) if "/h1/" in name]), "12 missing tensors: model/h1/ln_1/g",
    ),
    "no embedding": (_resave(lambda t: t.pop("model/wte")), "missing tensor: model/wte: not a GPT-2"),
    "another model": (_resave(lambda t: (t.clear(), t.update(x=np.ones(2)))), "missing tensor: model/wte"),
    "a tensor too many": (
        _resave(lambda t: t.update({"model/h0/attn/c_qkv/w": np.ones(2)})), "1 unexpected tensor: model/h0/attn/c_qkv",
    ),
    "[out, in]": (
        _resave(lambda t: t.update({FC: t[FC].transpose(0, 2, 1)})),
        f"{FC}: expected the shape [1, 48, 192], found [1, 192, 48]",
    ),
    "no dimension in front": (_resave(lambda t: t.update({FC: t[FC][0]})), "[1, 48, 192], found [48, 192]"),
    "an embedding that is no matrix": (_resave(lambda t: t.update({"model/wte": np.ones(5)})), "expected a matrix"),
    "whole numbers": (_resave(lambda t: t.update({FC: t[FC].astype(np.int64)})), f"{FC}: expected float16, bfloat16"),
    "strings": (_resave(lambda t: t.update({"model/ln_f/b": np.array(["x"] * H)})), "model/ln_f/b: expected float16"),
    "not a number": (_resave(lambda t: t[FC].fill(np.nan)), f"{FC}: 9216 of 9216 values are NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, words = BROKEN[case]
    spoil(save(tmp_path / "theirs", random_tensors()))
    capfd.readouterr()
    for command in ("to-openai", "tf-to-tf"):
        arguments = ["--checkpoint", tmp_path / "theirs", "--output", tmp_path / "new" / "ours", "--quiet"]
        assert main([command, *map(str, arguments)]) == 2
        assert_one_line(capfd.readouterr().err, words)
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("iteration", "words"),
    [
        ("8", "no iteration 8 here: there is model-7.index, model-70.index"),
        ("release", "--iteration 'release': expected a number"),
        ("٧", "expected a number"),
        ("9" * 5000, "expected a number"),
        ("5", "two checkpoints of iteration 5 here: there is copy-5.index, model-5.index"),
    ],
)
def test_an_iteration_that_is_not_there_is_refused(
    iteration: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("model-5", "copy-5") if iteration == "5" else ("model-7", "model-70"):
        save(tmp_path / "theirs", random_tensors(), name)
    arguments = ["--checkpoint", tmp_path / "theirs", "--output", tmp_path / "new", "--iteration", iteration]
    assert main(["to-openai", *map(str, arguments)]) == 2
    assert_one_line(capfd.readouterr().err, words)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_is_given_is_of_its_own_iteration_only(tmp_path: Path) -> None:
    for name in ("model-7", "model-70"):
        save(tmp_path, random_tensors(), name)
    with pytest.raises(CheckpointError, match=r"model-7: no iteration 70 here: there is model-7.index"):
        open_checkpoint(tmp_path / "model-7", iteration="70")
    assert open_checkpoint(tmp_path / "model-7", iteration="7").info.details == {"iteration": 7}


def test_a_folder_of_something_else_is_not_taken_for_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path, source in (
        (tmp_path / "nothing", ()), (tmp_path, ()), (tmp_path, ("--from", "openai-tf1")),
    ):  # fmt: skip
        arguments = ["--checkpoint", str(path), "--output", str(tmp_path / "new"), *source]
        assert main(["to-openai", *arguments]) == 2
        error = capfd.readouterr().err
        assert_one_line(
            error, "no such file or folder" if path != tmp_path else ": expected hparams" if source else "an empty"
        )
