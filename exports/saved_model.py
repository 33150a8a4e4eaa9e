"""Write a SavedModel one tensor at a time: the weights are never in memory together.

``tf.saved_model.save`` needs every variable filled. Here the graph is built over variables whose memory is never
touched and saved without its checkpoint; then ``tensor_bundle`` writes the checkpoint, each tensor under the key that
the object graph gives it. A variable of the graph has the weights of all blocks, ``[L, ...]``; the checkpoint names the
tensor of each block, too, as part of it: readers find every tensor under its canonical name (``weight_key``).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from exports.saved_model_folder import SIGNATURES
from exports.shared_functions import SharedFunctions
from exports.signatures import signature_functions
from exports.tensor_bundle.writer import BundleWriter
from support.errors import UserError
from tf_model import quantization
from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2
from tf_model.precision import OFFSET, SCALE, STACKS, WEIGHTS, stack_name
from tf_model.tensorflow_internals import object_graph, save_graph
from tokenization.special_tokens import SpecialTokens

_OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


def write_saved_model(
    folder: Path,
    config: GPT2Config,
    dtype: str,
    tokens: SpecialTokens,
    read: Callable[[str, np.dtype], np.ndarray],
    signatures: Sequence[str] = SIGNATURES,
) -> tuple[Path, str]:
    """Write graph and weights of a GPT-2 into ``folder``, which exists and is empty.

    Args:
        folder: where ``saved_model.pb`` and ``variables/`` go.
        config: the sizes.
        dtype: of matrices and biases, one of ``tf_model.precision.DTYPES``; layer norms stay float32.
        tokens: the padding id is part of the graph.
        signatures: names of those to write; the graph holds nothing of the others. One signature makes a graph of a
            quarter of the size, which is quicker to write and to load.
        read: returns the tensor of a canonical name in the dtype asked for. It is called once for each tensor, in the
            canonical order of one block: the first tensor of every block, then the second of every block.

    Returns:
        the one file with all weights, and its hexadecimal SHA-256.

    Raises:
        UserError: ``signatures`` is empty, or has a name that does not exist.
        OSError: the weights cannot be written.
        tf.errors.OpError: the graph cannot be written.
        ValueError: a tensor that ``read`` gives has another shape than the model's.
    """
    keys, slots = _write_graph(folder, config, dtype, tokens, check_names(signatures))
    gc.collect()  # the graph and its functions, some 200 MB at 32 layers, refer to each other
    variables = folder / "variables"
    variables.mkdir(exist_ok=True)
    with BundleWriter(variables / "variables") as bundle:
        bundle.add_string(_OBJECT_GRAPH_KEY, keys)
        for name, members in _members(config).items():
            _write_slot(bundle, name, members, slots, dtype, read)
        return bundle.data, bundle.finish()


def weight_key(name: str) -> str:
    """Return the checkpoint's key of the tensor with the canonical ``name``; TensorFlow doubles the dots of names."""
    return f"{WEIGHTS}/{name.replace('.', '..')}/.ATTRIBUTES/VARIABLE_VALUE"


def _stack_key(name: str) -> str:
    return weight_key(name).replace(WEIGHTS, STACKS, 1)


def _members(config: GPT2Config) -> dict[str, list[str]]:
    """Return the variables of the graph, and the canonical tensors that are in each."""
    members: dict[str, list[str]] = {}
    for name in config.tensor_shapes():
        members.setdefault(stack_name(name) or name, []).append(name)
    return members


def _write_slot(
    bundle: BundleWriter,
    name: str,
    members: Sequence[str],
    slots: Mapping[str, _Slot],
    dtype: str,
    read: Callable[[str, np.dtype], np.ndarray],
) -> None:
    """Write the tensors that make up a variable: in its dtype, or as int8 followed by scales and offsets."""
    slot = slots[name]
    if slot.dtype != np.int8:
        _add(bundle, slot, members, "", lambda member: read(member, slot.dtype))
        return
    # Quantized one at a time, while the variable is written; only the scales and offsets of all tensors are kept.
    scales: dict[str, np.ndarray] = {}
    offsets: dict[str, np.ndarray] = {}

    def quantized(member: str) -> np.ndarray:
        matrix = read(member, np.dtype(np.float32))
        weight, scales[member], offsets[member] = quantization.stored(member, matrix, dtype)
        return weight

    _add(bundle, slot, members, "", quantized)
    _add(bundle, slots[name + SCALE], members, SCALE, scales.__getitem__)
    _add(bundle, slots[name + OFFSET], members, OFFSET, offsets.__getitem__)


def _add(
    bundle: BundleWriter, slot: _Slot, members: Sequence[str], suffix: str, value_of: Callable[[str], np.ndarray]
) -> None:
    """Write a variable's tensors one after the other: those of ``members``, with ``suffix`` after their names."""
    stacked = stack_name(members[0]) is not None
    shape = slot.shape[stacked:]

    def values() -> Iterator[np.ndarray]:
        for member in members:
            value = value_of(member)
            if value.shape != shape:
                raise ValueError(f"{member}{suffix}: expected shape {shape}, found {value.shape}")
            yield value

    keys = [weight_key(member + suffix) for member in members] if stacked else []
    bundle.add_blocks(slot.key, slot.dtype, slot.shape, values(), keys)


class _Slot(NamedTuple):
    """A variable of the graph: its key in the checkpoint, its shape and dtype."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype


def check_names(signatures: Sequence[str]) -> tuple[str, ...]:
    """Return the names without repetitions, in the order of ``SIGNATURES``.

    Raises:
        UserError: there are none, or one does not exist.
    """
    names = [signatures] if isinstance(signatures, str) else list(signatures)
    if unknown := [name for name in names if name not in SIGNATURES]:
        raise UserError(f"no signature is called {unknown[0]!r}: expected some of {', '.join(SIGNATURES)}")
    if not names:
        raise UserError(f"no signatures: a SavedModel needs at least one of {', '.join(SIGNATURES)}")
    return tuple(name for name in SIGNATURES if name in names)


def _write_graph(
    folder: Path, config: GPT2Config, dtype: str, tokens: SpecialTokens, names: Sequence[str]
) -> tuple[bytes, dict[str, _Slot]]:
    """Write everything but the weights; return the object graph and, for each variable, where it goes."""
    shared = SharedFunctions(GPT2(config, dtype=dtype, initialize=False), tokens)
    functions = signature_functions(shared, names)
    root = tf.Module()
    for name, child in {WEIGHTS: shared.weights, STACKS: shared.stacks.variables, **functions}.items():
        setattr(root, name, child)  # functions with defaults in Python too, which ``root.signatures`` has not
    save_graph(root, folder, functions)
    keys = object_graph(root)
    slots = {
        # TensorFlow's bfloat16 in numpy is ml_dtypes', as everywhere here.
        name: _Slot(key(name), tuple(variable.shape), np.dtype(variable.dtype.as_numpy_dtype))
        for key, variables in ((weight_key, root.weights), (_stack_key, root.stacks))
        for name, variable in variables.items()
    }
    written = {attribute.checkpoint_key for node in keys.nodes for attribute in node.attributes}
    assert written == {slot.key for slot in slots.values()}, "TensorFlow calls the variables otherwise"
    return keys.SerializeToString(), slots
