"""The model that the tests of the signatures share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import once

if TYPE_CHECKING:  # it imports TensorFlow, which the fast tests of this folder do without
    from tests.helpers.loaded import Loaded


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    from tests.helpers.loaded import Loaded, write_usual

    return Loaded(once(tmp_path_factory, "signatures", write_usual))
