"""The command ``workers``: what it refuses, and how it starts processes and ends with them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from training import cli

FINETUNE = ("--", "finetune", "--text", "no-such-file.txt", "--output", "out")

REFUSED = {
    "no command": (["--local", "2"], "COMMAND"),
    "another command": (["--local", "2", "--", "generate", "out"], "expected finetune"),
    "neither hosts nor local": ([*FINETUNE], "--hosts and --index"),
    "hosts without an index": (["--hosts", "a:1,b:2", *FINETUNE], "--hosts and --index"),
    "both": (["--local", "2", "--index", "0", *FINETUNE], "leave --hosts and --index out"),
    "an index that is too large": (["--hosts", "a:1,b:2", "--index", "2", *FINETUNE], "expected 0 to 1"),
    "a host without a port": (["--hosts", "a,b:2", "--index", "0", *FINETUNE], "expected HOST:PORT"),
    "a host twice": (["--hosts", "a:1,a:1", "--index", "0", *FINETUNE], "there twice"),
    "no workers": (["--local", "0", *FINETUNE], "expected 1 or more"),
    "no time": (["--local", "2", "--wait", "0", *FINETUNE], "expected seconds above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_started_is_one_line(name, capsys):
    words, message = REFUSED[name]
    try:
        code = cli.main(["workers", *words])
    except SystemExit as error:
        code = error.code
    lines = capsys.readouterr().err.strip().split("\n")
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]


def test_an_error_of_the_chief_is_printed_once_and_ends_all(capfd, tmp_path):
    words = [
        "--",
        "finetune",
        "--model",
        str(tmp_path / "none"),
        "--text",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["workers", "--local", "2", *words])
    lines = capfd.readouterr().err.strip().split("\n")
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


def test_with_an_index_the_process_becomes_that_worker(tmp_path):
    """It is replaced: signals reach the training itself, and its exit code is the command's."""
    run = "import sys; from training.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["workers", "--hosts", "127.0.0.1:1,no-such-host.invalid:2", "--index", "1", "--", "finetune", "--help"]
    done = subprocess.run([sys.executable, "-c", run, *words], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m training finetune")
