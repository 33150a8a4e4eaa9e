"""A SavedModel of this program as a source: its weights are whole, canonical, and under their own names.

    saved_model.pb                       the graph: not looked at
    assets/config.json                   sizes, dtype, special tokens; and the tokenizer's files beside it
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
from convert.formats.heads import resolve_head_count
from convert.formats.huggingface import read_json, tokens_of
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
from convert.formats.tokenizer_files import has_tokenizer
from convert.tensors import Array, DType
from exports.assets import GENERATION_DEFAULTS
from exports.saved_model_folder import CONFIG
from support.errors import CheckpointError
from support.messages import short_repr
from tf_model.config import ConfigError, GPT2Config
from tf_model.precision import DTYPES, SCALE, WEIGHTS, is_transposed, stored_tensors
from tokenization.special_tokens import SpecialTokens

NAME = "savedmodel"
GRAPH = "saved_model.pb"
_VARIABLE = re.compile(rf"{WEIGHTS}/(.+)/\.ATTRIBUTES/VARIABLE_VALUE")
_BLOCK = 1 << 18
"""Values that are multiplied in one step."""


def weight_name(key: str) -> str | None:
    """The canonical name in a key of the variables, where it is a weight's: TensorFlow has written its dots twice."""
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


def find(path: Path) -> Path | None:
    """``path``, where it is a folder with a SavedModel, of this program or another."""
    return path if (path / GRAPH).is_file() else None


def open_savedmodel(
    path: Path, *, n_head: int | None = None, iteration: str | None = None, allow_unknown_heads: bool = False
) -> Checkpoint:
    """The weights of the SavedModel in the folder ``path``; see ``open_megatron``.

    Raises:
        CheckpointError: it is not one of this program, or not whole.
    """
    try:
        if find(path) is None:
            raise CheckpointError(f"{path}: expected a SavedModel's folder: it has no {GRAPH}")
        if iteration is not None:
            raise CheckpointError(f"{path}: a SavedModel has no iterations: leave out --iteration {iteration}")
        return _open(path, n_head, allow_unknown_heads)
    except ConfigError as error:
        raise CheckpointError(f"{path / 'assets' / CONFIG}: {str(error).removeprefix('config.json: ')}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def _tokens(assets: Path, values: Mapping[str, Any], vocab_size: int) -> SpecialTokens:
    """As of a Hugging Face folder, without what this program says by itself: no source has said it."""
    tokens = tokens_of(assets, values, vocab_size)
    return dataclasses.replace(tokens, defaults={}) if tokens.defaults == GENERATION_DEFAULTS else tokens


def _open(folder: Path, n_head: int | None, allow_unknown_heads: bool) -> Checkpoint:
    assets = folder / "assets"
    where = assets / CONFIG
    if not where.is_file():
        raise CheckpointError(f"{folder}: a SavedModel that this program did not write: it has no assets/{CONFIG}")
    values = read_json(where)
    dtype = values.get("dtype")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{where}: dtype is {short_repr(dtype)}: expected one of {', '.join(DTYPES)}: not of this "
            "program, or damaged"
        )
    config = GPT2Config.from_dict(values)
    resolve_head_count(where, config.n_embd, 1, n_head, allow_unknown_heads, config.n_head)  # others given than stored
    found, files = open_bundle(folder / "variables" / "variables", lambda key: weight_name(key) is not None)
    sources = {
        name: dataclasses.replace(source, name=name)
        for key, source in found.items()
        if (name := weight_name(key)) is not None
    }
    stored = stored_tensors(config, dtype)
    check_tensors(
        folder / "variables", sources, ExpectedTensors({name: tensor.shape for name, tensor in stored.items()})
    )
    for name, tensor in stored.items():
        if sources[name].dtype.name != tensor.dtype:
            raise CheckpointError(
                f"{sources[name].file}: {name}: expected {tensor.dtype}, as assets/{CONFIG} says {dtype}, found "
                f"{sources[name].dtype.name}"
            )
    quantized = {name for name in stored if name + SCALE in stored}
    recipes = {
        name: TensorRecipe(
            [
                Dequantized(sources[name], sources[name + SCALE], is_transposed(name, dtype))
                if name in quantized
                else sources[name]
            ],
            copy_whole,
        )
        for name in config.tensor_shapes()
    }
    rounded = f"the weights are those of {dtype}, not of the original: they were rounded then"
    info = CheckpointInfo(
        NAME,
        tuple(files),
        sum(tensor_bytes(sources[name]) for name in stored),
        details={"quantized": dtype} if quantized else {},
        notes=(rounded,) if quantized else (),
    )
    return TensorMapCheckpoint(
        config,
        recipes,
        info,
        tokens=_tokens(assets, values, config.vocab_size),
        # BERT's vocabulary keeps its name, which may be anything.
        tokenizer=assets if has_tokenizer(assets) or any(assets.glob("*.txt")) else None,
    )
