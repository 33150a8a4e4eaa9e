"""Places that cannot be read or written to: one line, exit code 2, and nothing left behind."""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import main as convert
from convert.output.atomic_folder import new_folder, partial_name
from inference.__main__ import main as infer
from inference.jsonl import RecordError, open_results
from support.errors import ConvertError
from tests.helpers.assertions import assert_one_line_error
from tests.helpers.checkpoints import random_state, write_megatron
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=60, n_positions=12, n_embd=24, n_layer=2, n_head=3)
SPACE = collections.namedtuple("SPACE", ("total", "used", "free"))(1 << 50, 0, 1 << 50)
"""What a disk says that is filled by others after it was asked."""

Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places") / "CPM"
    write_megatron(root, random_state(CONFIG, np.random.default_rng(1)), 1, extras=False)
    return root


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(0x4E00, 0x4E00 + 40))]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    return folder


@pytest.fixture(scope="module")
def with_tokenizer(checkpoint: Path, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with-tokenizer") / "model"
    assert convert(written("to-huggingface", checkpoint, folder, "--tokenizer", str(vocabulary))) == 0
    return folder


WRITING: dict[str, list[str]] = {
    "to-huggingface": [], "to-uer": [], "to-openai": [], "reshard": ["--tensor-parallel", "3"],
    "to-megatron": ["--tensor-parallel", "1", "--layout", "megatron-lm"],
}  # fmt: skip


def written(command: str, checkpoint: Path, output: Path, *options: str) -> list[str]:
    words = [command, "--checkpoint", str(checkpoint), "--heads", "3", "--output", str(output), "--quiet"]
    return [*words, *WRITING.get(command, []), *options]


NAMES = {
    "86 Chinese characters": ("诗" * 86, False), "85 Chinese characters": ("诗" * 85, True),
    "255 letters": ("x" * 255, True), "256 letters": ("x" * 256, False), "250 bytes": ("长" * 83 + "x", True),
    "emoji": ("🎵" * 63, True), "more emoji": ("🎵" * 64, False), "a path of 5,000 letters": ("y" * 99 + "/") * 50 and (
        "/".join(["y" * 99] * 50), False), "a folder with a long name above": (f"{'z' * 255}/model", True),
    "a folder with a name too long above": (f"{'z' * 256}/model", False),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_output_is_written_where_its_name_is_legal_and_refused_where_it_is_not(
    name: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place, is_legal = NAMES[name]
    code = convert(written("to-huggingface", checkpoint, tmp_path / place))
    if is_legal:
        assert code == 0
        assert convert(["check", str(tmp_path / place)]) == 0
        assert convert(written("to-huggingface", checkpoint, tmp_path / place, "--force")) == 0
        assert [path.name for path in tmp_path.iterdir()] == [place.partition("/")[0]]
    else:
        assert code == 2
        assert_one_line_error(capfd, "File name too long")
        assert not list(tmp_path.iterdir())


def test_names_that_begin_alike_are_written_into_folders_of_their_own(tmp_path: Path) -> None:
    names = [partial_name(tmp_path / ("长" * 84 + letter)) for letter in "abc"]
    assert len(set(names)) == 3
    assert all(len(os.fsencode(name)) <= 255 for name in names)
    assert names[0] == partial_name(tmp_path / ("长" * 84 + "a"))
    assert partial_name(tmp_path / "model") == ".model.partial"
    output = tmp_path / ("长" * 85)
    with (
        new_folder(output, force=False, size=0),
        pytest.raises(ConvertError, match="another run is writing it"),
        new_folder(output, force=False, size=0),
    ):
        pass


TOO_LONG = ("长" * 86, "n" * 300, "/".join(["d" * 200] * 25))
LOOKING: dict[str, tuple[Main, Callable[[str, str], list[str]]]] = {
    "inspect": (convert, lambda long, good: ["inspect", long]),
    "check": (convert, lambda long, good: ["check", long]),
    "verify, the source": (convert, lambda long, good: ["verify", long, good]),
    "verify, the copy": (convert, lambda long, good: ["verify", good, long, "--heads", "3"]),
    "verify, a text": (convert, lambda long, good: ["verify", good, good, "--heads", "3", "--text", long]),
    "verify, prompts": (convert, lambda long, good: ["verify", good, good, "--heads", "3", "--prompts", long]),
    "a checkpoint": (convert, lambda long, good: ["to-uer", "--checkpoint", long, "--output", "new"]),
    "a tokenizer": (convert, lambda long, good: [
        "to-uer", "--checkpoint", good, "--heads", "3", "--tokenizer", long, "--output", "new"]),
    "an adapter": (convert, lambda long, good: [
        "to-uer", "--checkpoint", good, "--heads", "3", "--adapter", long, "--output", "new"]),
    "generate": (infer, lambda long, good: ["generate", long, "x"]),
    "generate, prompts": (infer, lambda long, good: ["generate", good, "--prompts", long]),
    "generate, results": (infer, lambda long, good: ["generate", good, "x", "--output", long]),
    "chat": (infer, lambda long, good: ["chat", long]),
    "score": (infer, lambda long, good: ["score", long, "--text", good]),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKING)
def test_a_path_that_is_too_long_is_named_by_every_command(
    name: str, with_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main, words = LOOKING[name]
    for long in TOO_LONG:
        assert main(words(long, str(with_tokenizer))) == 2
        error = assert_one_line_error(capfd, "File name too long")
        assert error.startswith(f"error: {long}")
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system in memory; the test is skipped where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system may not be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("command", WRITING)
def test_a_small_model_is_written_on_a_disk_that_it_fits_on(
    command: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with disk(tmp_path / "disk", "size=1m") as folder:
        assert convert(written(command, checkpoint, folder / "model")) == 0, capfd.readouterr().err


@pytest.mark.parametrize(
    ("size", "free", "words"),
    [
        (10_000_000_000, 9_000_000_000, "10.00 GB are needed, 9.00 GB are free"),
        (50_000_000, 49_900_000, "50.0 MB are needed, 49.9 MB are free"),
        (1_100_000, 2_000, "1.1 MB are needed, 2.0 kB are free"),
        (40_000, 0, "40.0 kB are needed, 0.0 kB are free"),
        (1_100_000, 900_000, None),
    ],
)
def test_a_disk_that_is_too_small_is_found_before_the_first_byte(
    size: int, free: int, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    if words is None:
        with new_folder(tmp_path / "model", force=False, size=size):
            pass
    else:
        with pytest.raises(ConvertError, match=words), new_folder(tmp_path / "model", force=False, size=size):
            pass


@pytest.mark.parametrize("place", ["file/model", "file/deeper/model"])
@pytest.mark.parametrize("command", [*WRITING, "to-tf"])
def test_a_file_on_the_way_to_an_output_is_named(
    command: str, place: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert convert(written(command, checkpoint, tmp_path / place)) == 2
    assert_one_line_error(capfd, f"{tmp_path / 'file'} is a file, not a folder: choose another --output")


def test_a_folder_that_takes_no_other_is_not_said_to_be_missing() -> None:
    with pytest.raises(ConvertError) as error, new_folder(Path("/proc/x/y"), force=False, size=0):
        pass
    assert str(error.value) == "/proc/x: cannot be written: No such file or directory"


@pytest.mark.parametrize("command", WRITING)
def test_a_disk_that_fills_up_at_any_moment(
    command: str, checkpoint: Path, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """While weights, the tokenizer's files, the configuration or the manifest are written."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SPACE)
    options = [] if command in ("reshard", "to-megatron") else ["--tokenizer", str(vocabulary)]
    assert convert(written(command, checkpoint, tmp_path / "whole", *options)) == 0
    pages = sum(-(-file.stat().st_size // 4096) for file in (tmp_path / "whole").rglob("*") if file.is_file())
    capfd.readouterr()
    for size in {1, 2, pages // 3, pages // 2, pages - 4, pages - 3, pages - 2, pages - 1} - {0, -1}:
        with disk(tmp_path / f"disk-{size}", f"size={4096 * size}") as folder:
            code = convert(written(command, checkpoint, folder / "model", *options))
            assert (code, list(folder.iterdir())) == (2, []), size
            assert_one_line_error(capfd, f"error: {folder / 'model'}: the disk is full; nothing was left behind")


def test_a_disk_without_room_for_another_file(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for inodes in (2, 3, 4, 5):
        with disk(tmp_path / f"disk-{inodes}", f"nr_inodes={inodes}") as folder:
            assert convert(written("to-huggingface", checkpoint, folder / "model")) == 2
            assert_one_line_error(capfd, "the disk is full; nothing was left behind")
            assert not list(folder.iterdir())


def test_a_savedmodel_on_a_disk_that_fills_up_while_its_graph_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SPACE)
    with disk(tmp_path / "disk", "size=40k") as folder:
        assert convert(written("to-tf", checkpoint, folder / "model")) == 2
        assert_one_line_error(capfd, f"error: {folder / 'model'}: the disk is full; nothing was left behind")
        assert not list(folder.iterdir())


@pytest.mark.parametrize("command", [*WRITING, "to-tf"])
def test_a_file_system_that_is_read_only(
    command: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with disk(tmp_path / "disk", "ro") as folder:
        for place in (folder / "model", folder / "above" / "model"):
            assert convert(written(command, checkpoint, place)) == 2
            assert_one_line_error(capfd, "Read-only file system")


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS])
def test_errors_of_the_file_system_are_one_line(number: int, tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "a" / "model", force=False, size=0) as folder:
            (folder / "file").write_text("x")
            raise OSError(number, os.strerror(number))

    with pytest.raises(ConvertError) as caught:
        fail()
    is_full = number in (errno.EDQUOT, errno.ENOSPC, errno.EFBIG)
    assert ("the disk is full; nothing was left behind" if is_full else "cannot be written: ") in str(caught.value)
    assert not list(tmp_path.iterdir())


SPECIAL: dict[str, Callable[[Path], Path]] = {
    "a pipe": lambda folder: (os.mkfifo(folder / "pipe"), folder / "pipe")[1],
    "a folder with a pipe, model.safetensors": lambda folder: (
        os.mkfifo(folder / "model.safetensors"), folder)[1],
    "a folder with a pipe, pytorch_model.bin": lambda folder: (os.mkfifo(folder / "pytorch_model.bin"), folder)[1],
    "a folder with a pipe called x.pt": lambda folder: (os.mkfifo(folder / "x.pt"), folder)[1],
    "a device": lambda folder: Path("/dev/zero"),
    "nothing": lambda folder: folder / "nothing",
    "a link to itself": lambda folder: ((folder / "loop").symlink_to("loop"), folder / "loop")[1],
    "a link to nothing": lambda folder: ((folder / "link").symlink_to("gone"), folder / "link")[1],
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("option", ["checkpoint", "tokenizer", "adapter", "inspect", "check"])
def test_what_is_neither_a_file_nor_a_folder_is_not_waited_for(
    option: str, name: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given").mkdir()
    path = SPECIAL[name](tmp_path / "given")
    words = [option, str(path)]
    if option not in ("inspect", "check"):
        words = ["to-huggingface", "--output", str(tmp_path / "new"), "--quiet", f"--{option}", str(path)]
        words += [] if option == "checkpoint" else ["--checkpoint", str(checkpoint), "--heads", "3"]
    assert convert(words) == 2
    assert_one_line_error(capfd, str(path))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "\udcff\ud900"])
@pytest.mark.parametrize("what", ["checkpoint", "output"])
def test_names_that_no_file_can_have(what: str, name: str, checkpoint: Path, tmp_path: Path) -> None:
    from convert import open_checkpoint, to_checkpoint

    source = tmp_path / name if what == "checkpoint" else checkpoint
    output = tmp_path / name if what == "output" else tmp_path / "new"
    with pytest.raises(ConvertError) as caught:
        to_checkpoint(open_checkpoint(source, heads=3), output, format="uer")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_made_leave_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    new, there = tmp_path / "new.jsonl", tmp_path / "there.jsonl"
    there.touch()
    for path in (new, there):
        assert infer(["generate", str(tmp_path / "no-model"), "x", "--output", str(path)]) == 2
        assert_one_line_error(capfd, "no SavedModel")
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]


def test_results_on_a_disk_that_fills_up_keep_those_that_were_made(tmp_path: Path) -> None:
    record = {"prompt": "x", "number": 0, "text": "y" * 1500}

    def fill(path: Path) -> None:
        with open_results(path) as results:
            for number in range(99):
                results.append([{**record, "number": number}])

    with disk(tmp_path / "disk", "size=4k") as folder:
        with pytest.raises(RecordError, match=r"results\.jsonl: cannot be written: No space left on device"):
            fill(folder / "results.jsonl")
        with open_results(folder / "results.jsonl") as results:
            assert results.done() == {("x", 0), ("x", 1)}
        with pytest.raises(RecordError, match="No space left"):
            fill(folder / "other.jsonl")
        assert [path.name for path in folder.iterdir()] == ["results.jsonl"]


def test_a_file_of_results_that_was_removed_meanwhile_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / "results.jsonl", fcntl.flock

    def late(file: int, operation: int) -> None:
        path.unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RecordError, match="another run has removed it"), open_results(path):
        pass


def test_commands_that_need_a_savedmodel_name_the_one_that_is_near(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "out" / "song"
    for part in ("variables", "assets"):
        (model / part).mkdir(parents=True)
    (model / "saved_model.pb").touch()
    for command in (["generate", "{}", "x"], ["chat", "{}"], ["score", "{}", "--text", "x"]):
        for near in (tmp_path / "out", model / "saved_model.pb", model / "variables", model / "assets" / "config.json"):
            assert infer([word.format(near) for word in command]) == 2
            assert_one_line_error(capfd, f"error: {near}: no SavedModel", f"give {model}\n")


def test_commands_that_need_a_savedmodel_say_how_to_make_one_of_a_checkpoint(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for command in (["generate", "{}", "x"], ["chat", "{}"], ["score", "{}", "--text", "x"]):
        assert infer([word.format(checkpoint) for word in command]) == 2
        assert_one_line_error(capfd, f"error: {checkpoint}: no SavedModel", "converted with to-tf first")


def test_check_of_what_this_program_did_not_write(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for path, words in (
        (checkpoint, "no result of this program, and there are no hashes to compare with; inspect describes any"),
        (tmp_path / "file", "not a folder: give the folder that this program wrote"),
        (tmp_path / "nothing", "no such folder"),
    ):
        assert convert(["check", str(path)]) == 2
        assert len(assert_one_line_error(capfd, f"error: {path}: ", words)) < 300
