"""A -> B -> A for every two formats: every tensor and every choice of the configuration comes back, bit for bit.

That each format is read and written as its own ecosystem has it, the tests of the formats say.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from convert.formats.registry import open_checkpoint
from convert.formats.rows import NAMES
from convert.formats.uer_layer_norm import with_layer_norm
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.light import run
from tf_model.config import STANDARD, GPT2Config

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=2, n_head=6)
"""What every format can hold: gelu's tanh form, epsilon 1e-5, a tied output matrix, 4 h wide."""

COMMANDS = {
    "savedmodel": ["to-tf"],
    "huggingface": ["to-huggingface"],
    "openai-tf1": ["to-openai"],
    "uer": ["to-uer"],
    "megatron-lm": ["to-megatron", "--layout", "megatron-lm", "--tensor-parallel", "3"],
    "megatron": ["to-megatron", "--tensor-parallel", "2"],
}
QUICK = {("megatron", "savedmodel"), ("savedmodel", "huggingface")}
HALVES = ("huggingface", "uer", "megatron-lm", "megatron")
"""Formats that hold all tensors in float16: layer norms of a SavedModel and everything of OpenAI's are float32."""


def convert(source: Path, target: str, folder: Path, *options: str) -> Path:
    """``source`` in the format ``target``. UER-py's layer norms are copied: converted ones change by a rounding."""
    heads = ["--heads", "6"] if open_checkpoint(source, allow_unknown_heads=True).info.format == "megatron" else []
    output = folder / target
    run(COMMANDS[target][0], "--checkpoint", source, "--output", output, *COMMANDS[target][1:], *heads, *options,
        "--uer-layer-norm", "standard")  # fmt: skip
    return output


def assert_same(found: Path, expected: Path) -> None:
    ours, theirs = (
        with_layer_norm(open_checkpoint(path, allow_unknown_heads=True), STANDARD, copy=True)
        for path in (found, expected)
    )
    assert (ours.info.format, ours.config) == (theirs.info.format, theirs.config)
    assert ours.dtypes == theirs.dtypes
    for name, dtype in theirs.dtypes.items():
        assert ours.read(name, dtype).tobytes() == theirs.read(name, dtype).tobytes(), name


@pytest.fixture(scope="module", params=[torch.float32, torch.float16], ids=["float32", "float16"])
def originals(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in every format that holds them."""
    folder = tmp_path_factory.mktemp("originals")
    state = random_state(CONFIG, np.random.default_rng(11))
    write_megatron(folder / "source", state, 3, dtype=request.param, extras=False)
    formats = COMMANDS if request.param == torch.float32 else HALVES
    return {name: convert(folder / "source", name, folder) for name in formats}


def test_every_format_is_here() -> None:
    assert set(COMMANDS) == set(NAMES)


PAIRS = [
    # Seconds for every graph that is made: two of these pairs are enough for `make test`, the others are slow.
    pytest.param(
        name, through, marks=[pytest.mark.slow] if "savedmodel" in (name, through) and pair not in QUICK else []
    )
    for name in COMMANDS
    for through in COMMANDS
    for pair in [(name, through)]
]


@pytest.mark.parametrize(("name", "through"), PAIRS)
def test_there_and_back(name: str, through: str, originals: dict[str, Path], tmp_path: Path) -> None:
    if name not in originals or through not in originals:
        pytest.skip("does not hold everything in float16")
    between = convert(originals[name], through, tmp_path / "between")
    assert open_checkpoint(between, allow_unknown_heads=True).info.format == through
    assert_same(convert(between, name, tmp_path / "back"), originals[name])


@pytest.mark.parametrize("through", [pytest.param("savedmodel", marks=pytest.mark.slow), "openai-tf1"])
@pytest.mark.parametrize("name", HALVES)
def test_float16_through_float32(name: str, through: str, tmp_path: Path) -> None:
    """Widened on the way, and the same again when float16 is asked for."""
    state = random_state(CONFIG, np.random.default_rng(12))
    write_megatron(tmp_path / "source", state, 3, dtype=torch.float16, extras=False)
    original = convert(tmp_path / "source", name, tmp_path)
    between = convert(original, through, tmp_path / "between")
    assert_same(convert(between, name, tmp_path / "back", "--dtype", "float16"), original)
