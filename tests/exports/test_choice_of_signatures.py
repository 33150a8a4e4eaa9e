"""A SavedModel may be written with some of the signatures; whoever needs another is told so in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from exports.assets import write_assets
from exports.loaded_model import load
from exports.saved_model import write_saved_model
from exports.saved_model_folder import ModelError, SavedModelFolder
from support.errors import UserError
from tests.exports.test_nothing_lost import CONFIGS, random_values
from tokenization.special_tokens import SpecialTokens

CONFIG = CONFIGS["int8-avx2"]


def write_some(folder: Path, signatures: tuple[str, ...]) -> None:
    folder.mkdir(exist_ok=True)
    write_saved_model(
        folder, CONFIG, "float32", SpecialTokens(7, 5), lambda name, wanted: random_values(name, CONFIG, wanted),
        signatures,
    )  # fmt: skip


def test_only_the_chosen_signatures_are_written(tmp_path: Path) -> None:
    write_some(tmp_path / "score", ("score",))
    write_some(tmp_path / "both", ("logits", "score", "logits"))
    one, both = (SavedModelFolder(tmp_path / name) for name in ("score", "both"))
    assert list(one.signatures) == ["score"]
    assert list(both.signatures) == ["logits", "score"]
    assert one.graph_file.stat().st_size < both.graph_file.stat().st_size
    ids, lengths = tf.constant([[1, 2, 3]], tf.int64), tf.constant([3], tf.int64)
    found, expected = (
        tf.saved_model.load(str(folder.path)).signatures["score"](input_ids=ids, input_lengths=lengths)["logprobs"]
        for folder in (one, both)
    )
    assert found.numpy().tolist() == expected.numpy().tolist()


@pytest.mark.parametrize(
    ("signatures", "words"),
    [(("logits", "generat"), "no signature is called 'generat': expected"), ((), "at least one")],
)
def test_unknown_signatures_are_refused_before_anything_is_written(
    tmp_path: Path, signatures: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        write_some(tmp_path, signatures)
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_model_needs_only_the_signatures_that_it_calls(tmp_path: Path) -> None:
    write_some(tmp_path / "model", ("score",))
    write_assets(tmp_path / "model" / "assets", CONFIG, "float32", SpecialTokens(7, 5), None)
    model = load(SavedModelFolder(tmp_path / "model"), 1)
    assert model.logprobs([[1, 2, 3]])[0].shape == (3,)
    with pytest.raises(ModelError, match=r"has no signature 'generate': .* convert the checkpoint again") as error:
        model.call("generate", [[1, 2, 3]])
    assert "\n" not in str(error.value)
    assert str(tmp_path / "model") in str(error.value)
