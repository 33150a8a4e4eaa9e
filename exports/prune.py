"""One signature of a SavedModel, without the graph of the others.

Loading makes Python objects of every node of every function, 0.3 GB for all signatures at 32 layers. Source of the
format: ``saved_object_graph.proto`` of TensorFlow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exports.saved_model_folder import SavedModelFolder
from tf_model.precision import STACKS, WEIGHTS

_KEPT = (WEIGHTS, STACKS, "signatures")


def prune(folder: Path, target: Path, name: str) -> None:
    """Make a SavedModel in ``target``, an empty folder, that has the weights and the signature ``name`` of ``folder``.

    The function of the signature stays as it is. The variables are linked to, not copied.

    Raises:
        ModelError: the graph of ``folder`` cannot be read.
        OSError: something cannot be written.
        ValueError: the object graph is not that of a SavedModel with such a signature.
    """
    model = SavedModelFolder(folder).read_graph()
    (graph,) = model.meta_graphs
    nodes = graph.object_graph_def.nodes
    try:
        children = {child.local_name: child.node_id for child in nodes[0].children}
        signatures = nodes[children["signatures"]]
        (own,) = (child for child in signatures.children if child.local_name == name)
        function = nodes[own.node_id].bare_concrete_function.concrete_function_name
    except (IndexError, KeyError) as error:
        raise ValueError(f"no object graph with the signature {name}: {error}") from error
    _keep(signatures.children, lambda child: child.local_name == name)
    _keep(nodes[0].children, lambda child: child.local_name in _KEPT)
    for index, node in enumerate(nodes):
        if node.WhichOneof("kind") in ("function", "bare_concrete_function") and index != own.node_id:
            node.Clear()  # others refer to nodes by their number, so it stays, as an object with nothing in it
            node.user_object.identifier = "_generic_user_object"
            node.user_object.version.producer = node.user_object.version.min_consumer = 1
    for key in set(graph.object_graph_def.concrete_functions) - {function}:
        del graph.object_graph_def.concrete_functions[key]
    needed = _reachable({f.signature.name: f for f in graph.graph_def.library.function}, function)
    _keep(graph.graph_def.library.function, lambda f: f.signature.name in needed)
    made = SavedModelFolder(target)
    made.graph_file.write_bytes(model.SerializeToString())
    made.variables.parent.symlink_to(SavedModelFolder(folder).variables.parent.resolve())


def _keep(repeated: Any, which: Any) -> None:
    kept = [part for part in repeated if which(part)]
    del repeated[:]
    repeated.extend(kept)


def _reachable(library: dict[str, Any], start: str) -> set[str]:
    """Return the functions that ``start`` calls, itself included."""
    found: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name in found or name not in library:
            continue
        found.add(name)
        for node in library[name].node_def:
            todo.append(node.op)
            for value in node.attr.values():
                todo += [value.func.name, *(function.name for function in value.list.func)]
    return found
