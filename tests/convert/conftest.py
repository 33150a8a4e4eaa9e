"""What the tests of ``verify`` share; what needs TensorFlow or PyTorch is imported when it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tf_model.precision import DTYPES


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same model in p shards, by p."""
    from tests.helpers.checkpoints import write_megatron
    from tests.helpers.verified import STATE

    folder = tmp_path_factory.mktemp("checkpoints")
    for p in (1, 2, 3, 4):
        write_megatron(folder / f"p{p}", STATE, p, legacy=p == 3, key="model" if p == 4 else "module", extras=False)
    return {p: folder / f"p{p}" for p in (1, 2, 3, 4)}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, roots: dict[int, Path]) -> dict[str, Path]:
    """A right conversion of the two shards, by dtype."""
    from tests.helpers.verified import convert

    folder = tmp_path_factory.mktemp("models")
    return {dtype: convert(roots[2], folder / dtype, dtype) for dtype in DTYPES}
