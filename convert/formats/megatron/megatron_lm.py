"""Newer Megatron-LM's GPT: ``model`` holds ``language_model``; tensor x pipeline parallel, with ``args``.

    <root>/latest_checkpointed_iteration.txt
    <root>/iter_0000500/mp_rank_00/model_optim_rng.pt            tensor parallel
    <root>/iter_0000500/mp_rank_00_000/model_optim_rng.pt        tensor parallel, pipeline stage

Sources: ``megatron/checkpointing.py`` (paths, ``fix_query_key_value_ordering``), ``megatron/model/language_model.py``
(names) and ``megatron/arguments.py`` of Megatron-LM. The rows of a rank's fused projection are, by
``checkpoint_version``: 0 ``[3, heads, head_dim]``, 1.0 ``[heads, head_dim, 3]``, 2.0 and 3.0 ``[heads, 3, head_dim]``.
Layers are counted from 0 on every stage; the last has the final layer norm and a copy of the tied embedding.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.heads import resolve_head_count
from convert.formats.megatron.rank_files import RankFile, resolve_rank_files
from convert.formats.megatron.sharding import (
    COLUMN,
    QKV,
    REPLICATED,
    ROW,
    ShardSpec,
    check_shards,
    merge,
    shard_shape,
)
from convert.formats.tensor_map import LazyTensor, TensorMapCheckpoint, TensorRecipe, matrix_shape, torch_tensors
from convert.tensors import Array, assign, same_values
from convert.torch_format.pickle_values import Placeholder
from convert.torch_format.reader import load
from support.errors import CheckpointError
from support.messages import list_names, pluralize, short_repr
from tf_model.config import ConfigError, GPT2Config

NAME = "megatron-lm"
VERSIONS = ("0", "1.0", "2.0", "3.0")
TENSORS: Mapping[str, tuple[str, ShardSpec]] = {
    "wte.weight": ("embedding.word_embeddings.weight", COLUMN),
    "wpe.weight": ("embedding.position_embeddings.weight", REPLICATED),
    **{
        f"h.{{}}.{ours}.{kind}": (f"layers.{{}}.{theirs}.{kind}", split)
        for ours, theirs, weight, bias in (
            ("ln_1", "input_layernorm", REPLICATED, REPLICATED),
            ("attn.c_attn", "attention.query_key_value", QKV, QKV),
            ("attn.c_proj", "attention.dense", ROW, REPLICATED),
            ("ln_2", "post_attention_layernorm", REPLICATED, REPLICATED),
            ("mlp.c_fc", "mlp.dense_h_to_4h", COLUMN, COLUMN),
            ("mlp.c_proj", "mlp.dense_4h_to_h", ROW, REPLICATED),
        )
        for kind, split in (("weight", weight), ("bias", bias))
    },
    "ln_f.weight": ("final_layernorm.weight", REPLICATED),
    "ln_f.bias": ("final_layernorm.bias", REPLICATED),
    "lm_head.weight": ("output_layer.weight", COLUMN),
}
"""Canonical name -> Megatron-LM's below ``language_model`` and ``encoder``, and the split; ``{}`` is the layer."""

_ORDERS: Mapping[str, tuple[tuple[Any, ...], int]] = {
    "0": ((3, "heads", -1), 0),
    "1.0": (("heads", -1, 3), 2),
    "2.0": (("heads", 3, -1), 1),
    "3.0": (("heads", 3, -1), 1),
}
"""What the rows of a rank's fused projection are, from the outermost on, and which of it is Q, K or V."""

_TIED = "word_embeddings_for_head.weight"
_LAYER = re.compile(r"layers\.(\d{1,4})\.")
_ONLY = {
    "position_embedding_type": "learned_absolute",
    "swiglu": False,
    "normalization": "LayerNorm",
    "group_query_attention": False,
    "apply_residual_connection_post_layernorm": False,
    "apply_layernorm_1p": False,
    "num_experts": None,
    "multi_query_attention": False,
    "squared_relu": False,
    "add_bias_linear": True,
}
"""``args`` that make another model than a GPT-2, and what they have to be."""


class _Shard(NamedTuple):
    """One file: its tensors by normalised name, its args, and what of ``top`` is left out."""

    file: Path
    tensors: dict[str, LazyTensor]
    args: Mapping[str, Any]
    version: str
    iteration: int | None
    left_out: list[str]


def source_name(name: str) -> tuple[str, ShardSpec]:
    """Megatron-LM's name, in the older spelling, and the split of the canonical tensor ``name``."""
    layer = re.match(r"h\.(\d+)\.", name)
    template, kind = TENSORS[f"h.{{}}.{name[layer.end() :]}" if layer else name]
    return template.format(layer[1] if layer else ""), kind


def thirds(part: Array, version: str, heads: int) -> Array:
    """A rank's fused projection as a view ``[3, heads, head_dim, ...]``, whatever the order of its rows."""
    sizes, axis = _ORDERS[version]
    taken_apart = part.reshape(*(heads if size == "heads" else size for size in sizes), *part.shape[1:])
    return np.moveaxis(taken_apart, axis, 0)


def is_one(file: Path) -> bool:
    """Whether the file is a rank of this format: its ``model`` has a ``language_model``."""
    try:
        top = load(file)
    except CheckpointError:
        return False
    model = top.get("model") if isinstance(top, dict) else None
    return isinstance(model, dict) and "language_model" in model


def open_megatron_lm(
    path: Path, *, n_head: int | None = None, iteration: str | None = None, allow_unknown_heads: bool = False
) -> Checkpoint:
    """The checkpoint at ``path``; see ``open_megatron``.

    Raises:
        CheckpointError: anything that keeps the files from being one whole model.
    """
    try:
        stages = _by_stage(resolve_rank_files(path, iteration))
        return _open(path, stages, n_head, allow_unknown_heads)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def _by_stage(files: Sequence[RankFile]) -> list[list[_Shard]]:
    """Load the files of all ranks, those of one pipeline stage together."""
    stages = itertools.groupby(files, lambda file: file.stage)
    return [[_load_shard(file.path) for file in ranks] for _, ranks in stages]


def _load_shard(file: Path) -> _Shard:
    top = load(file)
    model = top.get("model") if isinstance(top, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("language_model"), dict):
        found = list_names(top, 9) if isinstance(top, dict) else short_repr(top)
        raise CheckpointError(f"{file}: expected a dict with 'language_model' under 'model', found {found}")
    flat: dict[str, Any] = {}
    _flatten({**model["language_model"], **{k: v for k, v in model.items() if k != "language_model"}}, "", flat, file)
    args = top.get("args")
    values = args.state if isinstance(args, Placeholder) and isinstance(args.state, dict) else args
    version = _version(file, top.get("checkpoint_version", 0))
    number = top.get("iteration")
    known = {"model", "args", "checkpoint_version", "iteration"}
    left_out = [str(key) for key, value in top.items() if key not in known and value is not None]
    tensors = torch_tensors(file, {name: value for name, value in flat.items() if not name.endswith("_extra_state")})
    values = values if isinstance(values, dict) else {}
    return _Shard(file, tensors, values, version, number if type(number) is int else None, left_out)


def _flatten(values: Mapping[Any, Any], before: str, flat: dict[str, Any], file: Path, depth: int = 0) -> None:
    """Names of nested dicts, joined by points and spelt as older checkpoints spell them."""
    for key, value in values.items():
        if not isinstance(key, str) or depth > 20:
            raise CheckpointError(f"{file}: {short_repr(key)}: expected the name of a tensor: damaged")
        name = f"{before}{key}"
        if isinstance(value, dict):
            _flatten(value, f"{name}.", flat, file, depth + 1)
            continue
        name = re.sub(r"^(transformer|encoder)\.", "", name).replace(".self_attention.", ".attention.")
        name = name.replace("final_norm.", "final_layernorm.").replace("_norm.", "_layernorm.")
        if name in flat:
            raise CheckpointError(f"{file}: two tensors are {list_names([name])}")
        flat[name] = value


def _version(file: Path, value: Any) -> str:
    known = {0: "0", 1: "1.0", 2: "2.0", 3: "3.0"}
    if type(value) not in (int, float) or value not in known:
        raise CheckpointError(
            f"{file}: checkpoint_version is {short_repr(value)}: expected one of {', '.join(VERSIONS)}"
        )
    return known[value]


def _open(path: Path, stages: list[list[_Shard]], n_head: int | None, allow_unknown_heads: bool) -> Checkpoint:
    first, p = stages[0][0], len(stages[0])
    for shard in (shard for ranks in stages for shard in ranks):
        for what, ours, theirs in (
            ("checkpoint_version", shard.version, first.version), ("iteration", shard.iteration, first.iteration)
        ):  # fmt: skip
            if ours != theirs:
                raise CheckpointError(f"{shard.file}: {what} is {ours}, that of {first.file} {theirs}: mixed-up files")
    offsets = _check_names(stages)
    config, rows = _config(path, stages, offsets[-1], n_head, allow_unknown_heads)
    recipes = {}
    for name in config.tensor_shapes():
        ranks, local = _place(name, stages, offsets)
        source, kind = source_name(local)
        sources = [rank.tensors[source] for rank in ranks]
        whole = (rows, *config.tensor_shapes()[name][1:]) if kind is COLUMN and "h." not in name else None
        expected = shard_shape(whole or config.tensor_shapes()[name], kind, p)
        for tensor in sources:
            if tensor.shape != expected:
                raise CheckpointError(
                    f"{tensor.file}: {source}: expected the shape {list(expected)} on each of {pluralize(p, 'rank')}, "
                    f"found {list(tensor.shape)}"
                )
        recipes[name] = TensorRecipe(sources, _put(sources, kind, first.version, config.n_head // p))
    details: dict[str, str | int] = {"checkpoint_version": first.version, "tensor_parallel": p}
    if len(stages) > 1:
        details["pipeline_parallel"] = len(stages)
    if first.iteration:  # 0 is a release
        details["iteration"] = first.iteration
    if rows != config.vocab_size:
        details["padded_vocab_size"] = rows
    left_out = list(dict.fromkeys(name for ranks in stages for shard in ranks for name in shard.left_out))
    tied = [(a.tensors["embedding.word_embeddings.weight"], b.tensors[_TIED])
            for a, b in zip(stages[0], stages[-1], strict=True) if _TIED in b.tensors]  # fmt: skip
    return TensorMapCheckpoint(
        config,
        recipes,
        CheckpointInfo(NAME, details=details, left_out=tuple(left_out)),
        check=(lambda: _check_tied(tied)) if tied else None,
    )


def _place(name: str, stages: list[list[_Shard]], offsets: Sequence[int]) -> tuple[list[_Shard], str]:
    """The ranks that hold a canonical tensor, and its name with the layer counted as they count it."""
    layer = re.match(r"h\.(\d+)\.", name)
    if layer is None:
        return stages[0 if name.startswith("w") else -1], name
    number = int(layer[1])
    stage = next(i for i in range(len(stages)) if number < offsets[i + 1])
    return stages[stage], f"h.{number - offsets[stage]}.{name[layer.end() :]}"


def _check_names(stages: list[list[_Shard]]) -> list[int]:
    """The number of the first layer of every stage, and behind them of all layers.

    Raises:
        CheckpointError: a tensor is missing or unexpected, in any file.
    """
    offsets, problems = [0], []
    untied = any("output_layer.weight" in shard.tensors for shard in stages[-1])
    templates = [source_name(name)[0] for name in TENSORS if not name.startswith(("h.", "lm_head"))]
    for number, ranks in enumerate(stages):
        is_last = number == len(stages) - 1
        count = 1 + max((int(m[1]) for shard in ranks for n in shard.tensors if (m := _LAYER.match(n))), default=-1)
        expected = [
            source_name(f"h.{layer}.{name[5:]}")[0]
            for layer in range(count)
            for name in TENSORS
            if name.startswith("h.")
        ]
        expected += [name for name in templates if (is_last if name.startswith("final") else not number)]
        expected += ["output_layer.weight"] * (untied and is_last)
        optional = {_TIED} if is_last else set()
        for shard in ranks:
            for what, names in (
                ("missing", [name for name in expected if name not in shard.tensors]),
                ("unexpected", [name for name in shard.tensors if name not in {*expected, *optional}]),
            ):
                if names:
                    problems.append(f"{shard.file}: {pluralize(len(names), f'{what} tensor')}: {list_names(names)}")
        offsets.append(offsets[-1] + count)
    if not offsets[-1]:
        problems.append(f"{stages[0][0].file}: no tensors named layers.0...")
    if problems:
        raise CheckpointError("; ".join(problems))
    return offsets


def _config(
    path: Path, stages: list[list[_Shard]], n_layer: int, n_head: int | None, allow_unknown_heads: bool
) -> tuple[GPT2Config, int]:
    """The sizes, from the shapes and checked with ``args``; and the rows of the embedding, padding and all.

    Raises:
        CheckpointError: they contradict each other, or this is no GPT-2.
    """
    first, p = stages[0][0], len(stages[0])
    args, where = first.args, first.file
    for key, value in _ONLY.items():
        if args.get(key, value) != value:
            raise CheckpointError(f"{where}: args.{key} is {short_repr(args[key])}: no GPT-2, where it is {value!r}")
    n_positions, hidden = matrix_shape(where, first.tensors, "embedding.position_embeddings.weight")
    rows = p * matrix_shape(where, first.tensors, "embedding.word_embeddings.weight")[0]
    stage = next(ranks for ranks in stages if "layers.0.mlp.dense_h_to_4h.weight" in ranks[0].tensors)
    inner = p * matrix_shape(where, stage[0].tensors, "layers.0.mlp.dense_h_to_4h.weight")[0]
    for key, size in (
        ("num_layers", n_layer), ("hidden_size", hidden), ("max_position_embeddings", n_positions),
        ("padded_vocab_size", rows), ("ffn_hidden_size", inner), ("tensor_model_parallel_size", p),
        ("pipeline_model_parallel_size", len(stages)),
    ):  # fmt: skip
        if args.get(key) not in (None, size):
            raise CheckpointError(f"{where}: args.{key} is {short_repr(args[key])}, but the files have {size}")
    vocab_size = next((v for k in ("true_vocab_size", "vocab_size") if type(v := args.get(k)) is int), rows)
    if not 0 < vocab_size <= rows:
        raise CheckpointError(f"{where}: args say a vocabulary of {vocab_size}, but the files have {rows} rows")
    heads = _number(where, args, int, "num_attention_heads")
    epsilon = _number(where, args, float, "layernorm_epsilon", "norm_epsilon")
    untied = "output_layer.weight" in stages[-1][0].tensors
    if args.get("untie_embeddings_and_output_weights") not in (None, untied):
        there = "there is one" if untied else "there is none"
        raise CheckpointError(
            f"{where}: args.untie_embeddings_and_output_weights is {short_repr(not untied)}: whether there is an "
            f"output_layer.weight, but {there}"
        )
    is_erf = args.get("bias_gelu_fusion") is False and not args.get("openai_gelu")
    config = GPT2Config(
        vocab_size, n_positions, hidden, n_layer,
        resolve_head_count(where, hidden, p, n_head, allow_unknown_heads, heads),
        inner, "gelu" if is_erf else "gelu_new", 1e-5 if epsilon is None else epsilon,
        tie_word_embeddings=not untied,
    )  # fmt: skip
    return config, rows


def _number(where: Path, args: Mapping[str, Any], kind: type, *names: str) -> Any:
    """What ``args`` say under the first of ``names`` that is there; None where they say nothing.

    Raises:
        CheckpointError: it is no number of that kind.
    """
    found = [(name, args[name]) for name in names if args.get(name) is not None]
    for name, value in found:
        if type(value) is not kind:
            raise CheckpointError(f"{where}: args.{name} is {short_repr(value)}: expected a plain {kind.__name__}")
        if value != found[0][1]:
            raise CheckpointError(f"{where}: args.{name} is {value}, but args.{found[0][0]} {found[0][1]}")
    return found[0][1] if found else None


def _put(
    sources: Sequence[LazyTensor], kind: ShardSpec, version: str, heads: int
) -> Callable[[Sequence[Array], Array], None]:
    """How the parts of all ranks become the whole tensor; ``heads`` are those of one rank."""

    def put(parts: Sequence[Array], out: Array) -> None:
        check_shards(sources[0].name, kind, [(source.file, part) for source, part in zip(sources, parts, strict=True)])
        if kind is QKV:
            whole = out.reshape(3, len(parts), heads, -1, *out.shape[1:])
            for rank, part in enumerate(parts):
                assign(whole[:, rank], thirds(part, version, heads))
        elif kind is COLUMN:  # an embedding may have more rows than there are tokens
            start = 0
            for part in parts:
                rows = max(0, min(len(part), len(out) - start))
                assign(out[start : start + rows], part[:rows])
                start += rows
        else:
            merge(parts, kind, out)

    return put


def _check_tied(pairs: Sequence[tuple[LazyTensor, LazyTensor]]) -> None:
    """The last pipeline stage has the embedding again, as the output matrix."""
    for embedding, copy in pairs:
        if embedding.shape != copy.shape or not same_values(embedding.numpy(), copy.numpy()):
            raise CheckpointError(
                f"{copy.file}: {_TIED} differs from the embedding in {embedding.file}: of another model or iteration"
            )
