"""The model that the tests of the signatures share."""

from __future__ import annotations

import pytest

from tests.conftest import once
from tests.helpers.loaded import Loaded, write_usual


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(once(tmp_path_factory, "signatures", write_usual))
