"""A -> B -> A for every two formats: every tensor and every choice of the configuration comes back, bit for bit.

That each format is read and written as its own ecosystem has it, the tests of the formats say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.conversion import to_checkpoint
from convert.formats.registry import open_checkpoint
from convert.formats.rows import ROWS
from convert.formats.uer_layer_norm import with_layer_norm
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.light import run
from tf_model.config import STANDARD, GPT2Config

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=2, n_head=6)
"""What every format can hold: gelu's tanh form, epsilon 1e-5, a tied output matrix, 4 h wide."""

OPTIONS: dict[str, dict[str, Any]] = {
    "savedmodel": {},
    "huggingface": {},
    "openai-tf1": {},
    "uer": {"uer_layer_norm": STANDARD},  # layer norms that are not copied change by a rounding
    "megatron-lm": {"tensor_parallel": 3},
    "megatron": {"tensor_parallel": 2},
}
QUICK = {("megatron", "savedmodel"), ("savedmodel", "huggingface")}
HALVES = ("huggingface", "uer", "megatron-lm", "megatron")
"""Formats that hold all tensors in float16: layer norms of a SavedModel and everything of OpenAI's are float32."""


def convert(source: Path, target: str, folder: Path, dtype: str | None = None) -> Path:
    """Write ``source`` in the format ``target``; the layer norms of UER-py are copied."""
    output = folder / target
    checkpoint = open_checkpoint(source, uer_layer_norm=STANDARD, allow_unknown_heads=True)
    heads = CONFIG.n_head if checkpoint.info.format == "megatron" else None
    if target == "savedmodel":
        given = [] if heads is None else ["--heads", str(heads)]
        types = [] if dtype is None else ["--dtype", dtype]
        run("to-tf", "--checkpoint", source, "--output", output, "--uer-layer-norm", STANDARD, *given, *types)
    else:
        checkpoint = open_checkpoint(source, heads=heads, uer_layer_norm=STANDARD)
        to_checkpoint(checkpoint, output, format=target, dtype=dtype, options=OPTIONS[target])
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
    formats = OPTIONS if request.param == torch.float32 else HALVES
    return {name: convert(folder / "source", name, folder) for name in formats}


def test_every_format_has_a_row_in_this_test() -> None:
    what_to_do = "add the format to OPTIONS above, and to HALVES if it holds float16"
    assert set(OPTIONS) == {row.name for row in ROWS if row.commands or row.also_written_by}, what_to_do


PAIRS = [
    # Seconds for every graph that is made: two of these pairs are enough for `make test`, the others are slow.
    pytest.param(
        name, through, marks=[pytest.mark.slow] if "savedmodel" in (name, through) and pair not in QUICK else []
    )
    for name in OPTIONS
    for through in OPTIONS
    for pair in [(name, through)]
]


@pytest.mark.parametrize(("name", "through"), PAIRS)
def test_every_weight_comes_back_bit_for_bit_through_every_format(
    name: str, through: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    if name not in originals or through not in originals:
        pytest.skip("does not hold everything in float16")
    between = convert(originals[name], through, tmp_path / "between")
    assert open_checkpoint(between, allow_unknown_heads=True).info.format == through
    assert_same(convert(between, name, tmp_path / "back"), originals[name])


@pytest.mark.parametrize("through", [pytest.param("savedmodel", marks=pytest.mark.slow), "openai-tf1"])
@pytest.mark.parametrize("name", HALVES)
def test_float16_comes_back_bit_for_bit_through_float32(name: str, through: str, tmp_path: Path) -> None:
    """Widened on the way, and the same again when float16 is asked for."""
    state = random_state(CONFIG, np.random.default_rng(12))
    write_megatron(tmp_path / "source", state, 3, dtype=torch.float16, extras=False)
    original = convert(tmp_path / "source", name, tmp_path)
    between = convert(original, through, tmp_path / "between")
    assert_same(convert(between, name, tmp_path / "back", "float16"), original)
