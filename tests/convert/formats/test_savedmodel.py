"""A SavedModel of this program as a source: what went in comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tensorflow as tf
import torch

from convert.formats.registry import open_checkpoint
from exports.tensor_bundle.writer import BundleWriter
from tests.helpers.assertions import assert_one_line
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.huggingface import VARIANTS, random_model
from tests.helpers.light import main, run
from tf_model.config import GPT2Config
from tf_model.precision import DTYPES, is_transposed

CONFIG = GPT2Config(vocab_size=96, n_positions=24, n_embd=48, n_layer=3, n_head=4)
KINDS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def stored(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of a SavedModel under their canonical names, by TensorFlow's own reader."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    keys = [key for key in reader.get_variable_to_shape_map() if key.startswith("weights/")]
    return {key.split("/")[1].replace("..", "."): reader.get_tensor(key) for key in keys}


def megatron_state(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.rglob("mp_rank_00_model_states.pt")
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=False)["module"]
    return state


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A SavedModel of the same random model, by dtype."""
    root = tmp_path_factory.mktemp("models")
    random_model().save_pretrained(root / "theirs")
    for dtype in DTYPES:
        run("to-tf", "--checkpoint", root / "theirs", "--output", root / dtype, "--dtype", dtype)
    return {dtype: root / dtype for dtype in DTYPES}


@pytest.mark.parametrize("dtype", KINDS)
def test_megatron_and_back_keeps_every_bit(dtype: str, tmp_path: Path) -> None:
    """Bit for bit. Layer norms are float32 in a SavedModel: of a half type they come back widened, the same values."""
    state = random_state(CONFIG, np.random.default_rng(1))
    write_megatron(tmp_path / "theirs", state, 2, dtype=KINDS[dtype], extras=False)
    expected = {name: tensor.to(KINDS[dtype]) for name, tensor in state.items()}
    options = ("--heads", 4, "--dtype", dtype)
    run("to-tf", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "between", *options)
    run("to-megatron", "--checkpoint", tmp_path / "between", "--output", tmp_path / "ours", "--tensor-parallel", 1)
    found = megatron_state(tmp_path / "ours")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == (torch.float32 if "layernorm" in name else KINDS[dtype]), name
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    words = ("--output", tmp_path / "narrow", "--tensor-parallel", 1, "--dtype", dtype)
    run("to-megatron", "--checkpoint", tmp_path / "between", *words)
    for name, tensor in megatron_state(tmp_path / "narrow").items():
        assert tensor.dtype == KINDS[dtype]
        assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name


@pytest.mark.parametrize("variant", [pytest.param("untied", marks=pytest.mark.slow), "all", "uer"])
def test_hugging_face_and_back_keeps_every_bit(variant: str, tmp_path: Path) -> None:
    """Weights, every choice of the configuration, and the special tokens."""
    random_model(**VARIANTS.get(variant, {"layer_norm": "uer"})).save_pretrained(tmp_path / "theirs")
    run("to-huggingface", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "before")
    run("tf-to-tf", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "between")
    run("tf-to-pytorch", "--checkpoint", tmp_path / "between", "--output", tmp_path / "after")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes(), name


@pytest.mark.parametrize("dtype", ["int8", "int8-low-memory", "int8-avx2"])
def test_int8_is_read_as_weights_times_scales(
    dtype: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(models[dtype]), "--output", str(tmp_path / "ours")]
    assert main(["to-huggingface", *arguments]) == 0
    note = f"note: the weights are those of {dtype}, not of the original"
    assert note in capsys.readouterr().err
    assert json.loads((tmp_path / "ours" / "manifest.json").read_text())["source"]["quantized"] == dtype
    found = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    inside, originals = stored(models[dtype]), stored(models["float32"])
    for name, original in originals.items():
        value = found[f"transformer.{name}"]
        if f"{name}_scale" not in inside:
            assert np.array_equal(value, inside[name]), name
            continue
        value = value if name == "wte.weight" else value.T
        scale = inside[f"{name}_scale"][:, None]
        matrix = inside[name].T if is_transposed(name, dtype) else inside[name]
        assert np.array_equal(value, matrix.astype(np.float32) * scale), name
        assert (np.abs(value - original) <= scale * 0.501).all(), name
    assert main(["to-tf", *arguments[:2], "--output", str(tmp_path / "model"), "--dtype", dtype, "--quiet"]) == 0
    assert not capsys.readouterr().err
    for name, value in stored(tmp_path / "model").items():
        np.testing.assert_allclose(value, inside[name], rtol=1e-6, atol=0, err_msg=name)  # int8: the same


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_facts_about_a_savedmodel_are_right(dtype: str, models: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(models[dtype], format="savedmodel")
    assert checkpoint.info.format == "savedmodel"
    assert checkpoint.config == CONFIG
    assert checkpoint.info.details == ({"quantized": dtype} if "int8" in dtype else {})
    assert checkpoint.info.nbytes == sum(value.nbytes for value in stored(models[dtype]).values())
    assert checkpoint.info.without_checksums == checkpoint.info.left_out == ()
    assert checkpoint.dtypes["h.0.ln_1.weight"].name == "float32"
    assert checkpoint.dtypes["wte.weight"].name == (dtype if "int8" not in dtype else "float32")
    assert checkpoint.info.files == (models[dtype] / "variables" / "variables.data-00000-of-00001",)
    assert checkpoint.tokenizer is None
    assert checkpoint.tokens
    assert checkpoint.tokens.eos_token_id == 1


def test_the_tokenizer_comes_along(song_ci: Path, demo: Path, tmp_path: Path) -> None:
    run("tf-to-tf", "--checkpoint", song_ci, "--output", tmp_path / "model", "--dtype", "float16")
    for file in (song_ci / "assets").iterdir():
        assert file.name == "config.json" or (tmp_path / "model" / "assets" / file.name).read_bytes() == (
            file.read_bytes()
        )
    run("to-huggingface", "--checkpoint", tmp_path / "model", "--output", tmp_path / "ours")
    vocabulary = "chinese_vocab.model"
    assert (tmp_path / "ours" / vocabulary).read_bytes() == (demo / "tokenizer" / vocabulary).read_bytes()


def test_a_vocabulary_of_bert_is_found_under_any_name(models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(models["float32"], tmp_path / "model")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "你", "好"]
    (tmp_path / "model" / "assets" / "google_zh.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    run("to-huggingface", "--checkpoint", tmp_path / "model", "--output", tmp_path / "ours")
    assert (tmp_path / "ours" / "vocab.txt").exists()


def test_inspect_describes_a_savedmodel_as_before(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(models["int8"]), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == report["format"] == "saved_model"
    assert "logits" in report["signatures"]


def _json(name: str, **changes: Any) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "assets" / name).read_text())
        (folder / "assets" / name).write_text(json.dumps({**values, **changes}))

    return edit


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def _tensors(change: Callable[[dict[str, np.ndarray[Any, Any]]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = stored(folder)
        change(tensors)
        for file in (folder / "variables").iterdir():
            file.unlink()
        with BundleWriter(folder / "variables" / "variables") as bundle:
            for name, value in tensors.items():
                bundle.add(f"weights/{name.replace('.', '..')}/.ATTRIBUTES/VARIABLE_VALUE", value)
            bundle.finish()

    return edit


def _foreign(folder: Path) -> None:
    shutil.rmtree(folder)
    module = tf.Module()
    module.v = tf.Variable(1.0)
    tf.saved_model.save(module, str(folder))


INDEX, DATA = "variables/variables.index", "variables/variables.data-00000-of-00001"
FC = "h.1.mlp.c_fc.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "somebody else's": (_foreign, "a SavedModel that this program did not write"),
    "no config": (lambda f: (f / "assets/config.json").unlink(), "a SavedModel that this program did not write"),
    "no variables": (lambda f: shutil.rmtree(f / "variables"), "variables.index: is missing: get all files"),
    "no index": (lambda f: (f / INDEX).unlink(), "variables.index: is missing: get all files"),
    "no data": (lambda f: (f / DATA).unlink(), "variables.data-00000-of-00001: missing in the same folder"),
    "config is no JSON": (_bytes("assets/config.json", lambda d: d[:-9]), "config.json: expected JSON"),
    "config is a list": (_bytes("assets/config.json", lambda d: b"[]"), "expected a JSON object, found a list"),
    "no dtype": (_json("config.json", dtype=None), "dtype is None: expected one of float32, float16"),
    "a dtype that nobody knows": (_json("config.json", dtype="int3"), "dtype is 'int3': expected one of"),
    "a dtype that is a list": (_json("config.json", dtype=[1]), "dtype is a list"),
    "another dtype": (_json("config.json", dtype="float16"), "expected float16, as in assets/config.json (float16)"),
    "int8, but it is not": (_json("config.json", dtype="int8"), "missing tensors: wte.weight_scale"),
    "another vocabulary": (_json("config.json", vocab_size=97), "wte.weight: expected the shape [97, 48], found"),
    "more layers": (_json("config.json", n_layer=4), "12 missing tensors: h.3.ln_1.weight"),
    "fewer layers": (_json("config.json", n_layer=2), "12 unexpected tensors: h.2."),
    "a head of its own": (_json("config.json", tie_word_embeddings=False), "1 missing tensor: lm_head.weight"),
    "heads that do not fit": (_json("config.json", n_head=5), "5 heads do not divide the hidden size 48"),
    "no layers": (_json("config.json", n_layer=0), "n_layer is 0: expected a whole number"),
    "sizes are missing": (_json("config.json", n_embd=None), "config.json: "),
    "the data is cut off": (_bytes(DATA, lambda d: d[:-1]), "ln_f.bias: cannot be read: "),
    "half of the data": (_bytes(DATA, lambda d: d[: len(d) // 2]), "bytes or more, found"),
    "the data is damaged": (_bytes(DATA, lambda d: d[:-99] + b"\1\2\3" + d[-96:]), "cannot be read: "),
    "the index is damaged": (_bytes(INDEX, lambda d: d[:60] + b"\xff" * 9 + d[69:]), "variables.index: cannot be"),
    "the index is empty": (_bytes(INDEX, lambda d: b""), "variables.index: cannot be read"),
    "the index is a pointer": (_bytes(INDEX, lambda d: b"version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "a tensor is missing": (_tensors(lambda t: t.pop(FC)), f"1 missing tensor: {FC}"),
    "a wrong shape": (
        _tensors(lambda t: t.update({FC: t[FC].T.copy()})), f"{FC}: expected the shape [192, 48], found [48, 192]",
    ),
    "not a number": (
        _tensors(lambda t: t[FC].fill(np.nan)), f"{FC}: 9216 of 9216 values are NaN",
    ),
}  # fmt: skip


def _refused(command: str, source: Path, output: Path, *options: str) -> int:
    return main([command, "--checkpoint", str(source), "--output", str(output), "--quiet", *options])


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(
    case: str, models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BROKEN[case]
    shutil.copytree(models["float32"], tmp_path / "model")
    spoil(tmp_path / "model")
    capfd.readouterr()
    for command in ("to-huggingface", "tf-to-tf"):
        assert _refused(command, tmp_path / "model", tmp_path / "new" / "ours") == 2
        assert_one_line(capfd.readouterr().err, words)
        assert not (tmp_path / "new").exists()


def test_scales_that_are_not_finite_are_refused(
    models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models["int8"], tmp_path / "model")
    _tensors(lambda t: t[f"{FC}_scale"].__setitem__(5, np.inf))(tmp_path / "model")
    assert _refused("to-huggingface", tmp_path / "model", tmp_path / "new") == 2
    assert "values are NaN or infinite, the first at [5, 0]" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--iteration", "5"), "a SavedModel has no iterations: leave out --iteration 5"),
        (("--heads", "6"), "says 4 heads, but --heads 6"),
        (("--from", "openai-tf1"), "not a folder of OpenAI's"),
        (("--from", "megatron"), ""),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...], words: str, models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _refused("to-openai", models["float32"], tmp_path / "new", *options) == 2
    assert_one_line(capfd.readouterr().err, words)
    assert not (tmp_path / "new").exists()
