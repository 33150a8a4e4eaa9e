"""The command ``workers``: what it refuses, and how it starts processes and ends with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.small_vocabularies import write_tokenizer
from training import cli
from training.run.log import read_log

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
    "too many workers": (["--local", "1000", *FINETUNE], "--local 1000: expected 1 or more, and 64 at most"),
    "no end of waiting": (["--local", "2", "--wait", "inf", *FINETUNE], "--wait inf: expected seconds above 0"),
    "waiting for no number": (["--local", "2", "--wait", "nan", *FINETUNE], "--wait nan: expected seconds above 0"),
    "waiting longer than sockets can": (["--local", "2", "--wait", "1e9", *FINETUNE], "and below 1e+06"),
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


@pytest.mark.slow
def test_the_command_of_the_documents_trains_goes_on_and_writes_samples_and_adapters(tmp_path):
    poems = [f"临江仙\n滚滚长江东逝水,浪花淘尽英雄。{number * '几度夕阳红。'}" for number in range(12)]
    (tmp_path / "poems.txt").write_text("\n\n".join(poems), "utf-8")
    text = ["--text", str(tmp_path / "poems.txt")]
    tokenizer = write_tokenizer("cpm", tmp_path / "tokenizer")
    sizes = ["--init", "layers=1,hidden=16,heads=2,positions=64", "--tokenizer", str(tokenizer)]
    new = ["finetune", *sizes, *text, "--steps", "0", "--output", str(tmp_path / "model"), "--sample", "0", "--quiet"]
    assert cli.main(new) == 0
    batch = ["--batch-size", "4", "--micro-batch", "1", "--steps", "60", "--evaluate-every", "20"]
    options = ["--model", str(tmp_path / "model"), *text, *batch, "--lora", "2"]
    run = "import sys; from training.cli import main; sys.exit(main(sys.argv[1:]))"
    output = tmp_path / "two"
    words = ["workers", "--local", "2", "--wait", "300", "--", "finetune", *options, "--output", str(output)]
    process = subprocess.Popen([sys.executable, "-c", run, *words], stderr=subprocess.PIPE, text=True)
    samples = tmp_path / "two.training" / "samples"
    while process.poll() is None and not (samples / "step-20.txt").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, process.communicate()[1]
    done = subprocess.run([sys.executable, "-c", run, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("note: goes on from step ") == 1
    assert f"{output}: 60 steps, " in done.stdout
    assert {path.name for path in samples.iterdir()} >= {"step-0.txt", "step-20.txt", "step-40.txt", "step-60.txt"}
    assert (tmp_path / "two.training" / "adapter" / "adapter_config.json").exists()
    assert len(read_log(tmp_path / "two.training" / "log.csv")) == 61
