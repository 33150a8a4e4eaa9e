"""``verify`` between any two formats: the second passes where it is the first, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tensorflow as tf
import torch

from convert.formats.registry import open_checkpoint
from convert.formats.uer_layer_norm import with_layer_norm
from convert.verification.reference_forward import CheckpointReference
from tests.convert.formats.test_uer import HEADS, random_state, save, uer_logits
from tests.helpers.huggingface import IDS, VARIANTS, random_model
from tests.helpers.light import main, run
from tf_model.config import UER


def verify(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    code = main(["verify", *map(str, words), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out or "{}"), captured.err


@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_is_transformers(variant: str, tmp_path: Path) -> None:
    model = random_model(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    reference = CheckpointReference(open_checkpoint(tmp_path))
    prompts = [IDS[0], IDS[0][:7]]
    for prompt, rows in zip(prompts, reference.rows_of(prompts), strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(reference.project(rows), expected, rtol=0, atol=1e-4)


def test_reference_is_uers(tmp_path: Path) -> None:
    state = random_state()
    checkpoint = with_layer_norm(open_checkpoint(save(tmp_path, state), heads=HEADS), UER)
    reference = CheckpointReference(checkpoint)
    (rows,) = reference.rows_of(IDS)
    np.testing.assert_allclose(reference.project(rows).numpy(), uer_logits(state, IDS[0]), atol=1e-4)


def test_every_pair_of_formats_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model().save_pretrained(tmp_path / "hf")
    for command, name, options in (
        ("to-tf", "tf", []), ("to-megatron", "cpm", ["--tensor-parallel", "2"]),
        ("to-uer", "uer", ["--uer-layer-norm", "standard"]),
    ):  # fmt: skip
        run(command, "--checkpoint", tmp_path / "hf", "--output", tmp_path / name, *options)
    for first, second in (("hf", "tf"), ("hf", "cpm"), ("cpm", "hf"), ("hf", "uer"), ("uer", "cpm"), ("cpm", "tf"),
                          ("uer", "tf")):  # fmt: skip
        options = ["--uer-layer-norm", "standard", *(["--heads", "4"] if first == "cpm" else [])]
        code, report, error = verify(capsys, tmp_path / first, tmp_path / second, *options)
        assert code == 0, (first, second, error)
        assert report["max_abs_diff"] < 1e-4


def test_a_difference_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model().save_pretrained(tmp_path / "hf")
    run("to-huggingface", "--checkpoint", tmp_path / "hf", "--output", tmp_path / "copy")
    assert verify(capsys, tmp_path / "hf", tmp_path / "copy")[0] == 0
    file = tmp_path / "copy" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["transformer.h.1.ln_2.bias"][3] += 0.01
    safetensors.torch.save_file(tensors, file)
    assert verify(capsys, tmp_path / "hf", tmp_path / "copy")[0] == 3
    random_model(n_layer=2).save_pretrained(tmp_path / "other")
    code, _, error = verify(capsys, tmp_path / "hf", tmp_path / "other")
    assert code == 2
    assert "n_layer is 2, the checkpoint's 3" in error
    # UER-py's layer norm is another one, and that shows, too.
    run("to-uer", "--checkpoint", tmp_path / "hf", "--output", tmp_path / "uer", "--uer-layer-norm", "standard")
    assert verify(capsys, tmp_path / "hf", tmp_path / "uer")[0] == 3
    assert verify(capsys, tmp_path / "hf", tmp_path / "uer", "--uer-layer-norm", "standard")[0] == 0


@pytest.mark.slow
def test_conversion_with_verify_keeps_the_report(tmp_path: Path) -> None:
    file = save(tmp_path / "uer", random_state())
    options = ["--checkpoint", file, "--output", tmp_path / "model", "--heads", HEADS, "--verify"]
    run("to-tf", *options)
    manifest = json.loads((tmp_path / "model" / "assets.extra" / "manifest.json").read_text())
    assert manifest["parity"]["passed"]
    assert manifest["source"]["format"] == "uer"


def test_silu_survives_the_pruning(tmp_path: Path) -> None:
    """TensorFlow's own has a gradient of its own, whose functions go round in a circle without the others."""
    model = random_model(activation_function="silu")
    model.save_pretrained(tmp_path / "hf")
    run("to-tf", "--checkpoint", tmp_path / "hf", "--output", tmp_path / "tf", "--verify")
    logits = tf.saved_model.load(str(tmp_path / "tf")).signatures["logits"](tf.constant(IDS, tf.int64))["logits"]
    with torch.inference_mode():
        expected = model(torch.tensor(IDS)).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
