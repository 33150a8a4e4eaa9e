"""A model with a tokenizer of each kind, made once for all tests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from inference import TextGenerator
from inference.cli import main
from tests.conftest import once
from tests.helpers.text_models import KINDS, TextModel, load, write


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TextModel]:
    """Makes the model of a kind, once."""
    made: dict[str, TextModel] = {}

    def get(kind: str) -> TextModel:
        if kind not in made:
            made[kind] = load(kind, once(tmp_path_factory, kind, functools.partial(write, kind)))
        return made[kind]

    return get


@pytest.fixture(scope="session", params=KINDS)
def each(request: pytest.FixtureRequest, text_model: Callable[[str], TextModel]) -> TextModel:
    """Every kind in turn."""
    return text_model(request.param)


@pytest.fixture(scope="session")
def cpm(text_model: Callable[[str], TextModel]) -> TextModel:
    return text_model("cpm")


@pytest.fixture(scope="session")
def bert(text_model: Callable[[str], TextModel]) -> TextModel:
    return text_model("bert")


@pytest.fixture(scope="session")
def bpe(text_model: Callable[[str], TextModel]) -> TextModel:
    return text_model("bpe")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def generator(song_ci: Path) -> TextGenerator:
    """The demo's model."""
    return TextGenerator.load(song_ci)


@pytest.fixture
def run(
    song_ci: Path, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command in this process, with the demo's model, loaded already -> exit code, stdout, stderr."""
    monkeypatch.setattr(TextGenerator, "load", lambda folder, **_: generator)

    def call(command: str, *arguments: object) -> tuple[int, str, str]:
        try:
            code = main([command, str(song_ci), *map(str, arguments)])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, *capsys.readouterr()

    return call
