"""The example of ``docs/adding-a-format.md`` works: its file, its row and its tests are run as they stand there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convert.cli import writer_commands
from convert.conversion import to_checkpoint
from convert.formats import rows
from convert.formats.rows import FormatRow, WriterCommand
from support.errors import ConvertError
from tests.helpers.in_memory import InMemory
from tf_model.config import GPT2Config

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "adding-a-format.md").read_text("utf-8")
FILE, ROW, TESTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def their_tests() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(TESTS, "docs/adding-a-format.md", "exec"), names)
    return names


THEIRS = their_tests()
state = THEIRS["state"]
CONFIG: GPT2Config = THEIRS["CONFIG"]
CASES = [
    (name, case)
    for name, test in THEIRS.items()
    if name.startswith("test_")
    for case in (THEIRS["BROKEN"] if "case" in inspect.signature(test).parameters else (None,))
]


@pytest.fixture
def npy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FormatRow:
    """The format of the page, as if its file and its row were in the repository."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "npy_folder.py").write_text(FILE, "utf-8")
    monkeypatch.syspath_prepend(str(folder))
    row: FormatRow = eval(
        ROW.replace("convert.formats.npy_folder", "npy_folder"),
        {"FormatRow": FormatRow, "WriterCommand": WriterCommand},
    )
    monkeypatch.delitem(sys.modules, "npy_folder", raising=False)
    monkeypatch.setattr(rows, "ROWS", (*rows.ROWS, row))
    return row


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_tests_of_the_page_pass(
    name: str, case: str | None, npy: FormatRow, tmp_path: Path, state: dict[str, np.ndarray[Any, Any]]
) -> None:
    test: Callable[..., None] = THEIRS[name]
    test(tmp_path, state, *([] if case is None else [case]))


@pytest.mark.parametrize(
    "maths",
    [
        {"layer_norm_epsilon": 1e-3},
        {"scale_attn_by_inverse_layer_idx": True},
        {"tie_word_embeddings": False},
        {"activation_function": "gelu"},
    ],
)
def test_the_format_of_the_page_loses_nothing_of_the_maths(
    maths: dict[str, Any], npy: FormatRow, tmp_path: Path
) -> None:
    model = InMemory(dataclasses.replace(CONFIG, **maths))
    with pytest.raises(ConvertError, match=next(iter(maths))):
        to_checkpoint(model, tmp_path / "new", format="npy")
    assert not (tmp_path / "new").exists()


def test_the_command_of_the_page_follows_from_the_row(npy: FormatRow) -> None:
    (command,) = [command for command in writer_commands() if command.name == "to-npy"]
    assert command.help == npy.commands[0].help
    assert command.arguments == {"format": "npy", "layouts": ()}


def test_the_file_of_the_page_says_what_each_part_is(npy: FormatRow) -> None:
    module: ModuleType = importlib.import_module("npy_folder")
    assert module.FORMAT.name == npy.name
    assert npy.load() is module.FORMAT


def test_the_page_names_files_that_are_there() -> None:
    named = set(re.findall(r"\b(?:tests|convert|tf_model)/[\w/]+\.py", PAGE))
    missing = {name for name in named if not (DOCS.parent / name).is_file()}
    assert missing == {"convert/formats/npy_folder.py", "tests/convert/formats/test_npy_folder.py"}


def test_the_table_of_formats_is_that_of_the_rows() -> None:
    page = (DOCS / "formats.md").read_text("utf-8")
    table = re.findall(r"^\| `.*", page.split("## What each can hold")[0], re.MULTILINE)
    lines = [row.table_line() for row in rows.ROWS]
    assert table == lines, "copy FormatRow.table_line() into docs/formats.md"
