"""DIR.training: the state is whole or as it was before, and a run goes on with nothing but the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.errors import UserError
from tests.helpers.tiny_training import WIDTH, TinyModel, compiled, full_disk
from training.differences import find_changed_options, find_differences
from training.own_folders import training_folder
from training.run.run_folder import RunError, RunFolder, hash_files, open_run
from training.run.state import (
    Counters,
    DivergedError,
    read_counters,
    restore_best,
    restore_state,
    save_best,
    save_state,
)


def built(seed: int = 0) -> TinyModel:
    model = compiled(seed=seed)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with open_run(tmp_path / "run", {}) as opened:
        yield opened


COUNTERS = Counters(step=7, tokens=123, seconds=1.5, best_loss=1 / 3, best_step=5, waited=2, row={"step": 7})


def test_the_state_has_every_bit_of_trained_weights_optimizer_and_counters(run: RunFolder) -> None:
    from safetensors.numpy import load_file

    model = built()
    gradients = [np.full(variable.shape, 0.1, np.float32) for variable in model.trainable_variables]
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    save_state(run, model, COUNTERS)
    other = built(seed=1)
    assert restore_state(run, other) == COUNTERS
    expected = [*model.trainable_variables, *model.optimizer.variables]
    assert int(other.optimizer.iterations.numpy()) == 1
    for variable, original in zip([*other.trainable_variables, *other.optimizer.variables], expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), original.numpy())
    in_file = [tensor.tobytes() for name, tensor in load_file(run.state).items() if name.startswith(("w", "o"))]
    assert sorted(in_file) == sorted(variable.numpy().tobytes() for variable in expected)


def test_frozen_weights_are_in_no_file(run: RunFolder) -> None:
    from safetensors.numpy import load_file

    model = built()
    model.frozen.assign(np.full(WIDTH, 42.0))
    save_state(run, model, COUNTERS)
    save_best(run, model, 5, 1 / 3)
    for file in (run.state, run.best):
        assert not any(np.array_equal(tensor, np.full(WIDTH, 42.0)) for tensor in load_file(file).values())


def test_the_best_weights_come_back(run: RunFolder) -> None:
    model, other = built(), built(seed=1)
    save_best(run, model, 5, 1 / 3)
    restore_best(run, other, 5, 1 / 3)
    np.testing.assert_array_equal(other.table.numpy(), model.table.numpy())


def test_the_best_weights_of_another_step_are_refused(run: RunFolder) -> None:
    save_best(run, built(), 5, 1 / 3)
    for step, loss in ((4, 1 / 3), (5, 1 / 4)):
        with pytest.raises(RunError, match=rf"expected the weights of step {step} .* --fresh"):
            restore_best(run, built(), step, loss)


def cut_off(content: bytes) -> bytes:
    return content[:-10]


def flip_a_bit(content: bytes) -> bytes:
    return content[:-300] + bytes([content[-300] ^ 4]) + content[-299:]


def rename_the_checksums(content: bytes) -> bytes:
    return content.replace(b'"checksums"', b'"chocksums"')


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut off": (cut_off, "cut off"),
    "empty": (lambda content: b"", "found 0 bytes"),
    "zeros": (lambda content: bytes(len(content)), "damaged"),
    "a bit": (flip_a_bit, "checksum of"),
    "text": (lambda content: b"hello, this is a text", "something else"),
    "no checksums": (rename_the_checksums, "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["state", "best"])
def test_a_damaged_file_is_one_line_with_the_way_out(run: RunFolder, damage: str, file: str) -> None:
    change, message = DAMAGE[damage]
    save_state(run, built(), COUNTERS)
    save_best(run, built(), 5, 0.5)
    path: Path = getattr(run, file)
    path.write_bytes(change(path.read_bytes()))
    model = built()
    restore = partial(restore_state if file == "state" else partial(restore_best, step=5, loss=0.5), run, model)
    with pytest.raises(RunError, match="--fresh") as caught:
        restore()
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_state_of_another_model_is_refused(run: RunFolder) -> None:
    import keras

    save_state(run, built(), COUNTERS)
    other = built()
    other.extra = other.add_weight(name="extra", shape=(2,))
    other.compile(optimizer=keras.optimizers.AdamW(0.1))
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(RunError, match="a model with other weights: start over with --fresh"):
        restore_state(run, other)


def test_a_full_disk_is_one_line_and_the_older_state_stays(run: RunFolder) -> None:
    model = built()
    save_state(run, model, COUNTERS)
    before = run.state.read_bytes()
    model.table.assign(np.zeros(model.table.shape))
    with full_disk(8000), pytest.raises(RunError, match="the disk is full: make room and give the same command again"):
        save_state(run, model, Counters(step=8))
    assert run.state.read_bytes() == before
    assert [path.name for path in run.folder.glob("*.new")] == []


def test_weights_that_are_no_numbers_are_not_saved(run: RunFolder) -> None:
    model = built()
    save_state(run, model, COUNTERS)
    before = run.state.read_bytes()
    model.table.assign(np.full(model.table.shape, np.nan))
    with pytest.raises(DivergedError):
        save_state(run, model, Counters(step=8))
    assert run.state.read_bytes() == before


def test_a_second_run_in_the_same_folder_is_refused(run: RunFolder) -> None:
    with pytest.raises(RunError, match="another run is training in it now"), open_run(run.folder, {}):
        pass


def test_the_folder_stands_next_to_the_output() -> None:
    assert training_folder(Path("out/songs")) == Path("out/songs.training")


OLD = {"settings": {"learning_rate": 0.001, "prefix": ["style"]}, "files": {"songs.txt": "0" * 64}}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "an option": (
        {"settings": {"learning_rate": 0.002, "prefix": ["style"]}, "files": {"songs.txt": "0" * 64}},
        "settings.learning_rate is 0.002, was 0.001",
    ),
    "a text": (
        {"settings": {"learning_rate": 0.001, "prefix": ["style"]}, "files": {"songs.txt": "1" * 64}},
        "files.songs.txt has changed",
    ),
    "a file more": (
        {"settings": OLD["settings"], "files": {"songs.txt": "0" * 64, "more.txt": "0" * 64}},
        "files.more.txt is new",
    ),
    "an option less": (
        {"settings": {"learning_rate": 0.001}, "files": OLD["files"]},
        'settings.prefix is missing, was ["style"]',
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_differs_between_two_records_is_named(other: str) -> None:
    record, message = OTHERS[other]
    assert find_differences(OLD, record) == [message]


SONGS = {"learning_rate": 0.001, "batch_size": 4, "steps": 9, "prefix": ["style"], "texts": "0" * 64}
CHANGED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an option": ({"learning_rate": 0.002}, ["--learning-rate 0.002, was 0.001"]),
    "what follows from another option": ({"batch_size": 8, "steps": 5, "texts": "2" * 64}, ["--batch-size 8, was 4"]),
    "steps alone": ({"steps": 5}, ["--steps 5, was 9"]),
    "no option": ({"prefix": []}, ["--prefix left out, was style"]),
    "a text": (
        {"texts": "1" * 64, "steps": 10, "files": {"songs.txt": "3" * 64, "more.txt": "5" * 64}},
        ["the text has changed: songs.txt"],
    ),
    "a file more": (
        {"texts": "1" * 64, "files": {"songs.txt": "4" * 64, "more.txt": "5" * 64, "new.txt": "6" * 64}},
        ["the text has changed: new.txt"],
    ),
    "the same text in another folder": ({"files": {"b/songs.txt": "4" * 64, "more.txt": "5" * 64}}, []),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_run_names_the_options_and_files_that_differ_and_not_what_follows_from_them(
    tmp_path: Path, change: str
) -> None:
    changes, expected = CHANGED[change]
    old = {**SONGS, "files": {"songs.txt": "4" * 64, "more.txt": "5" * 64}}
    assert find_changed_options(old, {**old, **changes}) == expected
    with open_run(tmp_path / "run", old) as run:
        save_state(run, built(), COUNTERS)
    if not expected:
        with open_run(tmp_path / "run", {**old, **changes}) as run:
            assert run.state.exists()
        return
    with pytest.raises(RunError) as caught, open_run(tmp_path / "run", OLD) as run:
        save_state(run, built(), COUNTERS)
    with pytest.raises(RunError) as caught, open_run(tmp_path / "run", {**old, **changes}):
        pass
    assert f"other options or files: {expected[0]}: give the same again" in str(caught.value)
    assert "--fresh" in str(caught.value)
    with open_run(tmp_path / "run", {**old, "prefix": ("style",)}) as run:
        assert run.state.exists()


def test_counters_are_read_without_a_model(run: RunFolder) -> None:
    assert read_counters(run) is None
    save_state(run, built(), COUNTERS)
    assert read_counters(run) == COUNTERS


def test_fresh_drops_what_the_earlier_run_left(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", OLD) as run:
        save_state(run, built(), COUNTERS)
        run.samples.mkdir()
        (run.samples / "step-7.txt").write_text("x")
    with open_run(tmp_path / "run", {"new": 1}, fresh=True) as run:
        assert sorted(path.name for path in run.folder.iterdir()) == ["lock", "run.json"]
        assert json.loads(run.record.read_text()) == {"new": 1}


def test_options_may_change_as_long_as_nothing_was_trained(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", OLD):
        pass
    with open_run(tmp_path / "run", {"new": 1}) as run:
        assert json.loads(run.record.read_text()) == {"new": 1}


def damage_the_record(folder: Path) -> None:
    with open_run(folder, OLD) as run:
        save_state(run, built(), COUNTERS)
        run.record.write_text("{")


def put_a_file_in(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.docx").write_text("x")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda folder: folder.write_text("x"), "is a file, not a folder: choose another --output"),
    "foreign files": (put_a_file_in, "has thesis.docx in it"),
    "a damaged record": (damage_the_record, "expected JSON"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path, name: str) -> None:
    make, message = UNUSABLE[name]
    make(tmp_path / "run")
    with pytest.raises(UserError) as caught, open_run(tmp_path / "run", OLD):
        pass
    assert message in str(caught.value)


def test_a_changed_file_changes_its_hash(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "texts").mkdir()
    file = tmp_path / "texts" / "a.txt"
    file.write_text("床前明月光", "utf-8")
    assert hash_files([tmp_path / "texts"]) == {str(file): hashlib.sha256("床前明月光".encode()).hexdigest()}
    with pytest.raises(RunError, match="cannot be read"):
        hash_files([tmp_path / "missing.txt"])
