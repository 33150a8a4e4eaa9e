"""One exported model for all tests of signatures."""

from __future__ import annotations

import pytest

from tests.exports.loaded import Loaded


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(tmp_path_factory.mktemp("signatures"))
