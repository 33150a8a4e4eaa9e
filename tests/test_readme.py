"""The commands and the Python of the README and of the pages for users, run as they stand."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

READMES = ("README.md", "README.zh-CN.md")
GUIDES = ("docs/converting.md", "docs/generating.md", "docs/savedmodel.md", "docs/finetuning.md")
TWINS = (READMES, ("docs/finetuning.md", "docs/finetuning.zh-CN.md"))
"""Pages in English, and the same in Chinese."""
PAGES = {name: (ROOT / name).read_text("utf-8") for name in (*READMES, *GUIDES, "docs/finetuning.zh-CN.md")}


def blocks(page: str, language: str = "") -> list[str]:
    """The fenced blocks of a page that are marked with a language, or with none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [text for mark, text in fenced if mark == language]


COMMANDS = list(dict.fromkeys(line for page in PAGES.values() for block in blocks(page) for line in block.splitlines()))
SLOW_GUIDE = "docs/finetuning.md"
"""Its commands train models."""
PROGRAMS = {".venv/bin/python -m convert": "convert", ".venv/bin/python -m inference": "inference"} | {
    ".venv/bin/gpt2-savedmodel": "gpt2_savedmodel"
}
"""How a page starts a command, and the package whose ``main`` that is."""


def python_blocks(page: str) -> list[str]:
    return blocks(PAGES[page], "python")


SHOW_A_TRAINING = {"finetune", "workers"}
"""Commands that print losses and samples to stderr."""


def parsed(line: str) -> tuple[str, list[str]]:
    """The package and the words of a command as it stands in a page."""
    (start,) = (start for start in PROGRAMS if line.startswith(f"{start} "))
    return PROGRAMS[start], shlex.split(line.removeprefix(start))


def run_here(package: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command in this process, as TensorFlow takes seconds to start; nothing but notes may go to stderr."""
    assert importlib.import_module(f"{package}.__main__").main(words) == 0
    out, err = capsys.readouterr()
    if words[0] not in SHOW_A_TRAINING:
        assert [line for line in err.splitlines() if not line.startswith("note: ") and not _is_progress(line)] == []
    return str(out)


def _is_progress(line: str) -> bool:
    return re.match("(convert|source|converted|compare|score|encode|train|write): .* left", line) is not None


@pytest.fixture
def folder(tmp_path: Path, song_ci: Path) -> Path:
    """A place to run in, with the demo's checkpoint and what ``make demo`` leaves where the pages expect them."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "demo").symlink_to(ROOT / "demo")
    shutil.copytree(song_ci, folder / "out" / "song-ci")
    return folder


WORDS = {
    "pytorch-to-tf": "parameters as",
    "reshard": "in 4 files",
    "to-huggingface": "parameters as",
    "to-tf": "parameters as",
    "inspect": "3,389,152",
    "verify": "the same logits",
    "check": "as it was",
    "generate": "。",
    "score": "perplexity",
    "finetune": "perplexity of held-out texts",
    "inspect-text": "documents",
    "augment": "texts",
    "workers": "",
}
"""What each command that a page shows prints."""


@pytest.mark.parametrize(
    "pages",
    [
        pytest.param(tuple(name for name in (*READMES, *GUIDES) if name != SLOW_GUIDE), id="pages"),
        pytest.param((SLOW_GUIDE,), id="finetuning", marks=pytest.mark.slow),
    ],
)
def test_every_command_then_every_block_of_python_runs(
    pages: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    lines = dict.fromkeys(line for name in pages for block in blocks(PAGES[name]) for line in block.splitlines())
    commands = [parsed(line) for line in lines if line.startswith(".venv/bin/") and "--help" not in line]
    assert {words[0] for _, words in commands} <= set(WORDS)
    for package, words in commands:
        assert WORDS[words[0]] in run_here(package, words, capsys)
    for page in pages:
        for block in python_blocks(page):
            (folder / "sample.py").write_text(block, "utf-8")
            runpy.run_path(str(folder / "sample.py"))
            assert "浣溪沙" in capsys.readouterr().out or page == "docs/savedmodel.md"


def test_the_readmes_first_block_needs_the_tokenizer_only(song_ci: Path, tmp_path: Path) -> None:
    """In a process that has nothing of this project but the folder ``tokenization``."""
    (tmp_path / "tokenization").symlink_to(ROOT / "tokenization")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "my-model").symlink_to(song_ci)
    block = "import warnings; warnings.simplefilter('ignore')\n" + python_blocks("README.md")[0]
    (tmp_path / "sample.py").write_text(block, "utf-8")
    result = subprocess.run(
        [sys.executable, "-P", "sample.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("浣溪沙\n")
    assert len(result.stdout) > 40


def test_the_readmes_are_one_page_each_with_the_same_commands_and_code() -> None:
    english, chinese = (PAGES[name] for name in READMES)
    assert english.splitlines()[0] == "English | [简体中文](README.zh-CN.md)"
    assert chinese.splitlines()[0] == "[English](README.md) | 简体中文"
    assert all(len(page.splitlines()) < 100 for page in (english, chinese))
    links = [set(re.findall(r"\]\((?!README)([^)#]+)", page)) for page in (english, chinese.replace(".zh-CN", ""))]
    assert links[0] == links[1]


@pytest.mark.parametrize(("english", "chinese"), TWINS)
def test_a_page_and_its_chinese_twin_have_the_same_sections_tables_commands_and_code(
    english: str, chinese: str
) -> None:
    first, second = PAGES[english], PAGES[chinese]
    for language in ("", "python", "json", "console"):
        assert blocks(first, language) == blocks(second, language)
    for part in ("\n## ", "\n| ", "\n- "):
        assert first.count(part) == second.count(part)


def test_links_lead_somewhere() -> None:
    """To files that are there, and to headings as GitHub names them."""
    for name in (*PAGES, "docs/formats.md", "docs/formats.zh-CN.md", "docs/architecture.md", "CONTRIBUTING.md"):
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


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_option_named_exists() -> None:
    import convert.cli
    import inference.cli
    import training.cli

    programs = (convert.cli.PROGRAM, inference.cli.PROGRAM, training.cli.PROGRAM)
    known = " ".join(program.command_parser(name).format_help() for program in programs for name in program.commands)
    for option in set(re.findall(r"--[a-z]+(?:-[a-z]+)*", "".join(PAGES.values()))) - {"--tune", "--number", "--help"}:
        assert option in known
