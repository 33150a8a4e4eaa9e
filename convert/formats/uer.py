"""UER-py's GPT-2: one ``.bin`` file, a state dict, as gpt2-chinese-lyric was trained with.

    <name>.bin            tensors by UER's names
    config.json           beside it, where there is one: UER's own keys, with the number of heads

Sources: ``uer/layers``, ``uer/encoders/transformer_encoder.py``, ``models/gpt2/config.json`` and
``scripts/convert_gpt2_from_uer_to_huggingface.py`` of UER-py. Linear layers are PyTorch's, ``[out, in]``; Q, K and V
are apart. Layer norms divide by the unbiased deviation plus 1e-6 (``tf_model.config.UER``), gelu is the tanh form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.heads import resolve_head_count
from convert.formats.huggingface import read_json, write_json
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    check_tensors,
    concat_rows,
    copy_whole,
    count_layers,
    matrix_shape,
    torch_tensors,
)
from convert.formats.tokenizer_files import has_tokenizer
from convert.tensors import Array, DType, same_values
from convert.torch_format.reader import load
from convert.torch_format.torch_file import TorchTensor
from convert.torch_format.writer import Pending, writing
from support.errors import CheckpointError
from support.messages import list_names, short_repr
from tf_model.config import TANH_GELU, UER, ConfigError, GPT2Config

NAME = "uer"
FILE, CONFIG = "model.bin", "config.json"
EPSILON = 1e-6
"""Of UER's layer norms; no file says it."""
_ACTIVATIONS = {"gelu_fast": "gelu_new", "gelu": "gelu", "relu": "relu"}
"""UER's names -> transformers'."""

_ONLY = {
    "encoder": "transformer", "mask": "causal", "layernorm": "normal", "layernorm_positioning": "pre",
    "feed_forward": "dense", "remove_attention_scale": False, "remove_transformer_bias": False,
    "remove_embedding_layernorm": True, "relative_position_embedding": False, "rotary_position_embedding": False,
    "factorized_embedding_parameterization": False, "parameter_sharing": False,
}  # fmt: skip
"""Options of UER-py that make another model, and what they have to be where they are said."""

TENSORS: Mapping[str, tuple[str, ...]] = {
    "wte.weight": ("embedding.word.embedding.weight",),
    "wpe.weight": ("embedding.pos.embedding.weight",),
    **{
        f"h.{{}}.{ours}.{kind}": tuple(f"encoder.transformer.{{}}.{theirs}.{kind}" for theirs in names)
        for ours, names in (
            ("attn.c_attn", tuple(f"self_attn.linear_layers.{i}" for i in range(3))),
            ("attn.c_proj", ("self_attn.final_linear",)),
            ("mlp.c_fc", ("feed_forward.linear_1",)),
            ("mlp.c_proj", ("feed_forward.linear_2",)),
        )
        for kind in ("weight", "bias")
    },
    **{
        f"h.{{}}.ln_{i}.{ours}": (f"encoder.transformer.{{}}.layer_norm_{i}.{theirs}",)
        for i in (1, 2)
        for ours, theirs in (("weight", "gamma"), ("bias", "beta"))
    },
    "ln_f.weight": ("encoder.layer_norm.gamma",),
    "ln_f.bias": ("encoder.layer_norm.beta",),
    "lm_head.weight": ("target.lm.output_layer.weight",),
}
"""Canonical name -> UER's, one below the other where they are several; ``{}`` is the layer."""

_OLD_NAMES = {
    "embedding.word_embedding.weight": "embedding.word.embedding.weight",
    "embedding.position_embedding.weight": "embedding.pos.embedding.weight",
    "target.output_layer.weight": "target.lm.output_layer.weight",
}
"""Before UER-py of 2023 -> since then."""


def source_names(name: str) -> tuple[str, ...]:
    """UER's names of the canonical tensor ``name``."""
    layer = re.match(r"h\.(\d+)\.", name)
    templates = TENSORS[f"h.{{}}.{name[layer.end() :]}" if layer else name]
    return tuple(template.format(layer[1] if layer else "") for template in templates)


def find(path: Path) -> Path | None:
    """The file that ``path`` is or, as the only ``.bin``, holds, if its tensors have UER's names."""
    files = [path] if path.is_file() else sorted(path.glob("*.bin"))
    if len(files) != 1:
        return None
    try:
        state = load(files[0])
    except CheckpointError:
        return None
    first = source_names("wte.weight")[0]
    known = isinstance(state, dict) and any(name in _without_prefix(state) for name in (first, *_OLD_NAMES))
    return files[0] if known else None


def _without_prefix(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """As ``nn.DataParallel`` puts one before every name."""
    if all(isinstance(name, str) and name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {_OLD_NAMES.get(name, name): value for name, value in state.items()}


def open_uer(
    path: Path, *, n_head: int | None = None, iteration: str | None = None, allow_unknown_heads: bool = False
) -> Checkpoint:
    """The checkpoint in the file ``path``, or in the folder that has it; see ``open_megatron``.

    Raises:
        CheckpointError: anything that keeps the file from being a whole model.
    """
    if iteration is not None:
        raise CheckpointError(f"{path}: UER's files have no iterations: leave out --iteration {iteration}")
    files = [path] if path.is_file() else sorted(path.glob("*.bin"))
    if len(files) != 1:
        raise CheckpointError(
            f"{path}: expected one .bin file, found {list_names((f.name for f in files), 9) or 'none'}"
        )
    (file,) = files
    state = load(file)
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: expected a dict of tensors, found {short_repr(state)}")
    try:
        return _open(file, torch_tensors(file, _without_prefix(state)), n_head, allow_unknown_heads)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or file}: cannot be read: {error.strerror}") from error


def _open(file: Path, sources: dict[str, LazyTensor], n_head: int | None, allow_unknown_heads: bool) -> Checkpoint:
    (embedding,), (head,) = source_names("wte.weight"), source_names("lm_head.weight")
    vocab_size, n_embd = matrix_shape(file, sources, embedding)
    n_positions, _ = matrix_shape(file, sources, source_names("wpe.weight")[0])
    n_inner, _ = matrix_shape(file, sources, source_names("h.0.mlp.c_fc.weight")[0])
    n_layer = count_layers(file, sources, "encoder.transformer.")
    said = _config_of(file, {"emb_size": n_embd, "feedforward_size": n_inner, "layers_num": n_layer})
    heads, activation = said.get("heads_num"), said.get("hidden_act", "gelu_fast")
    if heads is not None and type(heads) is not int:
        raise CheckpointError(f"{file.with_name(CONFIG)}: heads_num is {short_repr(heads)}: expected a number")
    if not isinstance(activation, str):
        raise CheckpointError(f"{file.with_name(CONFIG)}: hidden_act is {short_repr(activation)}: expected a name")
    config = GPT2Config(
        vocab_size, n_positions, n_embd, n_layer,
        resolve_head_count(file, n_embd, 1, n_head, allow_unknown_heads, heads),
        n_inner, _ACTIVATIONS.get(activation, activation), EPSILON, UER,
        tie_word_embeddings=head not in sources or _is_same(sources[embedding], sources[head]),
    )  # fmt: skip
    shapes = config.tensor_shapes()
    expected = {
        source: (shape[0] // len(names), *shape[1:])
        for name, shape in shapes.items()
        for names in [source_names(name)]
        for source in names
    }
    check_tensors(
        file, {name: s for name, s in sources.items() if name != head or name in expected}, ExpectedTensors(expected)
    )
    recipes = {name: TensorRecipe([sources[n] for n in names], concat_rows if len(names) > 1 else copy_whole)
             for name in shapes for names in [source_names(name)]}  # fmt: skip
    tokenizer = file.parent if has_tokenizer(file.parent) else None
    return TensorMapCheckpoint(config, recipes, CheckpointInfo(NAME), tokenizer=tokenizer)


def _config_of(file: Path, sizes: Mapping[str, int]) -> Mapping[str, Any]:
    """UER's ``config.json`` beside the file, checked against the tensors; nothing where there is none of UER's."""
    path = file.with_name(CONFIG)
    if not path.is_file():
        return {}
    values = read_json(path)
    if "heads_num" not in values and "emb_size" not in values:
        return {}
    for key, size in sizes.items():
        if values.get(key, size) != size:
            raise CheckpointError(f"{path}: {key} is {short_repr(values[key])}, but the tensors have {size}")
    for key, needed in _ONLY.items():
        if values.get(key, needed) != needed:
            raise CheckpointError(
                f"{path}: {key} is {short_repr(values[key])}: no GPT-2, where it is {json.dumps(needed)}"
            )
    return values


def _is_same(embedding: LazyTensor, head: LazyTensor) -> bool:
    """Whether the output matrix is the embedding: in one storage, or a copy of it."""
    if isinstance(embedding, TorchTensor) and isinstance(head, TorchTensor):
        ours, theirs = embedding.ref, head.ref
        if (ours.storage, ours.offset, ours.shape) == (theirs.storage, theirs.offset, theirs.shape):
            return True
    return embedding.shape == head.shape and same_values(embedding.numpy(), head.numpy())


def check_writable(checkpoint: Checkpoint) -> None:
    """Checks that UER-py has such a model.

    Raises:
        CheckpointError: it has not, and why.
    """
    config, file = checkpoint.config, checkpoint.info.where
    if config.scale_attn_by_inverse_layer_idx:
        raise CheckpointError(f"{file}: attention scaled by the layer's number: UER-py has no such model")
    if config.activation_function not in (*TANH_GELU, *_ACTIVATIONS.values()):
        raise CheckpointError(f"{file}: the activation {config.activation_function}: UER-py has gelu and relu")


def uer_bytes(config: GPT2Config, weights: int, itemsize: int) -> int:
    """Bytes of the file: the weights, the embedding again as output matrix, names and headers."""
    head = config.vocab_size * config.n_embd * itemsize if config.tie_word_embeddings else 0
    return weights + head + 1000 * len(TENSORS) * config.n_layer + 10_000


def write_uer(
    folder: Path, checkpoint: Checkpoint, dtypes: Mapping[str, DType], read: Callable[[str, DType], Array]
) -> list[Path]:
    """Writes ``model.bin`` and UER's ``config.json`` into ``folder``; gives the former.

    The output matrix is written whether it is tied or not: UER-py leaves what it does not find as it was made, without
    a word.

    Raises:
        CheckpointError: as ``check_writable``.
        OSError: a file cannot be written. What ``read`` raises comes through, too.
    """
    check_writable(checkpoint)
    config = checkpoint.config
    order = [(name, name) for name in config.tensor_shapes()]
    if config.tie_word_embeddings:
        order.append(("lm_head.weight", "wte.weight"))
    shapes = config.tensor_shapes()
    tensors = {}
    for name, values in order:
        for source in (names := source_names(name)):
            shape = shapes[values]
            tensors[source] = Pending((shape[0] // len(names), *shape[1:]), dtypes[values])
    with writing(folder / FILE, tensors) as writer:
        for name, values in order:
            whole_tensor = read(values, dtypes[values])
            size = len(whole_tensor) // len(source_names(name))
            for start in range(0, len(whole_tensor), size):
                writer.write(whole_tensor[start : start + size])
    activation = config.activation_function
    write_json(
        folder / CONFIG,
        {
            "emb_size": config.n_embd, "feedforward_size": config.n_inner, "hidden_size": config.n_embd,
            "hidden_act": "gelu_fast" if activation in TANH_GELU else activation, "heads_num": config.n_head,
            "layers_num": config.n_layer, "max_seq_length": config.n_positions, "dropout": 0.1,
            "data_processor": "lm", "embedding": ["word", "pos"], "remove_embedding_layernorm": True,
            "encoder": "transformer", "mask": "causal", "layernorm_positioning": "pre", "target": ["lm"],
            "tie_weights": config.tie_word_embeddings,
        },
    )  # fmt: skip
    return [folder / FILE]
