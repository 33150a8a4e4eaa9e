"""A model with a tokenizer of each kind, made once for all tests."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

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
