"""Writing a SavedModel one tensor at a time: the weights are never in memory together.

``tf.saved_model.save`` needs every variable filled. Here the graph is built over variables whose memory is never
touched and saved without its checkpoint; then ``tensor_bundle`` writes the checkpoint, each tensor under the key that
the object graph gives it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.checkpoint import graph_view, save_util  # no public name has what these two give
from tensorflow.python.saved_model.save import save_and_return_nodes

from exports.assets import SpecialTokens
from exports.signatures import Signatures
from exports.tensor_bundle import BundleWriter
from tf_model import quantization
from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2
from tf_model.storage import OFFSET, SCALE

_OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_WEIGHTS = "weights"


def write_saved_model(
    folder: Path,
    config: GPT2Config,
    dtype: str,
    tokens: SpecialTokens,
    read: Callable[[str, np.dtype], np.ndarray],
) -> tuple[Path, str]:
    """Writes graph and weights of a GPT-2 into ``folder``, which exists and is empty.

    Args:
        folder: where ``saved_model.pb`` and ``variables/`` go.
        config: the sizes.
        dtype: of matrices and biases, one of ``tf_model.storage.DTYPES``; layer norms stay float32.
        tokens: the padding id is part of the graph.
        read: gives the tensor of a canonical name in the dtype asked for. Called once a tensor, in canonical order.

    Returns:
        the one file with all weights, and its hexadecimal SHA-256.

    Raises:
        OSError: the weights cannot be written.
        tf.errors.OpError: the graph cannot be written.
        ValueError: a tensor that ``read`` gives has another shape than the model's.
    """
    object_graph, slots = _write_graph(folder, config, dtype, tokens)
    gc.collect()  # the graph and its functions, some 200 MB at 32 layers, refer to each other
    variables = folder / "variables"
    variables.mkdir(exist_ok=True)
    with BundleWriter(variables / "variables") as bundle:
        bundle.add_string(_OBJECT_GRAPH_KEY, object_graph)
        for name in config.tensor_shapes():
            for stored, value in _stored(name, slots[name].dtype, read):
                if value.shape != slots[stored].shape:
                    raise ValueError(f"{stored}: expected shape {slots[stored].shape}, found {value.shape}")
                bundle.add(slots[stored].key, value)
        return bundle.data, bundle.finish()


def _stored(
    name: str, dtype: np.dtype, read: Callable[[str, np.dtype], np.ndarray]
) -> Iterable[tuple[str, np.ndarray]]:
    """A canonical tensor as it is stored: in its dtype, or as int8 with scales and offsets."""
    if dtype != np.int8:
        return ((name, read(name, dtype)),)
    weight, scale = quantization.quantize(read(name, np.dtype(np.float32)))
    return (name, weight), (name + SCALE, scale), (name + OFFSET, quantization.offset(weight))


class _Slot(NamedTuple):
    """Where a weight goes: its key in the checkpoint, what it is like."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype


def _write_graph(folder: Path, config: GPT2Config, dtype: str, tokens: SpecialTokens) -> tuple[bytes, dict[str, _Slot]]:
    """Writes everything but the weights; gives the object graph and, for each weight, where it goes."""
    model = GPT2(config, dtype=dtype, initialize=False)
    root = tf.Module()
    root.weights = model.canonical_variables()
    functions = Signatures(model, tokens).functions
    for name, function in functions.items():  # with defaults in Python too, which ``root.signatures`` has not
        setattr(root, name, function)
    save_and_return_nodes(root, str(folder), signatures=functions, experimental_skip_checkpoint=True)
    object_graph = save_util.serialize_graph_view(graph_view.ObjectGraphView(root))[3]
    keys = _keys(object_graph, root.weights)
    slots = {
        # TensorFlow's bfloat16 in numpy is ml_dtypes', as everywhere here.
        name: _Slot(key, tuple(variable.shape), np.dtype(variable.dtype.as_numpy_dtype))
        for (name, variable), key in zip(root.weights.items(), keys, strict=True)
    }
    return object_graph.SerializeToString(), slots


def _keys(
    object_graph: save_util.trackable_object_graph_pb2.TrackableObjectGraph, names: dict[str, tf.Variable]
) -> list[str]:
    """The checkpoint key of each weight: root -> the dictionary of weights -> the weight -> its value."""

    def child(node: int, name: str) -> int:
        return int(next(c.node_id for c in object_graph.nodes[node].children if c.local_name == name))

    weights = child(0, _WEIGHTS)
    return [object_graph.nodes[child(weights, name)].attributes[0].checkpoint_key for name in names]
