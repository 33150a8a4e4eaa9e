"""SavedModels have the same weights, byte for byte, and the same signatures as those that were written before.

``recorded_savedmodels.json`` was made by ``python -m tests.exports.test_nothing_lost`` on commit b2082b1 with
TensorFlow 2.21.0. A change that is meant (a signature more, another state) is recorded again, and its commit says so.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.types_pb2 import DataType
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from exports.saved_model import write_saved_model
from tests.conftest import ROOT
from tf_model.config import GPT2Config
from tokenization.special_tokens import SpecialTokens

RECORDED = Path(__file__).with_name("recorded_savedmodels.json")
CONFIGS = {
    "int8-avx2": GPT2Config(vocab_size=96, n_positions=40, n_embd=48, n_layer=3, n_head=12),
    "bfloat16": GPT2Config(
        vocab_size=70, n_positions=24, n_embd=32, n_layer=2, n_head=4, n_inner=80, activation_function="gelu",
        layer_norm_epsilon=1e-6, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True,
    ),
}  # fmt: skip
"""Of the random models, by dtype."""


def random_values(name: str, config: GPT2Config, dtype: Any) -> np.ndarray[Any, Any]:
    """Numbers that depend on the tensor's name alone, whatever NumPy's version."""
    shape = config.tensor_shapes()[name]
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    steps = np.arange(int(np.prod(shape)), dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)
    return (((steps % np.uint64(2003)).astype(np.float32) - 1001) / 1024).astype(dtype).reshape(shape)


def write_random(folder: Path, dtype: str) -> None:
    config = CONFIGS[dtype]
    write_saved_model(
        folder, config, dtype, SpecialTokens(7, 5), lambda name, wanted: random_values(name, config, wanted)
    )


def describe(folder: Path) -> dict[str, Any]:
    """The hashes of ``variables/``, and the inputs and outputs of every signature."""
    graph = SavedModel()
    graph.ParseFromString((folder / "saved_model.pb").read_bytes())
    return {
        "variables": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("variables/*"))
        },
        "signatures": {
            name: {"inputs": specs(signature.inputs), "outputs": specs(signature.outputs)}
            for name, signature in sorted(graph.meta_graphs[0].signature_def.items())
        },
    }


def specs(tensors: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{DataType.Name(tensor.dtype)} {tf.TensorShape(tensor.tensor_shape)}"
        for name, tensor in sorted(tensors.items())
    }


def recorded() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(RECORDED.read_text("utf-8"))
    if values["tensorflow"] != tf.__version__:
        pytest.skip(f"recorded with TensorFlow {values['tensorflow']}, which lays out its objects in its own way")
    return values


@pytest.mark.parametrize("dtype", CONFIGS)
def test_a_random_model_is_written_as_before(dtype: str, tmp_path: Path) -> None:
    write_random(tmp_path, dtype)
    assert describe(tmp_path) == recorded()[dtype]


def test_the_demo_is_written_as_before(song_ci: Path) -> None:
    assert describe(song_ci) == recorded()["demo"]


def record() -> None:
    """Writes ``recorded_savedmodels.json`` anew."""
    from convert.__main__ import main

    found: dict[str, Any] = {"tensorflow": tf.__version__}
    demo = ROOT / "demo" / "song-ci"
    with tempfile.TemporaryDirectory() as temporary:
        for dtype in CONFIGS:
            (folder := Path(temporary, dtype)).mkdir()
            write_random(folder, dtype)
            found[dtype] = describe(folder)
        arguments = ["--checkpoint", str(demo), "--tokenizer", str(demo / "tokenizer"), "--heads", "4"]
        main(["pytorch-to-tf", *arguments, "--output", f"{temporary}/demo", "--quiet"])
        found["demo"] = describe(Path(temporary, "demo"))
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record()
