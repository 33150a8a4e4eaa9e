"""The command ``finetune``: what it cannot use is one line, exit code 2, and nothing is left."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from convert.formats.registry import open_checkpoint
from support.errors import UserError
from support.progress import TerminalProgress
from tests.conftest import ROOT
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.privileges import as_nobody
from tests.helpers.small_vocabularies import write_tokenizer
from tf_model.config import GPT2Config
from training.cli import main
from training.finetuning import FinetuneResult
from training.memory import Plan
from training.own_folders import training_folder
from training.preparation import prepare
from training.run.run_folder import RunError
from training.run.watching import EvaluationReport, TerminalWatcher
from training.settings import Settings

CONFIG = GPT2Config(vocab_size=600, n_positions=64, n_embd=16, n_layer=2, n_head=2)
TEXT = "hello world\n\ngood day, hello\n\nhello hello\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its tokenizer, and texts."""
    root = tmp_path_factory.mktemp("files")
    write_megatron(root / "model", random_state(CONFIG, np.random.default_rng(0)), 1, extras=False)
    write_tokenizer("bpe", root / "tokenizer")
    large = root / "large"
    large.mkdir()
    (large / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "".join(f"w{i}\n" for i in range(2000)))
    (root / "good.txt").write_text(TEXT)
    (root / "empty.txt").write_text("")
    (root / "latin1.txt").write_bytes("hello wörld".encode("latin-1"))
    (root / "lines.jsonl").write_text('{"text": "hello"}\n{"text": "world"}\n')
    (root / "nothing").mkdir()
    (root / "full").mkdir()
    (root / "full" / "thesis.txt").write_text("do not lose")
    return root


USUAL = {
    "--model": ["model"], "--heads": ["2"], "--tokenizer": ["tokenizer"], "--text": ["good.txt"], "--output": ["out"],
}  # fmt: skip

BAD: dict[str, tuple[dict[str, list[str] | None], str]] = {
    "no such text": ({"--text": ["none.txt"]}, "none.txt: cannot be read: No such file"),
    "undecodable text": ({"--text": ["latin1.txt"]}, "latin1.txt: expected UTF-8 text, found"),
    "empty text": ({"--text": ["empty.txt"]}, "empty.txt: expected a text, found none"),
    "a folder without texts": ({"--text": ["nothing"]}, "nothing: expected files named .txt or .jsonl"),
    "a field that is not there": (
        {"--text": ["lines.jsonl"], "--prefix": ["style"]},
        "lines.jsonl, line 1: expected a text as 'style'",
    ),
    "no model": ({"--model": ["none"]}, "none: no such file or folder"),
    "no model at all": ({"--model": None}, "--model: expected the model to train, or --init SIZES"),
    "no tokenizer": ({"--tokenizer": None}, "there is no tokenizer next to the weights: give --tokenizer PATH"),
    "a tokenizer that is not there": ({"--tokenizer": ["none"]}, "none: no tokenizer: no such file or folder"),
    "a tokenizer of another model": (
        {"--tokenizer": ["large"]},
        "a vocabulary of 2005 pieces, but the model has 600: not its tokenizer",
    ),
    "output is the input": ({"--output": ["model"]}, "model: is the input; choose another --output"),
    "output has the texts in it": ({"--output": ["."]}, "choose another --output"),
    "output has other files": (
        {"--output": ["full"], "--force": []},
        "full: has files in it that this",
    ),
    "rank 0": ({"--lora": ["0"]}, "--lora 0: expected a whole number of at least 1"),
    "rows longer than the model": ({"--length": ["65"]}, "--length 65: expected 64 at most, the model's positions"),
    "init with a model": ({"--init": ["layers=1"]}, "--init: makes a model from nothing: leave out --model"),
    "init without a tokenizer": (
        {"--init": ["layers=1"], "--model": None, "--tokenizer": None},
        "--init: a model from nothing needs --tokenizer PATH",
    ),
    "init with half of the sizes": ({"--init": ["layers=1"], "--model": None}, "--init: hidden is missing"),
    "everything frozen": (
        {"--freeze": ["embeddings", "blocks:0-1", "rest"]},
        "--freeze 'rest': expected embeddings, blocks:0-15 or blocks:3",
    ),
    "blocks that the model lacks": ({"--freeze": ["blocks:1-2"]}, "--freeze blocks:1-2: expected blocks from 0 to 1"),
    "a dtype": ({"--dtype": ["float64"]}, "--dtype float64: expected one of float32, float16"),
    "a dtype of another format": (
        {"--format": ["huggingface"], "--dtype": ["int8"]},
        "dtype 'int8': expected one of float16, bfloat16, float32",
    ),
    "ranks that do not divide the heads": (
        {"--format": ["megatron"], "--tensor-parallel": ["3"], "--tokenizer": ["tokenizer"]},
        "--tensor-parallel",
    ),
    "a validation that is no share": ({"--validation": ["1.5"]}, "--validation 1.5: expected a share below 1"),
    "more held out than there is": (
        {"--validation": ["1e9"]},
        "--validation 1e9: expected 2 documents at most, as there are 3",
    ),
    "a pipe for a validation file": ({"--validation": ["/dev/null"]}, "/dev/null: expected a file, found something"),
    "a name that is too long": ({"--text": ["n" * 300]}, "nnn: cannot be read: File name too long"),
    "a validation of a name that is too long": ({"--validation": ["n" * 300]}, "cannot be read: File name too long"),
    "an output whose run has too long a name": (
        {"--output": ["n" * 250]},
        ".training/state.safetensors: cannot be written: File name too long",
    ),
    "a prompt of half a character": (
        {"--sample-prompt": ["\udcff"]},
        "--sample-prompt: text cannot be encoded: half a surrogate pair",
    ),
    "a validation file that is not there": ({"--validation": ["none.txt"]}, "none.txt: cannot be read"),
    "a rate in words": ({"--learning-rate": ["high"]}, "argument --learning-rate: invalid float value: 'high'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_line_and_nothing_is_left(
    case: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected = BAD[case]
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    options = {name: values for name, values in {**USUAL, **changes}.items() if values is not None}
    before = sorted(tmp_path.rglob("*"))
    try:
        code = main(["finetune", *(word for name, values in options.items() for word in (name, *values))])
    except SystemExit as exit_:  # argparse
        code = int(str(exit_.code))
    shown = capsys.readouterr()
    assert code == 2
    assert shown.err.startswith("error: ")
    assert expected in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert sorted(tmp_path.rglob("*")) == before


def arguments(files: Path, output: Path, *others: str) -> list[str]:
    usual = {"--model": "model", "--tokenizer": "tokenizer", "--text": "good.txt"}
    paths = [word for name, value in usual.items() for word in (name, str(files / value))]
    return ["finetune", *paths, "--heads", "2", "--output", str(output), *others]


def fail(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends with 2."""
    assert main(words) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def leave_a_run(files: Path, output: Path, **changes: object) -> None:
    """What a run that was stopped leaves, as far as the check of its options reads it."""
    settings = Settings.of({"tokenizer": files / "tokenizer", "steps": 4})
    prepared = prepare(open_checkpoint(files / "model", heads=2), [files / "good.txt"], output, settings)
    folder = training_folder(output)
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(b"a state")
    (folder / "run.json").write_text(json.dumps({**prepared.record, **changes}))


def test_a_run_folder_that_may_not_be_searched_is_one_line(files: Path, tmp_path: Path) -> None:
    for folder in (files, tmp_path, *files.parents[:2], *tmp_path.parents[:2]):
        folder.chmod(0o755)
    leave_a_run(files, tmp_path / "out")
    training_folder(tmp_path / "out").chmod(0o000)
    settings = Settings.of({"tokenizer": files / "tokenizer", "steps": 4})
    checkpoint = open_checkpoint(files / "model", heads=2)
    with as_nobody(), pytest.raises(RunError, match=r"out\.training: cannot be written: Permission denied"):
        prepare(checkpoint, [files / "good.txt"], tmp_path / "out", settings)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learning_rate": 0.5, "dropout": 0.2}, "--dropout 0.1, was 0.2; --learning-rate 0.0003, was 0.5"),
        ({"lora": 8}, "--lora left out, was 8"),
        ({"prefix": ["style"]}, "--prefix left out, was style"),
        ({"batch_size": 4, "steps": 9, "micro_batch": 1}, "--batch-size 8, was 4: give"),
        ({"steps": 9}, "--steps 4, was 9: give"),
        ({"model": "0" * 64}, "the model has changed"),
        ({"texts": "0" * 64}, "the texts have changed"),
        ({"texts": "0" * 64, "length": 8}, "--length 64, was 8: give"),
    ],
)
def test_a_run_that_was_stopped_does_not_go_on_with_something_else(
    changes: dict[str, object], expected: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_a_run(files, tmp_path / "out", **changes)
    line = fail(arguments(files, tmp_path / "out", "--steps", "4"), capsys)
    assert f"was trained with other options or files: {expected}" in line
    assert "--fresh" in line
    assert (training_folder(tmp_path / "out") / "state.safetensors").read_bytes() == b"a state"


def test_a_run_goes_on_with_what_it_has_chosen_for_its_machine(files: Path, tmp_path: Path) -> None:
    leave_a_run(files, tmp_path / "out", micro_batch=1)
    checkpoint = open_checkpoint(files / "model", heads=2)
    for settings, expected in (({}, 1), ({"micro_batch": 2}, 2)):
        given = Settings.of({"tokenizer": files / "tokenizer", "steps": 4, **settings})
        prepared = prepare(checkpoint, [files / "good.txt"], tmp_path / "out", given)
        assert prepared.plan.micro_batch == prepared.record["micro_batch"] == expected
    assert prepare(checkpoint, [files / "good.txt"], tmp_path / "out", given, fresh=True).plan.micro_batch == 2


def test_a_run_goes_on_with_the_products_that_it_began_with(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine would choose others."""
    given = Settings.of({"tokenizer": files / "tokenizer", "lora": 2, "frozen_dtype": "bfloat16"})
    found = []
    for flags, fresh in (({"avx512_bf16"}, False), (set(), False), (set(), True)):
        monkeypatch.setattr("training.choices.cpu_flags", lambda flags=flags: flags)
        checkpoint = open_checkpoint(files / "model", heads=2)
        prepared = prepare(checkpoint, [files / "good.txt"], tmp_path / "out", given, fresh=fresh)
        found.append((prepared.products, any("no instructions for it" in note for note in prepared.notes)))
        training_folder(tmp_path / "out").mkdir(exist_ok=True)
        (training_folder(tmp_path / "out") / "state.safetensors").write_bytes(b"a state")
        (training_folder(tmp_path / "out") / "run.json").write_text(json.dumps(prepared.record))
    assert found == [("bfloat16", False), ("bfloat16", True), ("float32", False)]


def test_only_weights_that_lora_freezes_become_smaller_where_memory_is_short(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of a smaller type is not trained at all, so frozen blocks beside trained ones stay float32."""

    def plan(available: int, **more: object) -> Plan:
        monkeypatch.setattr("training.preparation.available_memory", lambda: available)
        small = {"tokenizer": files / "tokenizer", "length": 8, "micro_batch": 1, "recompute": True}
        checkpoint = open_checkpoint(files / "model", heads=2)
        return prepare(checkpoint, [files / "good.txt"], tmp_path / "out", Settings.of({**small, **more})).plan

    least = plan(10**12, lora=2).nbytes
    assert plan(least - 1, lora=2).frozen_dtype != "float32"
    least = plan(10**12, freeze=["blocks:0"]).nbytes
    assert plan(least, freeze=["blocks:0"]).frozen_dtype == "float32"
    with pytest.raises(UserError, match="of memory are needed at least"):
        plan(least - 1, freeze=["blocks:0"])


def test_what_may_change_does_not_keep_a_run_from_going_on(files: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(files / "model", heads=2)
    named = {"tokenizer": files / "tokenizer"}
    others = {"sample": 0, "format": "huggingface", "keep": "last", "recompute": True, "epochs": 3}
    first, second = (
        prepare(checkpoint, [files / "good.txt"], tmp_path / "out", Settings.of(more))
        for more in (named, {**named, **others})
    )
    assert first.record == second.record


def test_one_document_is_learnt_without_validation_with_a_note(files: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("hello world")
    settings = Settings.of({"tokenizer": files / "tokenizer"})
    prepared = prepare(open_checkpoint(files / "model", heads=2), [tmp_path / "one.txt"], tmp_path / "out", settings)
    assert prepared.texts.validation is None
    assert any(note.startswith("nothing is held out") for note in prepared.notes)


def test_long_documents_and_too_many_that_are_held_out_are_said(files: Path, tmp_path: Path) -> None:
    def notes(**settings: object) -> str:
        given = Settings.of({"tokenizer": files / "tokenizer", **settings})
        checkpoint = open_checkpoint(files / "model", heads=2)
        return "\n".join(prepare(checkpoint, [files / "good.txt"], tmp_path / "out", given).notes)

    assert "held out" not in notes()
    assert "longer than a row" not in notes()
    assert "1 document to train on, 2 held out" in notes(validation=2)
    assert "longer than a row of 2 tokens and cut into windows: 2 of 2 documents" in notes(length=2)


def test_the_closing_line_has_figures_as_the_lines_of_steps_have_them() -> None:
    result = FinetuneResult(
        Path("out"), "savedmodel", 9, 9, 1, 2000, 1, (20022.126, 7.4), (1.5, 1.25), 1234.5, "gpt2-savedmodel ...", ()
    )
    assert result.summary() == (
        "out: 1 step, 2,000 tokens, 1,234 s; perplexity of held-out texts 20,022.13 -> 7.40, "
        "of texts that it learnt 1.50 -> 1.25; go on with: gpt2-savedmodel ..."
    )


def test_the_terminal_shows_figures_for_people_and_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = TerminalWatcher(TerminalProgress(unit=" steps"))
    watcher.stage("building the graph")
    watcher.evaluation(EvaluationReport(3, 9.9, 20022.126, is_best=True))
    assert capsys.readouterr().err == (
        "building the graph ...\nstep 3: validation loss 9.9000, perplexity 20,022.13, the best so far\n"
    )


def test_unknown_characters_are_said_with_their_share(tmp_path: Path) -> None:
    tokenizer = write_tokenizer("bert", tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("hello 龘 world 鱻")
    settings = Settings.of({"init": "layers=1,hidden=8,heads=1,positions=16", "tokenizer": tokenizer})
    notes = prepare(None, [tmp_path / "text.txt"], tmp_path / "out", settings).notes
    assert any("33.3% of the tokens are unknown to the vocabulary (龘 鱻)" in note for note in notes)


def test_a_model_whose_loss_is_no_number_is_not_trained(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = random_state(CONFIG, np.random.default_rng(0))
    write_megatron(tmp_path / "model", {name: value * 1e30 for name, value in state.items()}, 1, extras=False)
    words = arguments(files, tmp_path / "out", "--sample", "0", "--quiet")
    assert main([str(tmp_path / "model") if word == str(files / "model") else word for word in words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: the model's loss on the texts is nan")
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


RUN = "import sys; from training.cli import main; sys.exit(main(sys.argv[1:]))"
LIMIT = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
LIMITED = f"{LIMIT}; resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES)); {RUN}"


def start(code: str, words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def weights(folder: Path) -> bytes:
    return (folder / "variables" / "variables.data-00000-of-00001").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_same_command_goes_on_after_a_signal(
    number: int, code: int, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(name: str) -> list[str]:
        return arguments(files, tmp_path / name, "--steps", "200", "--evaluate-every", "5", "--sample", "0")

    process = start(RUN, words("out"))
    log = training_folder(tmp_path / "out") / "log.csv"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 20):
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate()[1]
    assert process.returncode == code
    assert not (tmp_path / "out").exists()
    if code > 0:
        assert error.splitlines()[-1].endswith("; the same command goes on where it was")
    capsys.readouterr()
    assert main(words("out")) == 0
    shown = capsys.readouterr().err
    assert re.match(rf"note: goes on from step \d+ of 200 of {tmp_path}/out.training\n", shown)
    assert shown.count("goes on from") == 1
    assert shown.index("\nbuilding the graph ...\n") < shown.index("\nwriting the result ...\n")
    assert main([*words("whole"), "--quiet"]) == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert not (training_folder(tmp_path / "out") / "state.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [40_000, 200_000, 1_000_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(limit: int, files: Path, tmp_path: Path) -> None:
    """The kernel's limit on a file's size stands in for a disk: of the best weights, the state, the graph."""
    words = arguments(files, tmp_path / "out", "--steps", "4", "--sample", "0", "--quiet")
    process = start(LIMITED.replace("BYTES", str(limit)), words)
    error = process.communicate()[1]
    assert process.returncode == 2
    assert error.startswith("error: ")
    assert "the disk is full" in error
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out.training"}
    assert main(words) == 0
    assert (tmp_path / "out").is_dir()
