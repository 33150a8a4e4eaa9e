"""What editors, ``help()`` and type checkers see of the options, against the table that they come from."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

import inference
from exports.generation_config import ALL_OPTIONS, NAMES
from inference.options import OTHER_OPTIONS, GenerationOptions, option_help
from inference.presets import PRESETS, WINDOWS
from inference.text_generator import TextGenerator
from tests.conftest import ROOT

TYPES: dict[str, str] = {name: value.__forward_arg__ for name, value in GenerationOptions.__annotations__.items()}
METHODS = (TextGenerator.generate, TextGenerator.stream, TextGenerator.resolve)


def test_the_typed_options_are_those_of_the_table() -> None:
    assert set(TYPES) == {*NAMES, "preset", "window"}
    assert set(TYPES) == {*ALL_OPTIONS, *OTHER_OPTIONS}
    assert TYPES.keys() - ALL_OPTIONS.keys() == OTHER_OPTIONS.keys()


@pytest.mark.parametrize("name", ALL_OPTIONS)
def test_an_option_has_the_type_of_its_default(name: str) -> None:
    option = ALL_OPTIONS[name]
    expected = "int | Sequence[int]" if option.is_list else "float" if option.is_real else "int"
    others = {"seed": "int | Sequence[int]", "early_stopping": "int | bool | Literal['never']"}
    assert TYPES[name].replace('"', "'") == f"{others.get(name, expected)} | None"


@pytest.mark.parametrize("method", METHODS)
def test_help_shows_every_option_with_its_default_and_one_line(method: Any) -> None:
    parameters = inspect.signature(method).parameters
    for name in TYPES:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        line = next(line for line in method.__doc__.splitlines() if line.strip().startswith((f"{name} (", f"{name}:")))
        assert option_help(name) in line
        if name in ALL_OPTIONS:
            assert parameters[name].default == ALL_OPTIONS[name].default
            assert f"(default: {ALL_OPTIONS[name].default})" in line
    assert "options" not in parameters


def test_presets_and_windows_have_the_names_of_their_types() -> None:
    assert set(PRESETS) == {"lyric", "novel"}
    assert WINDOWS == ("line", "tokens")


def test_everything_can_be_imported_from_the_package() -> None:
    for name in inference.__all__:
        assert getattr(inference, name) is not None
    assert issubclass(inference.ModelError, inference.UserError)
    assert issubclass(inference.OptionError, inference.UserError)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = inference.nonsense


def test_importing_the_package_imports_no_tensorflow() -> None:
    code = (
        "import sys, inference; inference.GenerationOptions, inference.PRESETS, inference.TextGenerator\n"
        "print({'tensorflow', 'torch', 'keras', 'jieba'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
