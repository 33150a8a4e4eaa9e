"""A SavedModel with one signature of another computes the same, and holds nothing of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from exports.prune import prune
from tests.helpers.loaded import Loaded


@pytest.mark.parametrize("name", ["logits", "score"])
def test_one_signature(name: str, loaded: Loaded, tmp_path: Path) -> None:
    prune(loaded.folder, tmp_path, name)
    model = tf.saved_model.load(str(tmp_path))
    assert list(model.signatures) == [name]
    inputs = {"input_ids": tf.constant([[1, 2, 3]], tf.int64)}
    if name == "score":
        inputs["input_lengths"] = tf.constant([3], tf.int64)
    (found,), (expected,) = (m.signatures[name](**inputs).values() for m in (model, loaded.model))
    np.testing.assert_array_equal(found, expected)
    before, after = (
        len(saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
            .graph_def.library.function)
        for folder in (loaded.folder, tmp_path)
    )  # fmt: skip
    assert after < before / 3
    assert not hasattr(model, "generate")


def test_no_such_signature(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"signature|unpack"):
        prune(loaded.folder, tmp_path, "nothing")
