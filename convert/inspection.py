"""What a checkpoint or a SavedModel is, from its headers and shapes; no weights are read."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.formats import savedmodel
from convert.formats.heads import possible_heads
from convert.formats.padding import padding_note
from convert.formats.registry import open_checkpoint
from convert.formats.savedmodel import weight_name
from convert.output.manifest import MANIFEST, read_manifest
from convert.tensors import BFLOAT16, DType
from exports.saved_model_folder import SavedModelFolder
from support.errors import CheckpointError, ConvertError
from support.files import describe_read_error
from support.messages import list_names
from support.tensorflow_runtime import one_line_message, quiet_stderr
from tf_model.config import GPT2Config
from tf_model.precision import BYTES, DTYPES, PRECISIONS, packed_bytes, stored_bytes, stored_tensors

TENSORFLOW_BYTES = 700_000_000
"""What a process has after ``hub.load`` in addition to the variables: 0.64 GB with the 12 layers of CPM-distill."""

_NUMPY_TYPES: dict[str, DType] = {"bfloat16": BFLOAT16}


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found.

    Attributes:
        path: what was inspected.
        kind: ``checkpoint`` or ``saved_model``.
        facts: all of it, as plain data; ``to_dict`` gives the same.
    """

    path: Path
    kind: str
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: sizes, types, tensors, memory; for a SavedModel its signatures, too."""
        return dict(self.facts)


def inspect(
    path: str | Path,
    *,
    heads: int | None = None,
    iteration: str | None = None,
    format: str | None = None,
    vocab_size: int | None = None,
    activation_function: str | None = None,
    adapter: str | Path | None = None,
) -> Inspection:
    """Describe the checkpoint or SavedModel at ``path``.

    Args:
        path: a file or a folder.
        heads: number of attention heads, to see whether a conversion accepts it.
        iteration: which iteration of a checkpoint, instead of the one that its tracker file names.
        format: the format of the checkpoint, instead of the one that is recognised.
        vocab_size, activation_function, adapter: as ``CheckpointSpec`` has them, to see what the conversion makes of
            them.

    Raises:
        UserError: it cannot be read or used.
    """
    path = Path(path)
    options = {
        "heads": heads,
        "iteration": iteration,
        "vocab_size": vocab_size,
        "activation_function": activation_function,
        "adapter": adapter,
    }
    try:
        folder = SavedModelFolder(path)
        if not (folder.exists() and folder.config_file.exists()) or format not in (None, savedmodel.NAME):
            return _inspect_checkpoint(path, {"format": format, **options})
        if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
            raise ConvertError(f"{path}: a SavedModel: leave out {' and '.join(given)}")
        return _inspect_saved_model(folder)
    except OSError as error:
        raise ConvertError(describe_read_error(error, path)) from error


def _inspect_checkpoint(path: Path, options: Mapping[str, Any]) -> Inspection:
    checkpoint, knows_heads = _open(path, options)
    config, ranks = checkpoint.config, checkpoint.info.details.get("tensor_parallel", 1)
    files = {str(file): file.stat().st_size for file in checkpoint.info.files}
    dtypes = {name: dtype.name for name, dtype in checkpoint.dtypes.items()}
    facts = {
        "path": str(path),
        "kind": "checkpoint",
        "format": checkpoint.info.format,
        "iteration": None,
        **checkpoint.info.details,
        "config": {**config.to_dict(), "n_head": config.n_head if knows_heads else None},
        "possible_heads": possible_heads(config.n_embd, int(ranks)),
        **({} if checkpoint.tokens is None else checkpoint.tokens.to_dict()),
        "tokenizer": None if checkpoint.tokenizer is None else [str(checkpoint.tokenizer)],
        "notes": [*checkpoint.info.notes, *_padding(checkpoint)],
        "parameters": config.parameter_count,
        "files": files,
        "bytes_on_disk": sum(files.values()),
        "outputs": {dtype: _memory(config, dtype) for dtype in DTYPES},
        **_tensor_facts(config.tensor_shapes(), dtypes),
    }
    return Inspection(path, "checkpoint", facts)


def _padding(checkpoint: Checkpoint) -> list[str]:
    """Say that a vocabulary looks padded where no tokenizer says which rows are."""
    note = padding_note(checkpoint) if checkpoint.tokenizer is None else None
    return [] if note is None else [note]


def _open(path: Path, options: Mapping[str, Any]) -> tuple[Checkpoint, bool]:
    """Return the checkpoint, and whether its number of heads is known; an unknown number is no error here."""
    try:
        return open_checkpoint(path, **options), True
    except CheckpointError:  # nobody knows the heads, or something else is wrong, which comes up again
        return open_checkpoint(path, **options, allow_unknown_heads=True), options["heads"] is not None


def _inspect_saved_model(folder: SavedModelFolder) -> Inspection:
    folder.check_readable()
    config, dtype, values = folder.config, folder.dtype, folder.values
    manifest = read_manifest(folder.path) if (folder.path / MANIFEST).exists() else None
    shapes = {name: tensor.shape for name, tensor in stored_tensors(config, dtype).items()}
    dtypes = _stored_dtypes(folder, shapes)
    sizes = {file: file.stat().st_size for file in folder.path.rglob("*") if file.is_file()}
    facts = {
        "path": str(folder.path),
        "kind": "saved_model",
        "format": "saved_model",
        "tensorflow": folder.graph.meta_info_def.tensorflow_version,
        "signatures": folder.signatures,
        "config": {**values, **config.to_dict()},
        "eos_token_id": values.get("eos_token_id"),
        "pad_token_id": values.get("pad_token_id"),
        "parameters": config.parameter_count,
        "tokenizer": [file.relative_to(folder.path).as_posix() for file in folder.tokenizer_files],
        "manifest": manifest and {key: value for key, value in manifest.items() if key != "files"},
        "bytes_on_disk": sum(sizes.values()),
        "outputs": {dtype: _memory(config, dtype)},
        **_tensor_facts(shapes, dtypes),
    }
    data = sum(size for file, size in sizes.items() if file.name.startswith(f"{folder.variables.name}.data-"))
    if data < facts["bytes_of_weights"]:
        raise ConvertError(
            f"{folder.variables.parent}: expected {facts['bytes_of_weights']} bytes of weights or more, found {data}: "
            "it is not complete, copy or convert it again"
        )
    return Inspection(folder.path, "saved_model", facts)


def _stored_dtypes(folder: SavedModelFolder, expected: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the type of each weight by its canonical name, from the index of the variables.

    Raises:
        ConvertError: the index cannot be read, or other tensors or shapes are in it than expected.
    """
    with quiet_stderr():
        import tensorflow as tf
    index = f"{folder.variables}.index"
    try:
        reader = tf.train.load_checkpoint(str(folder.variables))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise ConvertError(f"{index}: cannot be read: {one_line_message(error)}") from error
    keys = {name: key for key in shapes if (name := weight_name(key)) is not None}
    found = {name: tuple(shapes[key]) for name, key in keys.items()}
    wrong = [name for name in [*expected, *sorted(found.keys() - expected)] if found.get(name) != expected.get(name)]
    if wrong:
        described = [
            f"{name}: expected {_shape(expected.get(name))}, found {_shape(found.get(name))}" for name in wrong
        ]
        raise ConvertError(f"{index}: not the model of {folder.config_file.name}: {list_names(described)}")
    return {name: dtypes[keys[name]].name for name in expected}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))


def _tensor_facts(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> dict[str, Any]:
    """Return what checkpoints and SavedModels have in common: tensors in canonical order, and their sums."""
    tensors = [{"name": name, "shape": list(shape), "dtype": dtypes[name]} for name, shape in shapes.items()]
    return {
        "dtypes": dict(Counter(tensor["dtype"] for tensor in tensors)),
        "bytes_of_weights": sum(math.prod(shape) * _dtype(dtypes[n]).itemsize for n, shape in shapes.items()),
        "tensors": tensors,
    }


def _dtype(name: str) -> DType:
    return _NUMPY_TYPES.get(name) or np.dtype(name)


def _memory(config: GPT2Config, dtype: str) -> dict[str, int]:
    """Bytes that a SavedModel with matrices and biases of ``dtype`` takes."""
    weights = stored_bytes(config, dtype)
    return {
        "bytes_on_disk": weights,
        "bytes_loaded": weights + TENSORFLOW_BYTES,
        "bytes_generating": weights + packed_bytes(config, dtype) + TENSORFLOW_BYTES,
        "cache_bytes_per_position": 2 * config.n_layer * config.n_embd * BYTES[PRECISIONS[dtype].compute],
    }
