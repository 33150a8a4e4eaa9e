"""The command: exit codes, one clear line, and nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.cli import PROGRAM
from tests.conftest import ROOT
from tests.helpers.assertions import assert_one_line, assert_one_line_error
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.light import main
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=2, n_head=6)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good checkpoint of two shards, iteration 80000."""
    write_megatron(tmp_path / "in" / "CPM", random_state(CONFIG, np.random.default_rng(0)), 2, extras=False)
    return tmp_path / "in" / "CPM"


def convert(root: Path, *options: str, heads: str = "6") -> int:
    output = root.parents[1] / "out" / "model"
    return main(
        ["pytorch-to-tf", "--checkpoint", str(root), "--output", str(output), "--heads", heads, "--quiet", *options]
    )


def edit(rank: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        file = root / "80000" / f"mp_rank_{rank:02d}_model_states.pt"
        content = torch.load(file, weights_only=False)
        change(content["module"])
        torch.save(content, file)

    return apply


def shard(root: Path, rank: int) -> Path:
    return root / "80000" / f"mp_rank_{rank:02d}_model_states.pt"


def tracker(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "latest_checkpointed_iteration.txt").write_text(text) and None


def another_model(root: Path) -> None:
    other = root.parent / "other"
    write_megatron(other, random_state(CONFIG, np.random.default_rng(1)), 2, extras=False)
    shard(root, 1).write_bytes(shard(other, 1).read_bytes())


QKV = "transformer.layers.0.attention.query_key_value.weight"

BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "path absent": (lambda root: root.rename(root.with_name("elsewhere")), "CPM"),
    "tracker missing": (lambda root: (root / "latest_checkpointed_iteration.txt").unlink(), "latest_checkpointed"),
    "tracker empty": (tracker(""), "latest_checkpointed"),
    "tracker 0": (tracker("0"), "latest_checkpointed"),
    "tracker garbage": (tracker("many\nlines"), "latest_checkpointed"),
    "iteration folder absent": (tracker("70000"), "80000"),
    "shard missing": (lambda root: shard(root, 1).unlink(), "mp_rank_01"),
    "first shard missing": (lambda root: shard(root, 0).unlink(), "mp_rank_00"),
    "shard truncated": (lambda root: shard(root, 1).write_bytes(shard(root, 1).read_bytes()[:5000]), "mp_rank_01"),
    "shard empty": (lambda root: shard(root, 1).write_bytes(b""), "mp_rank_01"),
    "shard of another model": (another_model, "mp_rank_01"),
    "tensor missing": (edit(0, lambda module: module.pop(QKV)), "query_key_value"),
    "tensor unexpected": (edit(0, lambda module: module.update(surprise=torch.ones(3))), "surprise"),
    "tensor of wrong shape": (edit(1, lambda module: module.update({QKV: torch.ones(5, 24)})), "query_key_value"),
    "no tensor": (edit(1, lambda module: module.update({QKV: os.system})), "system"),
    "NaN": (edit(1, lambda module: module[QKV].__setitem__((3, 4), float("nan"))), "NaN"),
    "Inf": (edit(0, lambda module: module[QKV].__setitem__((3, 4), float("inf"))), "infinite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_checkpoint_is_one_line_and_leaves_nothing(
    root: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BAD[kind]
    spoil(root)
    assert_refused(convert(root), root, words, capsys)


def assert_refused(code: int, root: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code == 2
    assert_one_line_error(capsys, words)
    assert not (root.parents[1] / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--heads", "5"], "2, 4, 6, 8, 12"),
        (["--heads", "7"], "heads"),
        (["--heads", "0"], "heads"),
        (["--heads", "-6"], "heads"),
        (["--iteration", "7"], "80000"),
        (["--iteration", "soon"], "soon"),
        (["--tokenizer", "absent"], "absent"),
        (["--tokenizer", "."], "no tokenizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line_and_leaves_nothing(
    root: Path, options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert_refused(convert(root, *options), root, words, capsys)


def test_heads_are_asked_for(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["pytorch-to-tf", "--checkpoint", str(root), "--output", str(tmp_path / "out" / "model")])
    assert_refused(code, root, "--heads", capsys)


def test_a_tokenizer_of_another_model_is_refused(root: Path, demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(convert(root, "--tokenizer", str(demo / "tokenizer")), root, "not its tokenizer", capsys)


def test_force_replaces_an_older_result_of_this_program_only(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "model"
    assert convert(root) == 0
    (folder / "saved_model.pb").write_text("an older one")
    assert convert(root) == 2
    assert_one_line_error(capsys, "--force")
    assert (folder / "saved_model.pb").read_text() == "an older one"
    assert convert(root, "--force") == 0
    assert (folder / "saved_model.pb").read_bytes() != b"an older one"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["assets", "assets.extra", "fingerprint.pb", "saved_model.pb", "variables"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    (folder / "finetuned").mkdir()
    (folder / "finetuned" / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert convert(root, "--force") == 2
    assert_one_line_error(capsys, "has files in it that this program did not write")
    assert (folder / "finetuned" / "notes.txt").read_text() == "mine"


def test_force_replaces_nothing_but_a_saved_model(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a folder of somebody's files, not the checkpoint itself, not a folder around it, not the current one."""
    (tmp_path / "novels").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "saved_model.pb").write_text("somebody else's")
    (tmp_path / "novels" / "chapter1.txt").write_text("mine")
    monkeypatch.chdir(root.parent)
    before = sorted(tmp_path.rglob("*"))
    for output in (
        tmp_path / "novels",
        tmp_path / "others",
        root,
        root / "80000",
        root.parent,
        tmp_path,
        Path(),
        Path("..", ".."),
        Path("/"),
    ):
        arguments = ["--checkpoint", str(root), "--output", str(output), "--heads", "6", "--quiet", "--force"]
        assert main(["pytorch-to-tf", *arguments]) == 2, output
        assert_one_line_error(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_somebody_under_the_working_name_survives(root: Path, tmp_path: Path) -> None:
    """The name that a run works under may be taken: by files of somebody, or by a link to them."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    (tmp_path / "out").mkdir()
    working = tmp_path / "out" / ".model.partial"
    working.symlink_to(victim)
    assert convert(root) == 2
    working.unlink()
    victim.rename(working)
    assert convert(root) == 2
    assert (working / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["CPM[1]", "what?", "a*b"])
def test_names_that_tensorflow_takes_for_patterns_are_refused(root: Path, tmp_path: Path, name: str) -> None:
    arguments = ["--checkpoint", str(root), "--output", str(tmp_path / name), "--heads", "6", "--quiet"]
    assert main(["pytorch-to-tf", *arguments]) == 2


def test_names_that_are_not_utf8_are_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff")
    assert main(["pytorch-to-tf", "--checkpoint", str(root), "--output", output, "--heads", "6"]) == 2
    assert_one_line_error(capsys, "not UTF-8")


def test_checksums_that_were_switched_off_are_noted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torch.serialization import set_crc32_options

    content = [torch.load(shard(root, rank)) for rank in (0, 1)]
    set_crc32_options(False)
    try:
        torch.save(content[1], shard(root, 1))
    finally:
        set_crc32_options(True)
    output = root.parents[1] / "out" / "model"
    assert main(["pytorch-to-tf", "--checkpoint", str(root), "--output", str(output), "--heads", "6"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert f"{shard(root, 1)}: has no checksums" in notes[0]


def test_one_checksum_set_to_zero_does_not_switch_them_off(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its weight changed: else a zero there would let any damage through."""
    import zipfile

    file = shard(root, 0)
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(file.read_bytes())
    crc = entry.CRC.to_bytes(4, "little")
    place = content.index(crc, entry.header_offset + entry.file_size)
    content[place : place + 4] = bytes(4)
    content[entry.header_offset + 200] ^= 1
    file.write_bytes(content)
    assert_refused(convert(root), root, "damaged", capsys)


def test_a_pipe_as_tracker_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "latest_checkpointed_iteration.txt").unlink()
    os.mkfifo(root / "latest_checkpointed_iteration.txt")
    assert_refused(convert(root), root, "expected a text file", capsys)


def test_an_empty_folder_may_be_the_output(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    assert convert(root) == 0
    assert (tmp_path / "out" / "model" / "saved_model.pb").exists()


def test_an_older_result_survives_a_failure(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "model"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_text("an older one")
    BAD["NaN"][0](root)
    assert convert(root, "--force") == 2
    assert (folder / "saved_model.pb").read_text() == "an older one"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_an_output_that_is_a_file_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").write_text("mine")
    assert convert(root, "--force") == 2
    assert_one_line_error(capsys, "not a folder")
    assert (tmp_path / "out" / "model").read_text() == "mine"


def test_an_output_below_a_file_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    assert convert(root) == 2
    assert_one_line_error(capsys, "out")


def test_a_full_disk_is_noticed_before_anything_is_written(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert_refused(convert(root), root, "MB are needed, 1.0 kB are free", capsys)


def test_a_disk_that_fills_up_while_writing_leaves_nothing(root: Path, tmp_path: Path) -> None:
    """The disk fills up in the middle: the kernel's limit on a file's size gives the same kind of error."""
    code = (
        "import resource, signal, sys\n"
        "from convert.__main__ import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    output = tmp_path / "out" / "model"
    result = subprocess.run(
        [sys.executable, "-c", code, "pytorch-to-tf", "--checkpoint", root, "--output", output, "--heads", "6"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert_one_line(result.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_writing_leaves_nothing(root: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Stopped while it writes: nothing is left. A run that was too fast for the signal is repeated."""
    output = tmp_path / "out" / "model"
    command = [sys.executable, "-m", "convert", "pytorch-to-tf", "--checkpoint", root, "--output", output, "--force"]
    for _ in range(5):
        process = subprocess.Popen([*command, "--heads", "6"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not output.with_name(".model.partial").exists():
            time.sleep(0.001)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        if process.returncode:
            break
        shutil.rmtree(tmp_path / "out")
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_the_closing_line_has_the_facts_and_quiet_prints_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "model"
    arguments = ["pytorch-to-tf", "--checkpoint", str(root), "--output", str(output), "--heads", "6"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    for words in (
        f"{CONFIG.parameter_count:,} parameters",
        "float32",
        "MB",
        " s, no tokenizer: token ids only;",
        f"hub.load({str(output)!r})",
    ):
        assert words in out
    assert "%|" not in err  # no progress bar where nobody looks; a line now and then, if the machine is slow
    assert main([*arguments, "--force", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", ["", *PROGRAM.commands])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert re.search("examples?:\n  python -m convert ", text)
    assert "exit codes:" in text


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(root: Path) -> None:
    command = f"'{sys.executable}' -m convert inspect '{root}' | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) in ((128 + signal.SIGPIPE, ""), (0, ""))


def test_usage_errors_have_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nonsense"], ["pytorch-to-tf"], ["pytorch-to-tf", "--dtype", "int3"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2


@pytest.mark.parametrize("delay", [0.06, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3])
def test_ctrl_c_while_the_program_starts_is_one_line(delay: float, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convert", "to-huggingface", "--checkpoint", str(ROOT / "demo" / "song-ci")]
    process = subprocess.Popen(
        [*command, "--heads", "4", "--output", str(tmp_path / "out"), "--quiet"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    if process.returncode != -signal.SIGINT:  # before Python itself has started, or after its end
        assert process.returncode in (0, 130), err
        assert err.startswith("error: interrupted") or process.returncode == 0
    assert err.count("\n") <= 1
