"""A run that was killed goes on to the very same weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tiny_training import FitOptions, Observers, RaiseAt, train, weights_hash


@pytest.mark.parametrize("interrupted_at", [3, 10, 17])
def test_a_run_that_was_interrupted_ends_with_the_same_weights(tmp_path: Path, interrupted_at: int) -> None:
    options = FitOptions(steps=20, evaluate_every=10, save_every=4)
    whole, _ = train(tmp_path / "whole", options)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "parts", options, observers=Observers(callbacks=[RaiseAt(interrupted_at)]))
    parts, result = train(tmp_path / "parts", options)
    assert result.resumed_at <= interrupted_at
    assert weights_hash(parts) == weights_hash(whole)
