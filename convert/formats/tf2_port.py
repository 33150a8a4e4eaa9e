"""CPM-LM-TF2, the first port of CPM to TensorFlow 2: a SavedModel of it, or its weights.

    cpm-lm-tf2_v2/saved_model.pb                         the graph: not looked at, and never run
    cpm-lm-tf2_v2/variables/variables.index
    cpm-lm-tf2_v2/variables/variables.data-00000-of-00001
    weights.index, weights.data-00000-of-00001           of ``save_weights`` and ``tf.train.Checkpoint``
    weights.h5                                           of ``save_weights("weights.h5")``

Sources: ``tf2gpt/model.py`` and ``load_pytorch_v2.ipynb`` of qhduan/CPM-LM-TF2. Q, K and V are three layers, matrices
are ``[in, out]``, the output matrix is the token embedding, the epsilon is 1e-5. There is no configuration.

A tensor is known by its variable's name (``gpt/layer00/attention/query_layer/kernel``), else by the path of the object
that holds it (``transformers/0/attn/query/kernel``), which is what Keras 3 leaves of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    check_tensors,
    concat_rows,
    concat_transposed,
    copy_whole,
    count_layers,
    is_linear,
    layer_template,
    matrix_shape,
)
from convert.formats.tf_checkpoint import INDEX, open_bundle, prefix_of, prefixes
from convert.formats.tf_variables import has_object_graph, variable_names
from convert.formats.weights import open_weights
from convert.tensors import Array
from exports.saved_model_folder import CONFIG, SavedModelFolder
from support.errors import CheckpointError
from support.messages import list_names
from tf_model.config import GPT2Config
from tokenization.special_tokens import CPM_TOKENS

NAME = "tf2-port"
NAMES: Mapping[str, tuple[str, ...]] = {
    "wte.weight": ("embedding/embeddings",),
    "wpe.weight": ("position_embeddings",),
    "h.{}.attn.c_attn.weight": tuple(f"layer{{}}/attention/{kind}_layer/kernel" for kind in ("query", "key", "value")),
    "h.{}.attn.c_attn.bias": tuple(f"layer{{}}/attention/{kind}_layer/bias" for kind in ("query", "key", "value")),
    "h.{}.attn.c_proj.weight": ("layer{}/attention/context_projection_layer/kernel",),
    "h.{}.attn.c_proj.bias": ("layer{}/attention/context_projection_layer/bias",),
    "h.{}.ln_1.weight": ("layer{}/LayerNorm_mlp_ln0/gamma",),
    "h.{}.ln_1.bias": ("layer{}/LayerNorm_mlp_ln0/beta",),
    "h.{}.ln_2.weight": ("layer{}/LayerNorm_mlp_ln1/gamma",),
    "h.{}.ln_2.bias": ("layer{}/LayerNorm_mlp_ln1/beta",),
    "h.{}.mlp.c_fc.weight": ("layer{}/intermediate/kernel",),
    "h.{}.mlp.c_fc.bias": ("layer{}/intermediate/bias",),
    "h.{}.mlp.c_proj.weight": ("layer{}/output/kernel",),
    "h.{}.mlp.c_proj.bias": ("layer{}/output/bias",),
    "ln_f.weight": ("LayerNorm_final_norm/gamma",),
    "ln_f.bias": ("LayerNorm_final_norm/beta",),
}
"""Canonical name -> the port's names without what stands in front; ``{}`` is the layer, in two digits there."""
_BY_NAME = re.compile(
    r"(?:.*/)?(?:(embedding)(?:_\d+)?/embeddings"
    r"|(position_embeddings|LayerNorm_final_norm/(?:gamma|beta))"
    r"|layer(\d{1,4})/((?:attention/(?:query|key|value|context_projection)_layer|intermediate|output)/(?:kernel|bias)"
    r"|LayerNorm_mlp_ln[01]/(?:gamma|beta)))(?::0)?",
    re.ASCII,
)
_OBJECTS = {
    "attn/query": "attention/query_layer",
    "attn/key": "attention/key_layer",
    "attn/value": "attention/value_layer",
    "attn/proj": "attention/context_projection_layer",
    "ln0": "LayerNorm_mlp_ln0",
    "ln1": "LayerNorm_mlp_ln1",
    "intermediate_layer": "intermediate",
    "output_layer": "output",
}
"""Attributes of the port's classes -> the names of their layers."""
_BY_PATH = re.compile(
    r"(?:.*/)?(?:(token_emb)/_?embeddings|(pos_emb)/emb|final_norm/(gamma|beta)"
    rf"|transformers/(\d{{1,4}})/({'|'.join(_OBJECTS)})/_?(kernel|bias|gamma|beta))",
    re.ASCII,
)
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_OTHERS = {
    "top_query": "a PanGu-alpha, whose last block has a query of its own",
    "LayerNorm_embed_norm": "a Grover (imcaspar's gpt2-ml), which has a layer norm after the embedding",
}
"""What stands in a name -> the model that has it."""


def _find(candidate: Candidate) -> Path | None:
    """Return the checkpoint that a candidate stands for, as TensorFlow calls it: the beginning of its files' names.

    A SavedModel with a configuration is one of this project's; a checkpoint without objects is one of TensorFlow 1's.
    """
    path = candidate.path
    if candidate.is_dir:
        folder = SavedModelFolder(path)
        if folder.exists():
            return None if folder.config_file.exists() else folder.variables
        prefix = next((path / name for name in prefixes(candidate.entries())), None)
    elif candidate.is_file:
        name = prefix_of(path)
        prefix = None if name is None else path.with_name(name)
    else:
        prefix = path if path.name else None
    return prefix if prefix is not None and has_object_graph(prefix) else None


def _recognise(candidate: Candidate) -> bool:
    """Whether there is a SavedModel or a checkpoint that may be the port's, or weights of Keras with its names."""
    names = candidate.known_tensors(NAME)
    return _find(candidate) is not None or any(name.endswith(".attention.query_layer.kernel") for name in names)


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    where, tensors = _tensors(candidate)
    config = _config(where, tensors, options)
    shapes = config.tensor_shapes()
    expected = {
        name: (shape[0] // len(_names(canonical)), *shape[1:])[:: -1 if is_linear(canonical) else 1]
        for canonical, shape in shapes.items()
        for name in _names(canonical)
    }
    check_tensors(where, tensors, ExpectedTensors(expected))
    recipes = {
        canonical: TensorRecipe([tensors[name] for name in _names(canonical)], _assemble(canonical))
        for canonical in shapes
    }
    notes: tuple[str, ...] = ()
    if options.activation_function is None:
        notes = (
            f"{where}: CPM-LM-TF2 computes its gelu with erf, but CPM was trained with the tanh form, which is "
            "taken here: --activation-function gelu (activation_function= in Python) gives the port's own numbers",
        )
    return TensorMapCheckpoint(
        config,
        recipes,
        CheckpointInfo(NAME, notes=notes),
        tokens=CPM_TOKENS if config.vocab_size > 7 else None,  # its ids are 5 and 7
    )


def _tensors(candidate: Candidate) -> tuple[Path, dict[str, LazyTensor]]:
    """Return the file with the port's tensors, for messages, and the tensors by the names of ``NAMES``.

    Raises:
        CheckpointError: there are none, or those of another model.
    """
    prefix = _find(candidate)
    if prefix is None:
        weights, known = open_weights(candidate, NAME)
        names = {name: port_name("", name.replace(".", "/")) for name in known.tensors}
        return weights.where, {name: known.tensors[found] for found, name in names.items() if name is not None}
    if candidate.is_dir and prefix.parent == candidate.path and len(several := prefixes(candidate.entries())) > 1:
        raise CheckpointError(f"{candidate.path}: several checkpoints: give one of {list_names(several, 5)}")
    return _bundle_tensors(candidate.path, prefix)


def _bundle_tensors(path: Path, prefix: Path) -> tuple[Path, dict[str, LazyTensor]]:
    """Return what ``_tensors`` does, of a checkpoint of TensorFlow 2."""
    stranger = f"{path}: a SavedModel that gpt2-savedmodel did not write: it has no assets/{CONFIG}"
    if not prefix.with_name(prefix.name + INDEX).is_file():
        raise CheckpointError(f"{stranger}, and no {prefix.parent.name}/{prefix.name}{INDEX}")
    names = variable_names(prefix)
    for part, model in _OTHERS.items():
        if any(part in name for name in names.values()):
            raise CheckpointError(f"{path}: {model}: not a GPT-2, and not supported")
    wanted = {key: name for key, full_name in names.items() if (name := port_name(key, full_name)) is not None}
    if "embedding/embeddings" not in wanted.values() or not any("attention" in name for name in wanted.values()):
        found = list_names(sorted(set(names.values()))) or "none"
        raise CheckpointError(f"{stranger}, and its variables are not those of CPM-LM-TF2: found {found}")
    tensors: dict[str, LazyTensor] = {}
    bundle, files = open_bundle(prefix, wanted.__contains__)
    for key, tensor in bundle.items():
        name = wanted[key]
        if name in tensors:
            raise CheckpointError(f"{path}: two variables {list_names([name])}: several models, save one of them alone")
        tensors[name] = dataclasses.replace(tensor, name=name)
    return files[0] if len(files) == 1 else prefix.with_name(prefix.name + INDEX), tensors


def port_name(key: str, full_name: str) -> str | None:
    """Return a variable's name in ``NAMES``, given its key in the checkpoint; None where the port has no such one."""
    path = key.removesuffix(_SUFFIX)
    for name in (full_name, path):
        if match := _BY_NAME.fullmatch(name):
            embedding, alone, layer, rest = match.groups()
            return "embedding/embeddings" if embedding else alone or f"layer{int(layer):02d}/{rest}"
    if match := _BY_PATH.fullmatch(path):
        token, position, norm, layer, part, kind = match.groups()
        if token or position:
            return "embedding/embeddings" if token else "position_embeddings"
        return f"LayerNorm_final_norm/{norm}" if norm else f"layer{int(layer):02d}/{_OBJECTS[part]}/{kind}"
    return None


def _config(where: Path, tensors: Mapping[str, LazyTensor], options: OpenOptions) -> GPT2Config:
    """Return the sizes by the tensors, and the heads as the published models have them, or as given."""
    vocab_size, n_embd = matrix_shape(where, tensors, "embedding/embeddings")
    n_positions, _ = matrix_shape(where, tensors, "position_embeddings")
    n_layer = count_layers(where, tensors, "layer")
    _, n_inner = matrix_shape(where, tensors, "layer00/intermediate/kernel")
    heads = options.heads(where, n_embd)
    activation = options.activation_function or "gelu_new"
    return GPT2Config(vocab_size, n_positions, n_embd, n_layer, heads, n_inner=n_inner, activation_function=activation)


def _names(canonical: str) -> list[str]:
    """Return the port's names of the tensors that make a canonical one, one below the other."""
    row, layer = layer_template(canonical)
    return [name.format(f"{int(layer):02d}" if layer else "") for name in NAMES[row]]


def _assemble(canonical: str) -> Callable[[Sequence[Array], Array], None]:
    """Return how a canonical tensor is made of the port's."""
    if is_linear(canonical):
        return concat_transposed
    return concat_rows if len(_names(canonical)) > 1 else copy_whole


FORMAT = Format(
    NAME,
    recognise=_recognise,
    open=_open,
    without_iterations="a SavedModel",
)
