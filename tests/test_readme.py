"""The commands and the Python of the README and of the pages for users, run as they stand."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.helpers.light import logits_alone

PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in ("README.md", "docs/converting.md", "docs/generating.md", "docs/savedmodel.md")
}
README = PAGES["README.md"]
COMMANDS = list(
    dict.fromkeys(
        line
        for page in PAGES.values()
        for block in re.findall(r"```\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    )
)
INLINE = [command for page in PAGES.values() for command in re.findall(r"`(\.venv/bin/python [^`]+)`", page)]


def python(page: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    assert isinstance(block, str)
    return block


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


def run_here(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capture: Any) -> str:
    """``python -m`` in this process: TensorFlow takes seconds to start."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert arguments[0] == "-m"
    monkeypatch.setattr("sys.argv", arguments[1:])
    assert importlib.import_module(f"{arguments[1]}.__main__").main() == 0
    out, err = capture.readouterr()
    assert err == ""
    assert isinstance(out, str)
    return out


def test_commands_then_python(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    for number, (_, *arguments) in enumerate(commands):
        with logits_alone() if arguments[2] == "to-tf" else contextlib.nullcontext():  # nobody generates with it
            whole = [sys.executable, *arguments]
            out = run_here(arguments, folder, monkeypatch, capsys) if number else run(whole, folder)
        assert words[arguments[2]] in out or "菩萨蛮" in arguments
    outputs = []
    for block in (
        python("docs/generating.md"),
        python("docs/savedmodel.md") + "print(result['lengths'].numpy().tolist(), logits.shape)",
    ):
        (folder / "sample.py").write_text(block, "utf-8")
        runpy.run_path(str(folder / "sample.py"))
        outputs.append(capsys.readouterr().out)
    texts, served = outputs
    (folder / "sample.py").write_text(
        "import warnings; warnings.simplefilter('ignore')\n" + python("README.md"), "utf-8"
    )
    result = subprocess.run(  # in a process that has nothing of this project but what the six lines import
        [sys.executable, "sample.py"], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    sampled = result.stdout
    assert served.splitlines()[-1] == "[15, 21] (2, 6000)"
    assert texts.count("浣溪沙\n") == 2
    assert texts.rstrip().endswith("如梦令")
    assert sampled.startswith("浣溪沙\n")
    assert len(sampled) > 40


def test_the_readme_is_one_page_and_samples_in_six_lines() -> None:
    assert len(README.splitlines()) <= 75
    assert len(list(filter(None, python("README.md").splitlines()))) == 6


def test_links_lead_somewhere() -> None:
    """To files that are there, and to headings as GitHub names them."""
    for name in (*PAGES, "docs/formats.md", "docs/architecture.md", "CONTRIBUTING.md"):
        prose = re.sub(r"```.*?```", "", (ROOT / name).read_text("utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)]+)\)", prose):
            path, _, anchor = link.partition("#")
            if "://" in path:
                continue
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), (name, link)
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}, link


@pytest.mark.parametrize("command", INLINE)
def test_inline_commands(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/python"
    assert run_here(arguments, folder, monkeypatch, capsys).count("西江月\n") == 3


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_option_named_exists() -> None:
    import convert.cli
    import inference.cli

    programs = (convert.cli.PROGRAM, inference.cli.PROGRAM)
    known = " ".join(program.command_parser(name).format_help() for program in programs for name in program.commands)
    for option in set(re.findall(r"--[a-z]+(?:-[a-z]+)*", "".join(PAGES.values()))) - {"--tune", "--number", "--help"}:
        assert option in known
