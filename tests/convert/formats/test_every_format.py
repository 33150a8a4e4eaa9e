"""What holds for every row of the table of formats, and for whoever adds one."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.checkpoint import CheckpointInfo
from convert.cli import PROGRAM, writer_commands
from convert.commands.options import add_write_option
from convert.conversion import find_writer, to_checkpoint
from convert.formats.format import OWN_OPTIONS, WriteOption, Writer
from convert.formats.limits import GPT2
from convert.formats.registry import open_checkpoint
from convert.formats.rows import NAMES, ROWS, FormatRow
from convert.formats.tensor_map import TensorMapCheckpoint, TensorRecipe, concat_transposed
from support.errors import CheckpointError, ConvertError
from tests.helpers.in_memory import InMemory, required_options
from tf_model.config import STANDARD, UER, GPT2Config

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=2, n_head=4)
WRITTEN = [row.name for row in ROWS if row.load().writer is not None]

MODELS: dict[str, dict[str, Any]] = {
    "GPT-2": {},
    "epsilon 1e-6": {"layer_norm_epsilon": 1e-6},
    "epsilon 1e-3": {"layer_norm_epsilon": 1e-3},
    "attention that is not scaled": {"scale_attn_weights": False},
    "scaled attention": {"scale_attn_by_inverse_layer_idx": True},
    "a head of its own": {"tie_word_embeddings": False},
    "silu": {"activation_function": "silu"},
    "gelu": {"activation_function": "gelu"},
    "n_inner": {"n_inner": 40},
    "UER's layer norm with another epsilon": {"layer_norm": UER, "layer_norm_epsilon": 1e-3},
}


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_row_and_its_format_have_one_name(row: FormatRow) -> None:
    assert row.load().name == row.name, "the name of the row in ROWS is the first argument of Format, too"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("format", WRITTEN)
def test_a_model_comes_back_as_it_was_or_is_refused(format: str, model: str, tmp_path: Path) -> None:
    """Nothing of the maths is lost without a word."""
    config = dataclasses.replace(CONFIG, **MODELS[model])
    try:
        to_checkpoint(InMemory(config), tmp_path / "new", format=format, options=required_options(format))
    except ConvertError:
        assert model != "GPT-2"
        assert not (tmp_path / "new").exists()
        return
    found = open_checkpoint(tmp_path / "new", heads=CONFIG.n_head).config
    if found.layer_norm != config.layer_norm:  # computed with the other kind's formula: see test_uer.py
        assert {found.layer_norm, config.layer_norm} == {STANDARD, UER}
        other = {"layer_norm": config.layer_norm, "layer_norm_epsilon": config.layer_norm_epsilon}
        found = dataclasses.replace(found, **other)
    assert found == config


def test_whatever_makes_another_model_is_in_the_limits() -> None:
    sizes = {"vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"}
    fields = {field.name for field in dataclasses.fields(GPT2Config)}
    assert set(GPT2) == fields - sizes, "add the new field of GPT2Config to GPT2 in convert/formats/limits.py"


def test_a_writer_cannot_hold_what_no_model_has() -> None:
    with pytest.raises(ValueError, match="holds: epsilon: expected n_inner, activation_function, layer_norm_epsilon"):
        Writer(lambda *_: [], lambda _: 0, holds={"epsilon": ()})


def test_no_option_of_a_format_can_be_called_like_one_of_the_command() -> None:
    names = set()
    for command in writer_commands():
        parser = PROGRAM.command_parser(command.name)
        flags = (flag for action in parser._actions for flag in action.option_strings if flag.startswith("--"))
        names |= {flag.removeprefix("--").replace("-", "_") for flag in flags}
        names |= {action.dest for action in parser._actions} | set(parser._defaults)
    options = {option.name for format in WRITTEN for option in find_writer(format).options if not option.is_shared}
    assert names - options == set(OWN_OPTIONS), "correct OWN_OPTIONS in convert/formats/format.py"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "scale", "kind": float}, "the option scale: kind is <class 'float'>: expected str or int"),
        (
            {"name": "scale", "is_shared": True},
            "the option scale: not an option of the commands: cannot be shared",
        ),
        ({"name": "heads"}, "the option heads: commands have one of their own: choose another name"),
    ],
)
def test_an_option_that_no_command_could_have_says_so(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WriteOption(help="a line", **arguments)


def test_the_help_of_an_option_may_have_a_percent_sign() -> None:
    parser = argparse.ArgumentParser()
    add_write_option(parser, WriteOption("scale", "how much, in %"))
    assert "how much, in %\n" in parser.format_help()


@dataclasses.dataclass
class Stored:
    """A ``LazyTensor`` in memory."""

    values: np.ndarray[Any, Any]
    file: Path = Path("weights")
    name: str = "some"
    lacks_checksum: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.values


def test_the_other_byte_order_is_named() -> None:
    tensor = Stored(np.zeros(3, ">f4"))
    recipes = {name: TensorRecipe([tensor], lambda *_: None) for name in CONFIG.tensor_shapes()}
    with pytest.raises(CheckpointError, match="weights: some: expected float16, bfloat16, float32, float64, found >f4"):
        TensorMapCheckpoint(CONFIG, recipes, CheckpointInfo("some"))


def test_matrices_in_out_are_transposed_and_put_one_below_the_other() -> None:
    parts = [np.arange(6.0).reshape(1, 2, 3), np.arange(6.0, 14.0).reshape(2, 4)]
    out = np.empty((7, 2))
    concat_transposed(parts, out)
    assert np.array_equal(out, np.vstack([parts[0][0].T, parts[1].T]))
