"""The manifest: hashes by another program's hand, and every kind of difference."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from convert.output.hashing import Hasher, hash_file
from convert.output.manifest import MANIFEST
from convert.provenance import CPM_GENERATE, RELEASES, may_be_known, release_name
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.light import main
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=2, n_head=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("manifest") / "CPM"
    write_megatron(root, random_state(CONFIG, np.random.default_rng(0)), 2)
    return root


def convert(checkpoint: Path, output: Path) -> Path:
    arguments = ["--checkpoint", str(checkpoint), "--output", str(output), "--heads", "6", "--quiet"]
    assert main(["pytorch-to-tf", *arguments]) == 0
    return output


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    return convert(checkpoint, tmp_path / "model")


def test_hashes_are_those_of_sha256sum(model: Path, checkpoint: Path) -> None:
    manifest = json.loads((model / MANIFEST).read_text())
    names = [path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()]
    assert sorted([*manifest["files"], MANIFEST]) == sorted(names)
    for folder, files in ((model, manifest["files"]), (checkpoint, manifest["source"]["files"])):
        lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in files.items())
        subprocess.run(["sha256sum", "--check", "--quiet", "-"], input=lines, text=True, check=True, cwd=folder)
        assert all(entry["bytes"] == (folder / name).stat().st_size for name, entry in files.items())


def test_content(model: Path) -> None:
    manifest = json.loads((model / MANIFEST).read_text())
    assert manifest["source"]["format"] == "megatron"
    assert manifest["source"]["tensor_parallel"] == 2
    assert manifest["source"]["iteration"] == 80000
    assert manifest["source"]["release"] is None
    assert GPT2Config.from_dict(manifest["config"]) == CONFIG
    assert manifest["options"]["dtype"] == "float32"
    assert manifest["versions"]["tensorflow"].startswith("2.")
    assert "/" in manifest["fingerprint"]
    for path in model.rglob("*"):  # no path of the machine that converted
        assert path.is_dir() or str(model.parent).encode() not in path.read_bytes(), path


def test_verified_while_converting(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model"
    arguments = ["--checkpoint", str(checkpoint), "--output", str(output), "--heads", "6", "--verify"]
    assert main(["pytorch-to-tf", *arguments]) == 0
    assert "the same logits as the checkpoint" in capsys.readouterr().out
    parity = json.loads((output / MANIFEST).read_text())["parity"]
    assert parity["passed"] is True
    assert 0 < parity["max_abs_diff"] < 1e-4
    assert max(prompt["tokens"] for prompt in parity["prompts"]) == CONFIG.n_positions
    card = (output / "assets.extra" / "README.md").read_text()
    assert f"| {CONFIG.n_positions} | " in card


def test_a_wrong_conversion_does_not_appear(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tf_model import layers

    monkeypatch.setitem(layers.ACTIVATION_FUNCTIONS, "gelu_new", layers.ACTIVATION_FUNCTIONS["gelu"])
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "model"), "--heads", "6", "--verify"]
    assert main(["pytorch-to-tf", *arguments, "--quiet"]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'model'}: does not compute what the checkpoint does")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_same_input_gives_the_same_variables(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    again = convert(checkpoint, tmp_path / "again")
    for file in (model / "variables").iterdir():
        assert file.read_bytes() == (again / "variables" / file.name).read_bytes(), file.name


def test_check(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(model)]) == 0
    assert "every file is as it was written" in capsys.readouterr().out
    data = next((model / "variables").glob("*.data-*"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    (model / "fingerprint.pb").unlink()
    (model / "assets.extra" / "tf_serving_warmup_requests").write_text("added")
    assert main(["check", str(model), "--json"]) == 2
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result == {
        "intact": False,
        "changed": [f"variables/{data.name}"],
        "missing": ["fingerprint.pb"],
        "added": ["assets.extra/tf_serving_warmup_requests"],
    }
    assert err.count("\n") == 1
    assert data.name in err
    assert "fingerprint.pb is missing" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "has neither"), ("{", "expected JSON"), ("[]", "expected a JSON object"),
     ('{"files": {}, "manifest_version": 9}', "version 1"),
     ('{"files": {"a": {}}}', "damaged"), ('{"files": {"a": {"sha256": 1}}, "manifest_version": 1}', "version 1")],
)  # fmt: skip
def test_broken_manifests(content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / MANIFEST).parent.mkdir()
        (tmp_path / MANIFEST).write_text(content)
    assert main(["check", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert main(["check", str(tmp_path / "absent")]) == 2


def test_a_hash_is_found_again_after_a_rename(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with Hasher() as hasher:
        hasher.add(tmp_path / "a")
        hasher.result(tmp_path / "a")
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "c").write_bytes(b"other")
        assert hasher.result(tmp_path / "b") == {"sha256": hashlib.sha256(b"content").hexdigest()}
        assert hasher.result(tmp_path / "c") == {"sha256": hashlib.sha256(b"other").hexdigest()}
    large = tmp_path / "large"
    large.write_bytes(bytes(3_000_001))
    assert hash_file(large, ("sha256", "sha1")) == {
        "sha256": hashlib.sha256(bytes(3_000_001)).hexdigest(),
        "sha1": hashlib.sha1(bytes(3_000_001)).hexdigest(),
    }


def test_published_checkpoints_are_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_be_known(CPM_GENERATE, 2)
    assert not may_be_known(CPM_GENERATE, 1)
    assert not may_be_known(CONFIG, 2)
    first = ["7a8461098dae374a836f55bf2002bf21cba05964", "6ab97bd06979c1707080b33cfddff4f08c9af675"]
    assert "first release" in str(release_name(first))
    assert release_name(first[::-1]) is None
    # A small checkpoint stands in for the published one: the whole way from the files to the card.
    digests = [hashlib.sha1(file.read_bytes()).hexdigest() for file in sorted((checkpoint / "80000").glob("mp_*"))]
    monkeypatch.setattr("convert.provenance.CPM_GENERATE", CONFIG)
    monkeypatch.setitem(RELEASES, tuple(digests), "a famous checkpoint")
    model = convert(checkpoint, tmp_path / "model")
    assert json.loads((model / MANIFEST).read_text())["source"]["release"] == "a famous checkpoint"
    assert "Converted from a famous checkpoint" in (model / "assets.extra" / "README.md").read_text()
