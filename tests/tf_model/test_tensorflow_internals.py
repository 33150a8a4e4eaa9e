"""What an upgrade of TensorFlow may break: each of its private names by itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import tensorflow as tf

from tests.conftest import ROOT
from tf_model import tensorflow_internals as internals

ROOMS = ("convert", "exports", "inference", "support", "tf_model", "tokenization")


def test_no_other_module_imports_private_names_of_tensorflow() -> None:
    found = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("tensorflow.python") for name in names):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"tf_model/tensorflow_internals.py"}


def test_an_uninitialized_variable_has_a_shape_and_no_memory() -> None:
    variable = internals.UninitializedVariable(shape=[1 << 40, 1 << 10], dtype=tf.float32, trainable=False)
    assert variable.shape == [1 << 40, 1 << 10]
    assert not variable.is_initialized()


def test_apply_op_makes_a_node_of_an_op_without_a_python_function() -> None:
    @tf.function(autograph=False)
    def add(x: tf.Tensor) -> tf.Tensor:
        return internals.apply_op("AddV2", name="sum", x=x, y=x)

    assert add(tf.constant([1.0, 2.0])).numpy().tolist() == [2, 4]
    assert "AddV2" in [node.op for node in add.get_concrete_function(tf.TensorSpec([2])).graph.as_graph_def().node]


def test_a_cancelled_manager_stops_calls() -> None:
    """``exports.interruptible`` has tests of calls that have begun."""
    call = tf.function(lambda x: tf.while_loop(lambda i: i < 10**4, lambda i: (i + 1,), (x,))[0], autograph=False)
    call(tf.constant(0))
    manager = internals.CancellationManager()
    manager.start_cancel()
    with pytest.raises(tf.errors.CancelledError), internals.CancellationManagerContext(manager):
        call(tf.constant(0))


def test_a_graph_is_saved_without_values_and_its_object_graph_names_the_keys(tmp_path: Path) -> None:
    root = tf.Module()
    root.weights = {"a.b": internals.UninitializedVariable(shape=[2], dtype=tf.float32)}
    call = tf.function(lambda x: {"y": x + root.weights["a.b"]}, input_signature=[tf.TensorSpec([2], name="x")])
    root.call = call
    internals.save_graph(root, tmp_path, {"call": call})
    assert (tmp_path / "saved_model.pb").is_file()
    assert not list(tmp_path.glob("variables/*"))
    keys = {a.checkpoint_key for node in internals.object_graph(root).nodes for a in node.attributes}
    assert keys == {"weights/a..b/.ATTRIBUTES/VARIABLE_VALUE"}


def test_kernels_of_a_cpu_are_known() -> None:
    assert internals.has_cpu_kernel("AddV2")
    assert not internals.has_cpu_kernel("NoSuchOp")
