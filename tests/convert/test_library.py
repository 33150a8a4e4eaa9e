"""``import convert``: every command has a function that returns a result, prints nothing and raises one family."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convert
from tests.conftest import ROOT
from tests.helpers.checkpoints import random_state, write_megatron
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=2, n_head=6)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_megatron(tmp_path / "CPM", random_state(CONFIG, np.random.default_rng(0)), 2, extras=False)
    return tmp_path / "CPM"


def test_importing_it_imports_no_framework() -> None:
    code = "import sys, convert; print(dir(convert)); assert not {'tensorflow', 'torch', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "to_savedmodel" in done.stdout


def test_every_public_name_is_there() -> None:
    assert all(getattr(convert, name) is not None for name in convert.__all__)
    with pytest.raises(AttributeError, match="no attribute 'to_onnx'"):
        convert.to_onnx  # noqa: B018


def test_there_and_back_without_a_word(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stages: list[tuple[str, int, int]] = []
    checkpoint = convert.open_checkpoint(root, heads=6)
    model = convert.to_savedmodel(
        checkpoint, tmp_path / "model", signatures=("logits",), progress=lambda *stage: stages.append(stage)
    )
    copy = convert.to_checkpoint(
        convert.open_checkpoint(tmp_path / "model"), tmp_path / "copy", format="huggingface", dtype="float32"
    )
    report = convert.verify(checkpoint, tmp_path / "model")
    assert capfd.readouterr() == ("", "")
    assert model.dtype == "float32"
    assert model.nbytes == sum(file.stat().st_size for file in (tmp_path / "model").rglob("*") if file.is_file())
    assert report.passed
    done = [done for _, done, _ in stages]
    assert done == sorted(done)
    assert stages[-1][1] == stages[-1][2] == 4 * CONFIG.parameter_count
    back = convert.open_checkpoint(tmp_path / "copy")
    for name in CONFIG.tensor_shapes():
        np.testing.assert_array_equal(
            back.read(name, np.dtype(np.float32)), checkpoint.read(name, np.dtype(np.float32))
        )
    for result in (model, copy, report, convert.inspect(tmp_path / "model"), convert.check(tmp_path / "copy")):
        json.dumps(result.to_dict())


def test_a_model_is_verified_before_it_appears(root: Path, tmp_path: Path) -> None:
    checkpoint = convert.open_checkpoint(root, heads=6)
    result = convert.to_savedmodel(checkpoint, tmp_path / "model", signatures=("logits",), verify=True)
    assert result.parity is not None
    assert result.parity.passed
    assert result.to_dict()["parity"]["passed"] is True


def test_nothing_is_replaced_unless_asked_for(root: Path, tmp_path: Path) -> None:
    checkpoint = convert.open_checkpoint(root, heads=6)
    convert.to_savedmodel(checkpoint, tmp_path / "model", signatures=("logits",))
    with pytest.raises(convert.ConvertError, match="exists already"):
        convert.to_savedmodel(checkpoint, tmp_path / "model", signatures=("logits",))
    result = convert.to_savedmodel(
        checkpoint, tmp_path / "model", dtype="bfloat16", overwrite=True, signatures=("logits",)
    )
    assert convert.inspect(result.folder).to_dict()["dtypes"] == {"bfloat16": 18, "float32": 10}


def test_the_input_is_never_the_output(root: Path) -> None:
    checkpoint = convert.open_checkpoint(root, heads=6)
    before = sorted(root.rglob("*"))
    for place in (root, root.parent):
        with pytest.raises(convert.UserError, match=r"is the input|has .* in it"):
            convert.to_savedmodel(checkpoint, place, overwrite=True)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int4"}, "expected one of float32"),
        ({"signatures": ("generat",)}, "generat"),
        ({"signatures": ()}, "signature"),
        ({"tokenizer": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_options_are_errors_of_one_line(
    options: dict[str, object], words: str, root: Path, tmp_path: Path
) -> None:
    checkpoint = convert.open_checkpoint(root, heads=6)
    with pytest.raises((convert.UserError, convert.TokenizerError), match=words) as error:
        convert.to_savedmodel(checkpoint, tmp_path / "model", **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("function", ["open_checkpoint", "inspect", "check"])
def test_what_is_not_there_is_an_error_of_the_family(function: str, tmp_path: Path) -> None:
    with pytest.raises(convert.UserError, match="no such"):
        getattr(convert, function)(tmp_path / "nowhere")


def test_it_is_silent_in_a_process_that_sets_nothing_up(root: Path, tmp_path: Path) -> None:
    code = (
        "import convert\n"
        f"checkpoint = convert.open_checkpoint({str(root)!r}, heads=6)\n"
        f"convert.to_savedmodel(checkpoint, {str(tmp_path / 'model')!r}, signatures=('logits',))\n"
        f"convert.inspect({str(tmp_path / 'model')!r})\n"
    )
    quiet = ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment["HOME"] = str(tmp_path / "home")
    environment["MPLCONFIGDIR"] = str(tmp_path)  # Keras imports matplotlib where it is there, which writes a font cache
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda checkpoint, root: convert.to_checkpoint(checkpoint, root / "a\0b", format="huggingface"),
            "not the name",
        ),
        (lambda checkpoint, root: convert.to_savedmodel(checkpoint, str(root / "\ud800")), "not the name"),
        (lambda checkpoint, root: convert.to_savedmodel(checkpoint, root / "m", tokenizer="a\0"), "not the name"),
        (lambda checkpoint, root: convert.to_checkpoint(checkpoint, root / "c", format="uer", options=[1]), "options"),
        (
            lambda checkpoint, root: convert.open_checkpoint(root / "CPM", heads=6, uer_layer_norm="Standard"),
            "uer_layer",
        ),
        (lambda checkpoint, root: convert.open_checkpoint(root / "CPM", heads=6, iteration=7), "7"),
        (lambda checkpoint, root: convert.open_checkpoint(root / "a\nb"), "no such"),
    ],
)
def test_bad_values_are_errors_of_one_line(call: Any, words: str, root: Path) -> None:
    checkpoint = convert.open_checkpoint(root, heads=6)
    with pytest.raises((convert.UserError, convert.TokenizerError), match=words) as error:
        call(checkpoint, root.parent)
    assert "\n" not in str(error.value)


def test_a_path_may_stand_for_a_checkpoint(root: Path, tmp_path: Path) -> None:
    convert.to_checkpoint(convert.open_checkpoint(root, heads=6), tmp_path / "hf", format="huggingface")
    result = convert.to_checkpoint(tmp_path / "hf", tmp_path / "openai", format="openai-tf1")
    assert repr(convert.open_checkpoint(result.folder)).startswith("<openai-tf1 checkpoint ")
