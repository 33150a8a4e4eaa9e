"""Every private name of TensorFlow that this project uses, in one place: what an upgrade of TensorFlow may break.

Tried with TensorFlow 2.21.0. ``tests/tf_model/test_tensorflow_internals.py`` tests each name by itself, and that no
other module imports from ``tensorflow.python``. Importing this module imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorflow.python.checkpoint import graph_view, save_util
from tensorflow.python.eager import cancellation
from tensorflow.python.framework import kernels, op_def_library
from tensorflow.python.ops import resource_variable_ops
from tensorflow.python.saved_model.save import save_and_return_nodes

UninitializedVariable = resource_variable_ops.UninitializedVariable
"""A variable without memory. ``tf.Variable`` needs an initial value, and with it the memory of all weights."""

apply_op = op_def_library.apply_op
"""Make a node of an op that has no public Python function, as oneDNN's int8 kernels have none."""

CancellationManager = cancellation.CancellationManager
"""Cancel calls of TensorFlow that run in another thread. No public name stops a call that has begun."""

CancellationManagerContext = cancellation.CancellationManagerContext
"""A context whose calls a ``CancellationManager`` can cancel."""


def save_graph(root: Any, folder: Path, signatures: Mapping[str, Any]) -> None:
    """Write a SavedModel without the values of its variables, which ``tf.saved_model.save`` cannot leave out."""
    save_and_return_nodes(root, str(folder), signatures=signatures, experimental_skip_checkpoint=True)


def object_graph(root: Any) -> Any:
    """Return the ``TrackableObjectGraph`` of ``root``: the keys of its variables in a checkpoint.

    ``tf.train.Checkpoint`` has a public name for it only after it has written a checkpoint.
    """
    return save_util.serialize_graph_view(graph_view.ObjectGraphView(root))[3]


def has_cpu_kernel(op: str) -> bool:
    """Whether this build of TensorFlow can compute ``op`` on a CPU."""
    return any(kernel.device_type == "CPU" for kernel in kernels.get_registered_kernels_for_op(op).kernel)
