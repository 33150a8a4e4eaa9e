"""Writing a SavedModel one tensor at a time: the weights are never in memory together.

``tf.saved_model.save`` needs every variable filled. Here the graph is built over variables whose memory is never
touched and saved without its checkpoint; then each tensor goes to a checkpoint shard of its own, under the key that
the object graph gives it, and ``MergeV2Checkpoints`` joins the shards (it renames the data and writes one index).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.checkpoint import graph_view, save_util  # no public name has what these two give
from tensorflow.python.saved_model.save import save_and_return_nodes

from exports.assets import SpecialTokens
from exports.signatures import Signatures
from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2

_OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_WEIGHTS = "weights"

ALIGNMENT = 64
"""Bytes to which TensorFlow wants its buffers aligned."""


def write_saved_model(
    folder: Path,
    config: GPT2Config,
    dtype: str,
    tokens: SpecialTokens,
    read: Callable[[str, np.dtype], np.ndarray],
    on_file: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes graph and weights of a GPT-2 into ``folder``, which exists and is empty.

    Args:
        folder: where ``saved_model.pb`` and ``variables/`` go.
        config: the sizes.
        dtype: of matrices and biases, one of ``tf_model.config.DTYPES``; layer norms stay float32.
        tokens: the padding id is part of the graph.
        read: gives the tensor of a canonical name in the dtype asked for. Called once a tensor, in canonical order.
        on_file: called with each data file once it is complete; it may still be renamed, its content stays.
    """
    model = GPT2(config, dtype=dtype, initialize=False)
    root = tf.Module()
    root.weights = model.canonical_variables()
    functions = Signatures(model, tokens.pad_token_id).functions
    for name, function in functions.items():  # with defaults in Python too, which ``root.signatures`` has not
        setattr(root, name, function)
    save_and_return_nodes(
        root,
        str(folder),
        signatures=functions,
        experimental_skip_checkpoint=True,
    )
    object_graph = save_util.serialize_graph_view(graph_view.ObjectGraphView(root))[3]
    parts = folder / "variables.parts"
    parts.mkdir()
    prefixes = [_write_part(parts, 0, _OBJECT_GRAPH_KEY, tf.constant(object_graph.SerializeToString()))]
    for (name, variable), key in zip(root.weights.items(), _keys(object_graph, root.weights), strict=True):
        # TensorFlow's bfloat16 in numpy is ml_dtypes', as everywhere here.
        value = read(name, np.dtype(variable.dtype.as_numpy_dtype))
        if value.shape != tuple(variable.shape):
            raise ValueError(f"{name}: expected shape {tuple(variable.shape)}, found {value.shape}")
        prefixes.append(_write_part(parts, len(prefixes), key, _borrow(value)))
        del value
        on_file(Path(f"{prefixes[-1]}.data-00000-of-00001"))
    (folder / "variables").mkdir(exist_ok=True)
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(folder / "variables" / "variables"), delete_old_dirs=False
    )
    shutil.rmtree(parts)


def _borrow(value: np.ndarray) -> tf.Tensor:
    """A tensor in the memory of ``value`` where TensorFlow can use that, so that the largest one is there only once."""
    if value.ctypes.data % ALIGNMENT or not value.flags.c_contiguous:
        return tf.constant(value)
    if value.dtype == tf.bfloat16.as_numpy_dtype:  # which the exchange protocol of numpy does not know
        return tf.bitcast(tf.experimental.dlpack.from_dlpack(value.view(np.uint16).__dlpack__()), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(value.__dlpack__())


def _write_part(folder: Path, number: int, key: str, value: tf.Tensor) -> str:
    prefix = str(folder / f"part-{number:05d}")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=[key], shape_and_slices=[""], tensors=[value])
    return prefix


def _keys(
    object_graph: save_util.trackable_object_graph_pb2.TrackableObjectGraph, names: dict[str, tf.Variable]
) -> list[str]:
    """The checkpoint key of each weight: root -> the dictionary of weights -> the weight -> its value."""

    def child(node: int, name: str) -> int:
        return int(next(c.node_id for c in object_graph.nodes[node].children if c.local_name == name))

    weights = child(0, _WEIGHTS)
    return [object_graph.nodes[child(weights, name)].attributes[0].checkpoint_key for name in names]
