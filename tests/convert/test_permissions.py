"""What a user who is not root may not read, search or write: one line that names the place, and exit code 2."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import main
from inference.__main__ import main as inference_main
from tests.helpers.assertions import assert_one_line_error
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.privileges import as_nobody
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=1, n_head=6)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that anybody may write to, with a checkpoint in it."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    write_megatron(tmp_path / "work" / "CPM", random_state(CONFIG, np.random.default_rng(0)), 1, extras=False)
    assert main(["reshard", *source(tmp_path / "work"), "--output", str(tmp_path / "work" / "copy")]) == 0
    return tmp_path / "work"


def source(root: Path) -> list[str]:
    return ["--checkpoint", str(root / "CPM"), "--heads", "6", "--tensor-parallel", "1", "--quiet"]


def locked(folder: Path, mode: int = 0o000) -> Path:
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)
    return folder


def assert_refused(words: list[str], place: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with as_nobody():
        code = main(words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert place in err
    assert "ermission denied" in err


def test_an_output_under_a_folder_that_may_not_be_searched(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = locked(root / "locked") / "new" / "copy"
    assert_refused(["reshard", *source(root), "--output", str(place)], str(place), capsys)


def test_an_output_in_a_folder_that_may_not_be_written_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = locked(root / "locked", 0o555) / "copy"
    message = f"error: {place}: cannot be written: Permission denied in the folder {place.parent}: choose another"
    assert_refused(["reshard", *source(root), "--output", str(place)], message, capsys)
    assert_refused(
        ["reshard", *source(root), "--output", str(place / "deeper" / "copy")], f"in the folder {place.parent}", capsys
    )
    assert not list(place.parent.iterdir())


@pytest.mark.parametrize("command", ["check", "inspect"])
def test_a_folder_that_may_not_be_searched(command: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = locked(root / "locked")
    assert_refused([command, str(place / "copy")], f"error: {place}: cannot be read", capsys)


def test_a_checkpoint_in_a_folder_that_may_not_be_searched(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked(root / "CPM")
    assert_refused(["reshard", *source(root), "--output", str(root / "other")], str(root / "CPM"), capsys)


def test_a_file_that_may_not_be_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (root / "copy").glob("*/*.pt")
    file.chmod(0o000)
    assert_refused(["check", str(root / "copy")], str(file), capsys)


def test_a_manifest_in_a_folder_that_may_not_be_searched(
    song_ci: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = root / "model"
    shutil.copytree(song_ci, model)
    model.chmod(0o755)
    place = locked(model / "assets.extra")
    assert main(["inspect", str(song_ci)]) == 0  # imports TensorFlow while its files may be read
    assert_refused(["inspect", str(model)], str(place), capsys)


def test_a_tokenizer_in_a_folder_that_may_not_be_searched(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = locked(root / "tokenizer")
    command = ["pytorch-to-tf", "--checkpoint", str(root / "CPM"), "--heads", "6", "--tokenizer", str(place)]
    assert_refused([*command, "--output", str(root / "model"), "--quiet"], str(place), capsys)


def test_a_folder_of_files_that_may_not_be_searched_is_not_taken_for_missing_files(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = (root / "copy").glob("*/*.pt")
    place = locked(file.parent)
    assert_refused(["check", str(root / "copy")], str(place), capsys)


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_the_folder_that_may_not_be_searched_is_named_not_a_file_in_it(
    command: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = locked(root / "copy")
    assert_refused([command, str(place)], f"error: {place}: cannot be read", capsys)


def test_an_adapter_in_a_folder_that_may_not_be_searched(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = locked(root / "adapter")
    command = ["reshard", *source(root), "--adapter", str(place), "--output", str(root / "other")]
    assert_refused(command, str(place), capsys)


def test_a_copy_in_a_folder_that_may_not_be_searched(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = locked(root / "copy")
    assert_refused(["verify", str(root / "CPM"), str(place), "--heads", "6"], str(place), capsys)


def test_a_folder_that_may_be_searched_and_not_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = locked(root / "CPM", 0o311)
    assert_refused(["inspect", str(place)], f"error: {place}: cannot be read", capsys)


def test_a_file_of_weights_that_may_not_be_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((root / "CPM").rglob("*.pt"))
    file.chmod(0o000)
    assert_refused(["inspect", str(file)], f"error: {file}: cannot be read", capsys)
    assert_refused(["reshard", *source(root), "--output", str(root / "other")], str(file), capsys)


def test_what_may_not_be_searched_below_a_folder_is_no_reason_not_to_name_a_checkpoint_there(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locked(root / "another")
    shutil.rmtree(root / "copy")
    with as_nobody():
        assert main(["inspect", str(root)]) == 2
    assert "CPM in it is one: give " in capsys.readouterr().err  # the path itself, where it is short


@pytest.mark.parametrize("command", ["generate", "chat", "score"])
def test_a_savedmodel_that_may_not_be_searched(command: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = locked(root / "model")
    words = {"generate": ["x"], "chat": [], "score": ["--text", str(root / "text")]}[command]
    with as_nobody():
        assert inference_main([command, str(place), *words]) == 2
    assert_one_line_error(capsys, f"error: {place}: no SavedModel (Permission denied)")


@pytest.mark.parametrize("command", ["inspect", "verify", "to-huggingface", "generate", "chat", "score"])
@pytest.mark.parametrize("name", ["variables", "variables/variables.index", "variables/*data*", "saved_model.pb"])
def test_weights_of_a_savedmodel_that_may_not_be_read(
    command: str, name: str, song_ci: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = root / "model"
    for copy in (model, root / "original"):
        shutil.copytree(song_ci, copy)
        copy.chmod(0o755)
    (root / "text").write_text("春花秋月何时了")
    words = {
        "inspect": ["inspect", str(model)],
        "verify": ["verify", str(root / "original"), str(model)],
        "to-huggingface": ["to-huggingface", "--checkpoint", str(model), "--output", str(root / "new")],
        "generate": ["generate", str(model), "春"],
        "chat": ["chat", str(model)],
        "score": ["score", str(model), "--text", str(root / "text")],
    }[command]
    assert main(["inspect", str(song_ci)]) == 0  # imports TensorFlow while its files may be read
    (place,) = model.glob(name)
    place.chmod(0o000)
    capsys.readouterr()
    with as_nobody():
        code = (inference_main if command in ("generate", "chat", "score") else main)(words)
    assert code == 2
    assert_one_line_error(capsys, f"error: {place}: cannot be read: Permission denied")


def test_results_in_a_folder_that_may_not_be_written_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = locked(root / "locked", 0o555) / "results.jsonl"
    with as_nobody():
        assert inference_main(["generate", str(root / "model"), "x", "--output", str(place)]) == 2
    assert_one_line_error(
        capsys, f"error: {place}: cannot be written: Permission denied in the folder {place.parent}: choose"
    )
    assert not list(place.parent.iterdir())
