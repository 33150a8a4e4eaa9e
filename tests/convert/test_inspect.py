"""The command ``inspect``: what it says is so, it reads no weights, and what is broken ends with one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.__main__ import main
from tests.conftest import ROOT
from tests.helpers.checkpoints import random_state, write_megatron
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=2, n_head=6, n_inner=40)
PARAMETERS = (48 + 16) * 24 + 2 * (4 * 24 + 72 * 24 + 72 + 24 * 24 + 24 + 2 * 40 * 24 + 40 + 24) + 2 * 24
LAYER_NORMS = (2 * 4 + 2) * 24  # their values, of the parameters
OTHERS = PARAMETERS - LAYER_NORMS


def write(root: Path, p: int, config: GPT2Config = CONFIG, **options: Any) -> list[Path]:
    return write_megatron(root, random_state(config, np.random.default_rng(0)), p, dtype=torch.float16, **options)


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result: dict[str, Any] = json.loads(out)
    return result


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    config = GPT2Config(vocab_size=6000, n_positions=16, n_embd=24, n_layer=2, n_head=6)
    write(folder / "in", 2, config)
    arguments = ["--checkpoint", folder / "in", "--tokenizer", demo / "tokenizer", "--output", folder / "model"]
    options = ["--heads", "6", "--dtype", "bfloat16", "--quiet"]
    assert main(["pytorch-to-tf", *map(str, arguments), *options]) == 0
    return folder / "model"


@pytest.mark.parametrize("p", [1, 2])
def test_a_checkpoint_is_described_with_all_that_it_would_become(
    p: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path / "CPM", p)
    report = inspect(capsys, tmp_path / "CPM")
    tensors = {tensor["name"]: tensor for tensor in report.pop("tensors")}
    rows = 48 + 2 * (72 + 24 + 40 + 24)  # of all matrices: each has scale and offset, and those of the layers a bias
    matrices = 48 * 24 + 2 * (72 * 24 + 24 * 24 + 40 * 24 + 24 * 40)
    quantized = matrices + 8 * rows + 4 * (16 * 24 + rows - 48) + 4 * LAYER_NORMS
    for dtype, packed in (("int8", matrices), ("int8-low-memory", 0), ("int8-avx2", matrices)):
        assert report["outputs"].pop(dtype) == {
            "bytes_on_disk": quantized,
            "bytes_loaded": quantized + 700_000_000,
            "bytes_generating": quantized + packed + 700_000_000,
            "cache_bytes_per_position": 2 * 2 * 24 * 4,
        }
    assert report == {
        "path": str(tmp_path / "CPM"),
        "kind": "checkpoint",
        "format": "megatron",
        "iteration": 80000,
        "tensor_parallel": p,
        "config": {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": 48,
            "n_positions": 16,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": None,
            "n_inner": 40,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
        },
        "bos_token_id": 7,
        "eos_token_id": 7,
        "pad_token_id": 5,
        "tokenizer": None,
        "notes": [],
        "possible_heads": [1, 2, 3, 4, 6, 8, 12, 24] if p == 1 else [2, 4, 6, 8, 12, 24],
        "parameters": PARAMETERS,
        "dtypes": {"float16": 28},
        "bytes_of_weights": 2 * PARAMETERS,
        "files": {str(file): file.stat().st_size for file in files},
        "bytes_on_disk": sum(file.stat().st_size for file in files),
        "outputs": {
            dtype: {
                "bytes_on_disk": size * OTHERS + 4 * LAYER_NORMS,
                "bytes_loaded": size * OTHERS + 4 * LAYER_NORMS + 700_000_000,
                "bytes_generating": size * OTHERS + 4 * LAYER_NORMS + 700_000_000,
                "cache_bytes_per_position": 2 * 2 * 24 * size,
            }
            for dtype, size in (("float32", 4), ("float16", 2), ("bfloat16", 2))
        },
    }
    assert len(tensors) == 28
    assert tensors["wte.weight"] == {"name": "wte.weight", "shape": [48, 24], "dtype": "float16"}
    assert tensors["h.1.attn.c_attn.weight"]["shape"] == [72, 24]
    assert tensors["h.0.mlp.c_proj.weight"]["shape"] == [24, 40]


def test_tensors_keep_their_own_types_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(rank: int, content: dict[str, Any]) -> None:
        state = content["module"]
        state["position_embeddings.weight"] = state["position_embeddings.weight"].float()

    write(tmp_path, 2, edit=edit)
    report = inspect(capsys, tmp_path)
    assert report["dtypes"] == {"float16": 27, "float32": 1}
    assert report["bytes_of_weights"] == 2 * PARAMETERS + 2 * 16 * 24
    assert [tensor["name"] for tensor in report["tensors"] if tensor["dtype"] == "float32"] == ["wpe.weight"]


def test_heads_may_be_given_known_or_unknown_but_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", 2)
    assert inspect(capsys, tmp_path / "a", "--heads", 6)["config"]["n_head"] == 6
    assert main(["inspect", str(tmp_path / "a"), "--heads", "5"]) == 2
    assert "5 heads do not fit" in capsys.readouterr().err
    published = GPT2Config(vocab_size=48, n_positions=16, n_embd=768, n_layer=1, n_head=12)
    write(tmp_path / "b", 2, published, extras=False)
    report = inspect(capsys, tmp_path / "b")
    assert (report["config"]["n_head"], 16 in report["possible_heads"]) == (12, True)
    write(tmp_path / "c", 8, published, extras=False)  # 8 ranks cannot share 12 heads: not the published model
    report = inspect(capsys, tmp_path / "c")
    assert (report["config"]["n_head"], report["possible_heads"][:3]) == (None, [8, 16, 24])


def test_another_iteration_than_the_trackers_can_be_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 1, iteration=7)
    write(tmp_path, 2, iteration="release", extras=False)
    assert inspect(capsys, tmp_path, "--iteration", 7)["tensor_parallel"] == 1
    report = inspect(capsys, tmp_path)
    assert (report["tensor_parallel"], report["iteration"]) == (2, None)


def test_the_text_of_a_checkpoint_fits_on_a_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 2)
    assert main(["inspect", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for words in (
        f"{tmp_path}: megatron checkpoint",
        "iteration 80000",
        "tensor parallel 2",
        "heads not in the files; possible: 2, 4, 6, 8, 12, 24",
        f"parameters {PARAMETERS:,}",
        "maths gelu_new, layer norms with epsilon 1e-05, tied output matrix",
        "end of text 7",
        "wte.weight [48, 24] float16 1",
        "h.*.mlp.c_fc.weight [40, 24] float16 2",
    ):
        assert words in lines
    assert any(line.startswith("bfloat16 ") for line in lines)
    assert len(out.splitlines()) < 45
    assert max(map(len, out.splitlines())) < 120


@pytest.mark.parametrize("there", [True, False])
def test_types_that_do_not_run_on_this_cpu_are_named(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("convert.commands.inspect.runs_here", lambda dtype: there)
    write(tmp_path, 1)
    assert main(["inspect", str(tmp_path)]) == 0
    line = "int8 and int8-low-memory: needs a CPU with VNNI instructions"
    assert f"{line}{'' if there else '; this one has none'}" in capsys.readouterr().out.splitlines()


def test_a_saved_model_is_described_with_its_signatures(saved_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = inspect(capsys, saved_model)
    tensors = {tensor["name"]: (tensor["shape"], tensor["dtype"]) for tensor in report["tensors"]}
    assert (report["kind"], report["format"]) == ("saved_model", "saved_model")
    assert (report["config"]["n_head"], report["config"]["n_inner"]) == (6, 96)
    assert report["config"]["eos_token_id"] == 7
    assert len(tensors) == 28
    assert tensors["h.0.attn.c_attn.weight"] == ([72, 24], "bfloat16")
    assert tensors["ln_f.bias"] == ([24], "float32")
    assert report["dtypes"] == {"bfloat16": 18, "float32": 10}
    assert report["bytes_of_weights"] == 2 * report["parameters"] + 2 * LAYER_NORMS
    assert list(report["outputs"]) == ["bfloat16"]
    assert report["bytes_on_disk"] == sum(file.stat().st_size for file in saved_model.rglob("*") if file.is_file())
    assert report["tokenizer"] == ["assets/chinese_vocab.model", "assets/vocab.json"]
    assert report["manifest"]["source"]["tensor_parallel"] == 2
    assert report["tensorflow"].startswith("2.")
    signatures = report["signatures"]
    assert {"serving_default", "logits"} <= signatures.keys()
    assert signatures["logits"] == {
        "inputs": {"input_ids": {"dtype": "int64", "shape": [None, None]}},
        "outputs": {"logits": {"dtype": "float32", "shape": [None, None, 6000]}},
    }
    assert signatures["serving_default"]["inputs"]["top_p"] == {"dtype": "float32", "shape": None}


def test_the_text_of_a_saved_model_has_signatures_and_tokenizer(
    saved_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(saved_model)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("saved model", "heads", "serving_default", "input_ids int64 [?, ?]", "assets/vocab.json"):
        assert words in out


def test_a_saved_model_needs_no_manifest(saved_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(saved_model, tmp_path)
    (folder / "assets.extra" / "manifest.json").unlink()
    assert inspect(capsys, folder)["manifest"] is None
    assert main(["inspect", str(folder)]) == 0


def copied(folder: Path, target: Path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            copy = target / "model" / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return target / "model"


def cut(name: str, size: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def written(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def changed(**values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / "assets" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def largest(folder: Path) -> Path:
    return max(folder.glob("variables/variables.data-*"), key=lambda file: file.stat().st_size)


BAD_MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "assets" / "config.json").unlink(), "that this program did not write"),
    "config cut off": (cut("assets/config.json", 50), "config.json: expected JSON"),
    "config is a list": (written("assets/config.json", "[]"), "config.json"),
    "config of others": (changed(dtype="int3"), "dtype"),
    "sizes that are none": (changed(n_layer=0), "n_layer is 0"),
    "sizes of text": (changed(n_embd="24"), "config.json"),
    "more layers": (changed(n_layer=3), "h.2.ln_1.weight: expected [24], found nothing"),
    "fewer layers": (changed(n_layer=1), "h.1.attn.c_attn.bias: expected nothing, found [72]"),
    "another width": (changed(n_inner=95), "h.0.mlp.c_fc.weight: expected [95, 24], found [96, 24]"),
    "graph cut off": (cut("saved_model.pb", 1000), "saved_model.pb: not a SavedModel's graph: it is damaged"),
    "graph empty": (cut("saved_model.pb", 0), "saved_model.pb: not a SavedModel's graph: it is damaged"),
    "graph of text": (written("saved_model.pb", "<html>"), "saved_model.pb: not a SavedModel's graph: it is damaged"),
    "index missing": (lambda folder: (folder / "variables" / "variables.index").unlink(), "variables.index"),
    "index cut off": (cut("variables/variables.index", 300), "variables.index"),
    "index empty": (cut("variables/variables.index", 0), "variables.index"),
    "weights missing": (lambda folder: largest(folder).unlink(), "it is not complete"),
    "weights cut off": (lambda folder: largest(folder).write_bytes(b"short"), "it is not complete"),
    "manifest cut off": (cut("assets.extra/manifest.json", 100), "manifest.json"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_broken_saved_model_is_refused_in_one_line(
    kind: str, saved_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BAD_MODELS[kind]
    folder = copied(saved_model, tmp_path)
    spoil(folder)
    assert_refused([folder], words, capsys)


def assert_refused(arguments: list[Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr; with ``--json`` the same line on stdout too, as JSON; exit code 2 both times."""
    assert main(["inspect", *map(str, arguments)]) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert words in line
    assert main(["inspect", *map(str, arguments), "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == line
    assert json.loads(out) == {"error": line.removeprefix("error: ").removesuffix("\n")}


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (lambda root: root.rename(root.with_name("elsewhere")), "no such file or folder"),
    "tracker missing": (lambda root: (root / "latest_checkpointed_iteration.txt").unlink(), "latest_checkpointed"),
    "shard missing": (lambda root: (root / "80000" / "mp_rank_01_model_states.pt").unlink(), "mp_rank_01"),
    "shard cut off": (cut("80000/mp_rank_01_model_states.pt", 5000), "cut off"),
    "shard empty": (cut("80000/mp_rank_00_model_states.pt", 0), "an empty file"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_broken_checkpoint_is_refused_in_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BAD_CHECKPOINTS[kind]
    write(tmp_path / "CPM", 2, extras=False)
    spoil(tmp_path / "CPM")
    assert_refused([tmp_path / "CPM"], words, capsys)


def test_a_saved_model_takes_no_options_of_checkpoints(saved_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused([saved_model, "--heads", 6], "leave out --heads", capsys)
    assert_refused([saved_model, "--iteration", 7], "leave out --iteration", capsys)


def test_no_weights_are_read_so_damaged_ones_are_not_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = write(tmp_path, 1, extras=False)
    raw = bytearray(file.read_bytes())
    weights = torch.load(file, weights_only=True)["module"]["word_embeddings.weight"].numpy().tobytes()
    at = raw.index(weights)
    raw[at : at + len(weights)] = bytes(len(weights))
    file.write_bytes(raw)
    assert inspect(capsys, tmp_path)["parameters"] == PARAMETERS
    assert main(["pytorch-to-tf", "--checkpoint", str(tmp_path), "--heads", "6", "--output", str(tmp_path / "x")]) == 2


def test_tensorflow_is_not_imported_for_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 2, extras=False)
    code = (
        "import sys\n"
        "from convert.__main__ import main\n"
        "code = main(['inspect', sys.argv[1]])\n"
        "print(*({'tensorflow', 'keras', 'torch'} & set(sys.modules)))\n"
        "sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == ""
    assert result.stderr == ""
