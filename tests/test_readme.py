"""The README's commands and Python, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = list(
    dict.fromkeys(line for block in re.findall(r"```\n(.*?)```", README, re.DOTALL) for line in block.splitlines())
)
INLINE = re.findall(r"`(\.venv/bin/python [^`]+)`", README)


def run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    noise = [line for line in result.stderr.splitlines() if not re.match("(convert|source|converted): .* left$", line)]
    assert not noise
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place to run in, with the demo checkpoint where the README expects it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "demo").symlink_to(ROOT / "demo")
    return folder


def test_commands_then_python(folder: Path) -> None:
    commands = [shlex.split(line) for line in COMMANDS if line.startswith(".venv/bin/python")]
    words = {
        "pytorch-to-tf": "parameters as",
        "reshard": "in 4 files",
        "to-huggingface": "parameters as",
        "to-tf": "parameters as",
        "inspect": "3,389,152",
        "verify": "the same logits",
        "check": "as it was",
        "generate": "浣溪沙",
    }
    assert {arguments[3] for arguments in commands} == set(words)
    for _, *arguments in commands:
        assert words[arguments[2]] in run([sys.executable, *arguments], folder) or "菩萨蛮" in arguments
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    outputs = []
    for block in (
        blocks[0],
        blocks[1],
        blocks[1] + blocks[2] + "print(result['lengths'].numpy().tolist(), logits.shape)",
    ):
        (folder / "sample.py").write_text("import warnings; warnings.simplefilter('ignore')\n" + block, "utf-8")
        result = subprocess.run(
            [sys.executable, "sample.py"], cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    texts, sampled, served = outputs
    assert served.splitlines()[-1] == "[15, 21] (2, 6000)"
    assert texts.count("浣溪沙\n") == 2
    assert texts.rstrip().endswith("如梦令")
    assert len(list(filter(None, blocks[1].splitlines()))) == 6
    assert sampled.startswith("浣溪沙\n")
    assert len(sampled) > 40


@pytest.mark.parametrize("command", INLINE)
def test_inline_commands(command: str, folder: Path) -> None:
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/python"
    assert run([sys.executable, *arguments], folder).count("西江月\n") == 3


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_option_in_the_readme_exists() -> None:
    import convert.cli
    import exports.cli

    programs = (convert.cli.parser(), exports.cli.parser())
    known = " ".join(
        command.format_help()
        for program in programs
        for command in program._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr,attr-defined]
    )
    for option in set(re.findall(r"--[a-z]+(?:-[a-z]+)*", README)) - {"--tune", "--number", "--help"}:
        assert option in known
