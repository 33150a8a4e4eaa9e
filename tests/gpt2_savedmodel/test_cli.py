"""``gpt2-savedmodel``: every command under one name, and what completes them in a shell."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import convert
import convert.cli
import inference.cli
import training.cli
from gpt2_savedmodel.cli import PROGRAM, main
from tests.conftest import ROOT


def test_every_command_of_the_packages_is_there() -> None:
    all_ = [name for package in (convert, inference, training) for name in package.cli.PROGRAM.commands]
    assert [*PROGRAM.commands] == all_
    assert len(set(all_)) == len(all_)
    listed = {"pytorch-to-tf", "to-tf", "tf-to-tf", "to-huggingface", "tf-to-pytorch", "to-openai", "to-uer"}
    listed |= {"to-megatron", "reshard", "verify", "inspect", "check", "generate", "chat", "ask", "score", "finetune"}
    assert listed <= {*all_}


@pytest.mark.parametrize("name", PROGRAM.commands)
def test_every_command_has_help_with_an_example_and_its_exit_codes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    assert shown.startswith(f"usage: gpt2-savedmodel {name} ")
    assert "  gpt2-savedmodel " in shown.partition("\nexample")[2]
    assert "exit codes:" in shown


@pytest.mark.parametrize("name", ["", *PROGRAM.commands])
def test_help_on_a_narrow_terminal_has_the_same_words(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    for columns in (40, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        shown[columns] = capsys.readouterr().out
    narrow, wide = (text.split() for text in (shown[40], shown[100]))
    assert sorted(narrow) == sorted(wide)
    for line in shown[40].splitlines():
        is_one_unit = len(line.split()) == 1 or line.lstrip().startswith(("-", "["))  # an option and its values
        assert len(line) <= 40 or is_one_unit or line.startswith("  gpt2-savedmodel "), line


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert (exit_.value.code, capsys.readouterr().out) == (0, f"gpt2-savedmodel {convert.__version__}\n")


def test_the_list_of_commands_needs_no_package() -> None:
    command = [sys.executable, "-S", "-m", "gpt2_savedmodel", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": ""}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "generate text:\n  generate" in done.stdout


def test_completion_without_its_package_is_one_line() -> None:
    command = [sys.executable, "-S", "-m", "gpt2_savedmodel", "--print-completion", "bash"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": ""}, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: shtab is not installed for ")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["reshar"], {"reshard"}),
        (["to-tf", "--dt"], {"--dtype"}),
        (["to-tf", "--dtype", "bf"], {"bfloat16"}),
        (["generate", "model", "--temp"], {"--temperature"}),
        (["--ver"], {"--version"}),
    ],
)
def test_bash_completes_commands_options_and_values(
    typed: list[str], expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    assert exit_.value.code == 0
    words = " ".join(["gpt2-savedmodel", *typed])
    script += f'\nCOMP_WORDS=({words}); COMP_CWORD={len(typed)}; _shtab_gpt2_savedmodel; echo "${{COMPREPLY[@]}}"\n'
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_read_their_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "reshard" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("genrate o3 萧炎 --temperature 0", "'genrate' is no command; did you mean generate?"),
        ("totf --checkpoint x", "'totf' is no command; did you mean to-tf?"),
        ("pytorch_to_tf --checkpoint x", "'pytorch_to_tf' is no command; did you mean pytorch-to-tf?"),
        ("Inspect x --json", "'Inspect' is no command; did you mean inspect?"),
        ("translate x --seed 1", "'translate' is no command; --help"),
        ("to-tf --lora x", "unrecognized arguments: --lora; did you mean --adapter?"),
        ("to-tf --input x", "unrecognized arguments: --input; did you mean --checkpoint?"),
        ("to-tf --num-heads 4", "unrecognized arguments: --num-heads; did you mean --heads?"),
        ("generate o3 --greedy", "unrecognized arguments: --greedy; did you mean --temperature 0?"),
        ("generate o3 --input x", "unrecognized arguments: --input; did you mean --prompts?"),
        ("generate o3 --max_tokens 5", "unrecognized arguments: --max_tokens; did you mean --max-new-tokens?"),
        ("score o3 --greedy", "unrecognized arguments: --greedy; --help"),
        ("inspect o3 --speed", "unrecognized arguments: --speed; --help"),
    ],
)
def test_what_was_meant_is_named_and_nothing_else(
    words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        PROGRAM.run(words.split())
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1
