"""A SavedModel that gpt2-savedmodel wrote, as a checkpoint: its weights are whole and have their canonical names.

    saved_model.pb                       the graph: not looked at
    assets/config.json                   sizes, dtype, special tokens; and the tokenizer's files
    variables/variables.index
    variables/variables.data-00000-of-00001

The weights that all blocks have are in one tensor; the index names its parts, too, and those are what is read.
Sources: ``exports/saved_model.py``, ``exports/assets.py`` and ``tf_model/storage.py``, which write it. Layer norms are
float32 whatever the dtype. An int8 matrix has a scale for each of its rows; what is given is their product, the matrix
that the model computes with.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    check_tensors,
    copy_whole,
    tensor_bytes,
)
from convert.formats.tf_checkpoint import open_bundle
from convert.formats.tokenizer_files import has_tokenizer, read_special_tokens
from convert.tensors import Array, DType
from exports.assets import GENERATION_DEFAULTS
from exports.generation_config import PIECE_NAMES
from exports.saved_model_folder import CONFIG, GRAPH, ModelError, SavedModelFolder
from support.errors import CheckpointError
from tf_model.precision import SCALE, WEIGHTS, is_transposed, stored_tensors
from tokenization.special_tokens import SpecialTokens

NAME = "savedmodel"
_VARIABLE = re.compile(rf"{WEIGHTS}/(.+)/\.ATTRIBUTES/VARIABLE_VALUE")
_BLOCK = 1 << 18
"""Values that are multiplied in one step."""


def weight_name(key: str) -> str | None:
    """Return the canonical name in a weight's key; TensorFlow has doubled the dots in keys of variables."""
    match = _VARIABLE.fullmatch(key)
    return match[1].replace("..", ".") if match else None


@dataclasses.dataclass(frozen=True)
class Dequantized:
    """An int8 matrix ``[out, in]`` times the scales ``[out]`` of its rows: a ``LazyTensor`` of float32."""

    weight: LazyTensor
    scale: LazyTensor
    transposed: bool
    """The weight is stored as ``[in, out]``."""

    @property
    def dtype(self) -> DType:
        return self.scale.dtype

    @property
    def file(self) -> Path:
        return self.weight.file

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape[::-1] if self.transposed else self.weight.shape

    @property
    def lacks_checksum(self) -> bool:
        return self.weight.lacks_checksum

    def numpy(self) -> Array:
        weight, scale = self.weight.numpy(), self.scale.numpy()
        if self.transposed:
            weight = weight.T
        out = np.empty(weight.shape, self.dtype)
        step = max(1, _BLOCK // max(1, weight.shape[1]))
        with np.errstate(all="ignore"):  # a damaged scale is found as the value that it makes
            for start in range(0, len(weight), step):
                rows = slice(start, start + step)
                np.multiply(weight[rows], scale[rows, np.newaxis], out=out[rows])
        return out


def _recognise(candidate: Candidate) -> bool:
    """Whether this project wrote the SavedModel: ``tf2-port`` takes those that have no configuration."""
    folder = SavedModelFolder(candidate.path)
    return folder.exists() and folder.config_file.exists()


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    folder = SavedModelFolder(candidate.path)
    if not folder.exists():
        raise CheckpointError(f"{folder.path}: expected a SavedModel's folder: it has no {GRAPH}")
    if not folder.config_file.is_file():
        raise CheckpointError(
            f"{folder.path}: a SavedModel that gpt2-savedmodel did not write: it has no assets/{CONFIG}"
        )
    try:
        config, dtype, values = folder.config, folder.dtype, folder.values
    except ModelError as error:
        raise CheckpointError(str(error)) from error
    options.heads(folder.config_file, config.n_embd, stored=config.n_head)  # others given than stored
    tensors, files = _tensors(folder)
    stored = stored_tensors(config, dtype)
    expected = ExpectedTensors({name: tensor.shape for name, tensor in stored.items()})
    check_tensors(folder.variables.parent, tensors, expected)
    for name, tensor in stored.items():
        if tensors[name].dtype.name != tensor.dtype:
            raise CheckpointError(
                f"{tensors[name].file}: {name}: expected {tensor.dtype}, as in assets/{CONFIG} ({dtype}), found "
                f"{tensors[name].dtype.name}"
            )
    quantized = {name for name in stored if name + SCALE in stored}
    recipes = {
        name: TensorRecipe(
            [
                Dequantized(tensors[name], tensors[name + SCALE], is_transposed(name, dtype))
                if name in quantized
                else tensors[name]
            ],
            copy_whole,
        )
        for name in config.tensor_shapes()
    }
    tokens, token_notes = _tokens(folder.assets, values, config.vocab_size)
    rounded = f"the weights are those of {dtype}, not of the original: they were rounded then"
    info = CheckpointInfo(
        NAME,
        tuple(files),
        sum(tensor_bytes(tensors[name]) for name in stored),
        details={"quantized": dtype} if quantized else {},
        notes=(*((rounded,) if quantized else ()), *token_notes),
    )
    # The vocabulary of a BERT tokenizer keeps its name, which may be anything.
    is_there = has_tokenizer(folder.assets) or any(folder.assets.glob("*.txt"))
    return TensorMapCheckpoint(
        config,
        recipes,
        info,
        tokens=tokens,
        tokenizer=folder.assets if is_there else None,
    )


def _tensors(folder: SavedModelFolder) -> tuple[dict[str, LazyTensor], list[Path]]:
    """Return the weights by their canonical names, and the files with their values."""
    found, files = open_bundle(folder.variables, lambda key: weight_name(key) is not None)
    tensors: dict[str, LazyTensor] = {}
    for key, tensor in found.items():
        if (name := weight_name(key)) is not None:
            tensors[name] = dataclasses.replace(tensor, name=name)
    return tensors, files


def _tokens(assets: Path, values: Mapping[str, Any], vocab_size: int) -> tuple[SpecialTokens, tuple[str, ...]]:
    """As of a Hugging Face folder, without the defaults of a SavedModel whose source had none."""
    tokens, notes = read_special_tokens(assets, values, vocab_size)
    pieces = {name: value for name, value in tokens.defaults.items() if name in PIECE_NAMES}
    had_none = tokens.defaults == {**GENERATION_DEFAULTS, **pieces}
    return (dataclasses.replace(tokens, defaults=pieces) if had_none else tokens), notes


FORMAT = Format(
    NAME,
    recognise=_recognise,
    open=_open,
    without_iterations="a SavedModel",
)
