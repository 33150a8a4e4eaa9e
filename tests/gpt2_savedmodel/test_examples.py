"""The examples in the help of every command run when they are pasted in a clone."""

from __future__ import annotations

import importlib
import io
import shlex
from pathlib import Path

import pytest

from gpt2_savedmodel.cli import PROGRAM, main
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, song_ci: Path) -> Path:
    """A folder with what the examples find in a clone, and with the SavedModel that the first of them makes."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("demo", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "out").mkdir()
    (folder / "out" / "song-ci").symlink_to(song_ci)
    return folder


def examples() -> dict[str, str]:
    """Each command's examples; those of other names of the same command are left out."""
    found: dict[object, tuple[str, str]] = {}
    for name, command in PROGRAM.commands.items():
        for line in command.examples or importlib.import_module(command.module).EXAMPLES:
            key = (command.module, *command.arguments.items(), line)
            found.setdefault(key, (f"{name} {len(found)}", line.replace("{command}", f"{{program}} {name}")))
    return dict(found.values())


EXAMPLES = examples()
IN_PROCESSES_OF_ITS_OWN = "workers"
"""A command that starts processes, or becomes another one; tests/training/test_workers_command.py runs it."""


def test_the_examples_of_the_list_of_commands_are_examples_of_commands() -> None:
    assert set(PROGRAM.examples) <= set(EXAMPLES.values())


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "example", [pytest.param(line, id=name) for name, line in EXAMPLES.items() if IN_PROCESSES_OF_ITS_OWN not in name]
)
def test_an_example_runs_when_it_is_pasted(
    example: str, clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    program, *words = shlex.split(example)
    assert program == "{program}"
    if "--output" in words:  # in a folder of its own: commands with several names have the same example
        place = words.index("--output") + 1
        assert words[place].startswith("out/")
        words[place] = str(tmp_path / words[place])
        (tmp_path / "out").mkdir()
    monkeypatch.chdir(clone)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(words) == 0, capsys.readouterr().err
    assert "error:" not in capsys.readouterr().err


@pytest.mark.parametrize("example", [line for name, line in EXAMPLES.items() if IN_PROCESSES_OF_ITS_OWN in name])
def test_an_example_that_starts_processes_is_a_command_for_each_of_them(example: str) -> None:
    _, name, *words = shlex.split(example)
    args = PROGRAM.command_parser(name).parse_args(words)
    inner, *options = args.words
    assert PROGRAM.command_parser(inner).parse_args(options).output
