"""``inspect``: what a checkpoint or a SavedModel is, from its headers and shapes."""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import BFLOAT16, DType
from convert.commands.inspect import TENSORFLOW_BYTES, Report, lines
from convert.commands.options import add_format_option
from convert.formats import savedmodel
from convert.formats.heads import possible_heads
from convert.formats.registry import open_checkpoint
from convert.formats.savedmodel import GRAPH, weight_name
from convert.output.manifest import MANIFEST, ManifestError, read_manifest
from exports.saved_model_folder import CONFIG, GENERATION_CONFIG
from support.errors import CheckpointError, ConvertError
from support.tensorflow_runtime import quiet_stderr
from tf_model.config import ConfigError, GPT2Config
from tf_model.precision import BYTES, DTYPES, PRECISIONS, packed_bytes, stored_bytes, stored_tensors

HELP = "say what a checkpoint or a SavedModel is: sizes, types, tensors, memory, and what is wrong with it"
DESCRIPTION = """\
Reads headers and shapes, no weights: seconds and a few hundred MB for a model of any size. A checkpoint is described
with what it would become as float32, float16 and bfloat16. What cannot be read ends with the line that the conversion
would end with, and with exit code 2; damaged weights are found by the conversion, and by check.

The memory of a loaded model is estimated: its variables, once, and 0.7 GB for TensorFlow and the graph (measured with
TensorFlow 2.21 on Linux); while it generates, the packed copy of int8 matrices, too. Each row that is generated adds a
cache, whose size for one position is given.
"""
EXAMPLE = "python -m convert inspect CPM-Generate --json"

_NUMPY_TYPES: dict[str, DType] = {"bfloat16": BFLOAT16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a checkpoint, as for pytorch-to-tf, or the folder of a SavedModel"
    )
    add_format_option(parser)
    parser.add_argument(
        "--heads", type=int, metavar="N", help="number of attention heads, to see whether the conversion accepts it"
    )
    parser.add_argument(
        "--iteration", metavar="N|release", help="which iteration, instead of the one that the tracker file names"
    )
    parser.add_argument(
        "--json", action="store_true", help='print JSON; {"error": "..."} where something cannot be read'
    )


def run(args: argparse.Namespace) -> None:
    try:
        report = _describe(args.path, args.from_format, args.heads, args.iteration)
    except (ConvertError, ConfigError) as error:
        if args.json:
            print(json.dumps({"error": str(error)}, ensure_ascii=False))
        raise
    print(json.dumps(report, ensure_ascii=False) if args.json else "\n".join(lines(report)))


def _describe(path: Path, from_format: str | None, heads: int | None, iteration: str | None) -> Report:
    """The report on whatever is at ``path``; plain data, as ``--json`` prints it.

    Raises:
        ConvertError, ConfigError: it cannot be read or used.
    """
    try:
        if not (path / GRAPH).is_file() or from_format not in (None, savedmodel.NAME):
            return _describe_checkpoint(path, from_format, heads, iteration)
        if heads is not None or iteration is not None:
            raise ConvertError(f"{path}: a SavedModel: leave out --heads and --iteration")
        return _describe_saved_model(path)
    except OSError as error:
        raise ConvertError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def _dtype(name: str) -> DType:
    return _NUMPY_TYPES.get(name) or np.dtype(name)


def _tensors(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> Report:
    """What the two kinds have in common: the tensors, in canonical order, and what they add up to."""
    tensors = [{"name": name, "shape": list(shape), "dtype": dtypes[name]} for name, shape in shapes.items()]
    return {
        "dtypes": dict(Counter(tensor["dtype"] for tensor in tensors)),
        "bytes_of_weights": sum(math.prod(shape) * _dtype(dtypes[n]).itemsize for n, shape in shapes.items()),
        "tensors": tensors,
    }


def _memory(config: GPT2Config, dtype: str) -> dict[str, int]:
    """Bytes that a SavedModel with matrices and biases of ``dtype`` takes."""
    weights = stored_bytes(config, dtype)
    return {
        "bytes_on_disk": weights,
        "bytes_loaded": weights + TENSORFLOW_BYTES,
        "bytes_generating": weights + packed_bytes(config, dtype) + TENSORFLOW_BYTES,
        "cache_bytes_per_position": 2 * config.n_layer * config.n_embd * BYTES[PRECISIONS[dtype].compute],
    }


def _describe_checkpoint(path: Path, from_format: str | None, heads: int | None, iteration: str | None) -> Report:
    """The report on a checkpoint.

    Raises:
        ConvertError: it cannot be converted.
    """
    opened = functools.partial(open_checkpoint, path, n_head=heads, iteration=iteration, from_format=from_format)
    try:
        checkpoint, known = opened(), True
    except CheckpointError:  # nobody knows the heads, or something else is wrong, which comes up again
        checkpoint, known = opened(any_heads=True), heads is not None
    config, ranks = checkpoint.config, checkpoint.details.get("tensor_parallel", 1)
    files = {str(file): file.stat().st_size for file in checkpoint.files}
    return {
        "path": str(path),
        "kind": "checkpoint",
        "format": checkpoint.format,
        "iteration": None,
        **checkpoint.details,
        "config": {**config.to_dict(), "n_head": config.n_head if known else None},
        "possible_heads": possible_heads(config.n_embd, int(ranks)),
        **({} if checkpoint.tokens is None else checkpoint.tokens.to_dict()),
        "tokenizer": None if checkpoint.tokenizer is None else [str(checkpoint.tokenizer)],
        "notes": checkpoint.notes,
        "parameters": config.parameter_count,
        "files": files,
        "bytes_on_disk": sum(files.values()),
        "outputs": {dtype: _memory(config, dtype) for dtype in DTYPES},
        **_tensors(config.tensor_shapes(), {name: dtype.name for name, dtype in checkpoint.dtypes.items()}),
    }


def _describe_saved_model(folder: Path) -> Report:
    """The report on a SavedModel of ours.

    Raises:
        ConvertError: a file is missing or damaged, or they contradict each other.
        ConfigError: the sizes do not make a GPT-2.
    """
    path = folder / "assets" / CONFIG
    try:
        stored = json.loads(path.read_text("utf-8"))
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror}: not a SavedModel of this program") from error
    except ManifestError as error:
        raise ConvertError(str(error)) from error
    except ValueError as error:
        raise ConvertError(f"{path}: is damaged: {error}") from error
    if not isinstance(stored, dict) or (dtype := stored.get("dtype")) not in DTYPES:
        raise ConvertError(f"{path}: expected sizes and a dtype ({', '.join(DTYPES)}): not of this program, or damaged")
    config = GPT2Config.from_dict(stored)
    with quiet_stderr():
        import tensorflow as tf
    expected = {name: tensor.shape for name, tensor in stored_tensors(config, dtype).items()}
    dtypes = _stored_types(tf, folder, expected)
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    data = sum(size for name, size in sizes.items() if name.startswith("variables/variables.data-"))
    report = {
        "path": str(folder),
        "kind": "saved_model",
        "format": "saved_model",
        **_graph(folder),
        "config": {**stored, **config.to_dict()},
        "eos_token_id": stored.get("eos_token_id"),
        "pad_token_id": stored.get("pad_token_id"),
        "parameters": config.parameter_count,
        "tokenizer": sorted(
            name for name in sizes if name.startswith("assets/") and Path(name).name not in (CONFIG, GENERATION_CONFIG)
        ),
        "manifest": manifest and {key: value for key, value in manifest.items() if key != "files"},
        "bytes_on_disk": sum(sizes.values()),
        "outputs": {dtype: _memory(config, dtype)},
        **_tensors(expected, dtypes),
    }
    if data < report["bytes_of_weights"]:
        raise ConvertError(
            f"{folder / 'variables'}: expected {report['bytes_of_weights']} bytes of weights or more, found {data}: "
            "it is not complete, copy or convert it again"
        )
    return report


def _stored_types(tf: Any, folder: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The type of each weight by its canonical name, from the index of the variables.

    Raises:
        ConvertError: the index cannot be read, or other tensors or shapes are in it than expected.
    """
    prefix = folder / "variables" / "variables"
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise ConvertError(f"{prefix}.index: cannot be read: {(str(error).splitlines() or ['damaged'])[0]}") from error
    found = {name: key for key in shapes if (name := weight_name(key)) is not None}
    wrong = [
        f"{name}: expected {'nothing' if shape is None else list(shape)}, "
        f"found {shapes[found[name]] if name in found else 'nothing'}"
        for name, shape in {**expected, **dict.fromkeys(sorted(found.keys() - expected.keys()))}.items()
        if name not in found or shape is None or tuple(shapes[found[name]]) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConvertError(f"{prefix}.index: not the model of assets/{CONFIG}: {'; '.join(wrong[:3])}{more}")
    return {name: dtypes[found[name]].name for name in expected}


def _graph(folder: Path) -> Report:
    """The signatures, and the TensorFlow that wrote the graph.

    Raises:
        ConvertError: the file is not a SavedModel's.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString((folder / GRAPH).read_bytes())
        (graph,) = model.meta_graphs
    except (DecodeError, ValueError) as error:
        raise ConvertError(f"{folder / GRAPH}: is damaged: {error or 'it cannot be parsed'}") from error

    def tensors(infos: Any) -> Report:
        return {
            name: {
                "dtype": tf.as_dtype(info.dtype).name,
                "shape": None
                if info.tensor_shape.unknown_rank
                else [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim],
            }
            for name, info in sorted(infos.items())
        }

    return {
        "tensorflow": graph.meta_info_def.tensorflow_version,
        "signatures": {
            name: {"inputs": tensors(signature.inputs), "outputs": tensors(signature.outputs)}
            for name, signature in sorted(graph.signature_def.items())
            if not name.startswith("__saved_model")  # a node that initialises tables, not a function
        },
    }
