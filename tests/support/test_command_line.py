"""Commands, help, misspelt options, errors of one line, signals in the middle of other people's code."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from support.command_line import Command, Group, Program, utf8_text
from support.errors import UserError
from support.main_guard import main_guard
from tests.conftest import ROOT

Run = Callable[[argparse.Namespace], None]
DESCRIPTION = "Describes what the command does, in a sentence with latest_checkpointed_iteration.txt --tensor-parallel."


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], Program]:
    """Makes a program whose command ``go`` calls a function."""

    def make(run: Run) -> Program:
        module = types.ModuleType("a_command")

        def add_arguments(parser: argparse.ArgumentParser, *, noun: str) -> None:
            parser.add_argument("words", nargs="*")
            parser.add_argument("--output", required=True, type=Path, help=f"the {noun}")
            parser.add_argument("--force", action="store_true")
            parser.add_argument("--max-tokens", type=int)
            parser.add_argument("--max-length", type=int)

        module.__dict__.update(
            DESCRIPTION=DESCRIPTION,
            EXAMPLES=("{command} --output some-folder --max-tokens 100 --max-length 100", "{program} stop"),
            add_arguments=add_arguments,
            run=run,
        )
        monkeypatch.setitem(sys.modules, "a_command", module)
        commands = (
            Command("go", "a_command", "starts what 100% of users start", {"noun": "folder"}),
            Command("stop", "a_module_that_does_not_exist", "stops"),
        )
        group = Group("coming and going", commands, "exit codes:\n  0    done\n", "nothing was left behind")
        return Program("prog", "d", (group,), ("{program} go",), "exit codes:\n  0    done\n", "prog 1.2.3")

    return make


def nested(number: int) -> Run:
    """What TensorFlow's contexts do when an exception passes that they did not expect."""

    def run(args: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            raise AssertionError("the stack of contexts is not as it was")

    return run


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated"), (signal.SIGINT, "interrupted")]
)
def test_a_signal_that_a_context_replaces_by_an_error_is_one_line(
    number: signal.Signals, word: str, program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(nested(number)).run(["go", "--output", "x"]) == 128 + number
    assert capsys.readouterr().err == f"error: {word}; nothing was left behind\n"


def test_a_command_that_nohup_started_outlives_its_terminal(program: Callable[[Run], Program]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert program(lambda args: os.kill(os.getpid(), signal.SIGHUP)).run(["go", "--output", "x"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_gives_the_signal_handlers_back(program: Callable[[Run], Program]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert program(lambda args: None).run(["go", "--output", "x"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_defect_is_a_traceback(program: Callable[[Run], Program]) -> None:
    def run(args: argparse.Namespace) -> None:
        raise AssertionError("a defect")

    with pytest.raises(AssertionError, match="a defect"):
        program(run).run(["go", "--output", "x"])


def test_an_error_for_the_user_is_one_line_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    class OtherLogitsError(UserError):
        exit_code = 3

    def run() -> None:
        raise OtherLogitsError("first\nsecond")

    assert main_guard(run) == 3
    assert capsys.readouterr() == ("", "error: first second\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--outptu", "x"], "unrecognized arguments: --outptu; did you mean --output?"),
        (["--outptu=x"], "unrecognized arguments: --outptu=x; did you mean --output?"),
        (["--output", "x", "--forec"], "unrecognized arguments: --forec; did you mean --force?"),
        (["--out", "x"], "unrecognized arguments: --out; did you mean --output?"),
        (["--max", "1"], "unrecognized arguments: --max; did you mean --max-tokens or --max-length?"),
        (["--zzz", "1"], "unrecognized arguments: --zzz; --help"),
        (["--max_length", "1"], "unrecognized arguments: --max_length; did you mean --max-length?"),
        (["--maxlength", "1"], "unrecognized arguments: --maxlength; did you mean --max-length?"),
        (["--foce"], "unrecognized arguments: --foce; did you mean --force?"),
        (["--lora", "1"], "unrecognized arguments: --lora; --help"),
        (["--place", "1"], "unrecognized arguments: --place; --help"),
        (["--input", "1"], "unrecognized arguments: --input; --help"),
        (["--force"], "the following arguments are required: --output"),
        (["--output", "x", "-z"], "unrecognized arguments: -z"),
    ],
)
def test_misspelt_options_are_named_and_the_one_that_was_meant(
    words: list[str], expected: str, program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        program(lambda args: None).run(["go", *words])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected a COMMAND"),
        (["stpo"], "'stpo' is no command; did you mean stop?"),
        (["zzz"], "'zzz' is no command; --help"),
        (["stpo", "a", "b", "--seed", "0"], "'stpo' is no command; did you mean stop?"),
        (["STOP", "--output=x"], "'STOP' is no command; did you mean stop?"),
        (["zzz", "--force"], "'zzz' is no command; --help"),
        (["--versoin"], "did you mean --version?"),
        (["--force", "go"], "unrecognized arguments: --force"),
    ],
)
def test_misspelt_commands_are_named_and_the_one_that_was_meant(
    words: list[str], expected: str, program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        program(lambda args: None).run(words)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


def test_words_may_stand_between_options(program: Callable[[Run], Program]) -> None:
    seen = []
    words = ["go", "a", "--output", "x", "b", "--force", "--", "--c"]
    assert program(lambda args: seen.extend(args.words)).run(words) == 0
    assert seen == ["a", "b", "--c"]


def test_the_version_is_printed(program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        program(lambda args: None).run(["--version"])
    assert (error.value.code, capsys.readouterr().out) == (0, "prog 1.2.3\n")


def test_a_list_of_commands_imports_none_of_them(
    program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        program(lambda args: None).run(["--help"])
    assert error.value.code == 0
    shown = capsys.readouterr().out
    assert "coming and going:\n  go " in shown
    assert "starts what 100% of users start" in shown
    assert "example:\n  prog go\n" in shown


@pytest.mark.parametrize("columns", ["40", "60", "80", "200"])
@pytest.mark.parametrize("words", [["--help"], ["go", "--help"]])
def test_help_wraps_to_the_terminal_and_breaks_no_word(
    columns: str, words: list[str], program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        program(lambda args: None).run(words)
    shown = capsys.readouterr().out
    examples = [line for line in shown.splitlines() if line.startswith("  prog ")]
    if words[0] == "go":
        assert set(DESCRIPTION.split()) <= set(shown.split())
        assert examples == ["  prog go --output some-folder --max-tokens 100 --max-length 100", "  prog stop"]
    for line in shown.splitlines():
        assert len(line) <= int(columns) or line in examples or len(line.split()) == 1


def test_text_that_another_locale_has_decoded_is_read_as_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsencode", lambda word: word.encode("latin-1", "surrogateescape"))
    assert utf8_text("浣溪沙".encode().decode("latin-1")) == "浣溪沙"
    assert utf8_text("caf\xe9") == "caf\xe9"
    assert utf8_text("浣溪沙") == "浣溪沙"


def test_a_path_that_is_not_utf8_is_named(
    program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(lambda args: None).run(["go", "--output", "a\udcff"]) == 2
    assert capsys.readouterr().err == "error: 'a\\udcff': not UTF-8: rename it\n"


@pytest.mark.parametrize("package", ["convert", "inference"])
def test_help_needs_no_package(package: str) -> None:
    """-S: no site-packages, as with a system's Python instead of .venv's."""
    command = [sys.executable, "-S", "-m", package, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": ""}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "exit codes:" in done.stdout


@pytest.mark.parametrize(
    "words", [["convert", "to-tf", "--checkpoint", "x", "--output", "y"], ["inference", "generate", "x"], ["demo"]]
)
def test_a_package_that_is_missing_is_named_in_one_line(words: list[str]) -> None:
    command = [sys.executable, "-S", "-m", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": ""}, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not installed for" in done.stderr
    assert "make" in done.stderr


def test_a_command_in_a_folder_that_was_deleted_ends_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    command = f"cd {folder} && rmdir {folder} && exec {sys.executable} -m convert inspect model"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: model: no such file or folder\n")
