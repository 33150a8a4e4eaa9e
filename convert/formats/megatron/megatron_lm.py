"""Checkpoints of newer Megatron-LM: ``model`` holds ``language_model``; tensor x pipeline parallel, with ``args``.

    <root>/latest_checkpointed_iteration.txt
    <root>/iter_0000500/mp_rank_00/model_optim_rng.pt            tensor parallel
    <root>/iter_0000500/mp_rank_00_000/model_optim_rng.pt        tensor parallel, pipeline stage

Sources: ``megatron/checkpointing.py`` (paths) and ``megatron/model/language_model.py`` (names) of Megatron-LM. Every
stage counts its layers from 0. The last stage has the final layer norm and a copy of the tied embedding.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions
from convert.formats.megatron.layout import (
    MEGATRON_LM,
    MEGATRON_LM_NAMES,
    VERSIONS,
    megatron_lm_name,
    qkv_view,
    shard_spec_of,
)
from convert.formats.megatron.megatron_lm_args import SavedArgs
from convert.formats.megatron.megatron_lm_writer import WRITER
from convert.formats.megatron.rank_files import find_first_rank_file, resolve_rank_files
from convert.formats.megatron.sharding import QKV, check_shard_shapes, shard_recipe
from convert.formats.tensor_map import (
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    layer_template,
    matrix_shape,
    name_problems,
)
from convert.tensors import Array, assign, same_values
from convert.torch_format.reader import TorchFile
from support.errors import CheckpointError
from support.messages import list_names, short_repr
from tf_model.config import GPT2Config

_EMBEDDING, _POSITIONS = megatron_lm_name("wte.weight"), megatron_lm_name("wpe.weight")
_HEAD = megatron_lm_name("lm_head.weight")
_FINAL_NORM = (megatron_lm_name("ln_f.weight"), megatron_lm_name("ln_f.bias"))
_TIED_COPY = "word_embeddings_for_head.weight"
"""The embedding again, on the last of several stages."""
_LAYER_TEMPLATES = tuple(template for template in MEGATRON_LM_NAMES.values() if "{}" in template)
_FIRST_STAGE = ("wte.weight", "wpe.weight")
_PADDED = ("wte.weight", "lm_head.weight")
"""Canonical tensors that may have more rows in the files than there are tokens."""

_LAYER = re.compile(r"layers\.(\d{1,4})\.")
_WRAPPER = re.compile(r"^(transformer|encoder)\.")
_MAX_DEPTH = 20
"""Of nested dicts of tensors."""


@dataclasses.dataclass(frozen=True)
class _Shard:
    """The file of one rank of one stage.

    Attributes:
        file: the file.
        tensors: the rank's tensors, under their names as older versions spell them.
        args: what the file says about the training.
        version: one of ``VERSIONS``.
        iteration: the number of the iteration, if the file has one.
        left_out: names of what else the file holds.
    """

    file: Path
    tensors: Mapping[str, LazyTensor]
    args: SavedArgs
    version: str
    iteration: int | None
    left_out: list[str]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        ranks: the files of its tensor-parallel ranks, rank 0 first.
        first_layer: the number of its first layer in the whole model.
        is_first, is_last: its place in the pipeline; the only stage is both.
    """

    ranks: Sequence[_Shard]
    first_layer: int
    is_first: bool
    is_last: bool

    @functools.cached_property
    def layers(self) -> range:
        """The numbers of its layers in the whole model."""
        found = [_LAYER.match(name) for rank in self.ranks for name in rank.tensors]
        count = 1 + max((int(layer[1]) for layer in found if layer), default=-1)
        return range(self.first_layer, self.first_layer + count)

    def expected_names(self, *, untied: bool) -> list[str]:
        """Return the names of the tensors that each of its files has.

        Args:
            untied: whether the model has an output matrix of its own.
        """
        names = [template.format(layer) for layer in range(len(self.layers)) for template in _LAYER_TEMPLATES]
        if self.is_first:
            names += [_EMBEDDING, _POSITIONS]
        if self.is_last:
            names += [*_FINAL_NORM, _HEAD] if untied else _FINAL_NORM
        return names

    def may_have(self, name: str) -> bool:
        """Whether its files may have a tensor that ``expected_names`` does not name."""
        return self.is_last and name == _TIED_COPY

    def tensors(self, name: str) -> list[LazyTensor]:
        """Return the tensors of a canonical name, rank 0 first; the stage has it."""
        template, layer = layer_template(name)
        own_name = MEGATRON_LM_NAMES[template].format(int(layer) - self.first_layer if layer else "")
        return [rank.tensors[own_name] for rank in self.ranks]


@dataclasses.dataclass(frozen=True)
class _Model:
    """All files of a model.

    Attributes:
        stages: the stages of its pipeline, in order.
    """

    stages: Sequence[Stage]

    @property
    def shards(self) -> Iterator[_Shard]:
        """Every file: stage by stage, rank by rank."""
        return itertools.chain.from_iterable(stage.ranks for stage in self.stages)

    @property
    def first(self) -> _Shard:
        """The file of rank 0 of the first stage."""
        return self.stages[0].ranks[0]

    @property
    def tensor_parallel(self) -> int:
        return len(self.stages[0].ranks)

    @property
    def n_layer(self) -> int:
        return self.stages[-1].layers.stop

    @property
    def untied(self) -> bool:
        """Whether there is an output matrix of its own."""
        return any(_HEAD in rank.tensors for rank in self.stages[-1].ranks)

    def tensors(self, name: str) -> list[LazyTensor]:
        """Return the shards of a canonical tensor, rank 0 first."""
        _, layer = layer_template(name)
        if layer:
            stage = next(stage for stage in self.stages if int(layer) in stage.layers)
        else:
            stage = self.stages[0 if name in _FIRST_STAGE else -1]
        return stage.tensors(name)


def _recognise(candidate: Candidate) -> bool:
    """Whether a file of a rank has a ``language_model`` in its ``model``."""
    file = find_first_rank_file(candidate)
    model = candidate.torch_dict(file).get("model") if file else None
    return isinstance(model, dict) and "language_model" in model


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    """Open the checkpoint; weights are touched only when they are read.

    The candidate is the folder with the tracker file, the folder of an iteration, or a file that is the whole model.

    Raises:
        CheckpointError: anything that keeps the files from being one whole model.
        ConfigError: no GPT-2 has such sizes.
    """
    files = resolve_rank_files(candidate, options.iteration)
    by_stage = itertools.groupby(files, lambda file: file.stage)
    model = _assemble([[_load_shard(candidate.torch_file(file.path)) for file in ranks] for _, ranks in by_stage])
    _check_same_training(model)
    _check_names(model)
    rows = model.tensor_parallel * matrix_shape(model.first.file, model.first.tensors, _EMBEDDING)[0]
    config = _config(model, rows, options)
    return TensorMapCheckpoint(
        config,
        {name: _recipe(name, model, config, rows) for name in config.tensor_shapes()},
        _info(model, config, rows),
        check=functools.partial(_check_tied, model),
    )


def _load_shard(file: TorchFile) -> _Shard:
    """Take what is known of a rank's file out of its pickle.

    Raises:
        CheckpointError: the file is not a rank's, or holds something else than tensors where the weights are.
    """
    content = file.value
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("language_model"), dict):
        found = list_names(content, 9) if isinstance(content, dict) else short_repr(content)
        raise CheckpointError(f"{file.path}: expected a dict with 'language_model' under 'model', found {found}")
    beside = {key: value for key, value in model.items() if key != "language_model"}
    state: dict[str, Any] = {}
    _flatten({**model["language_model"], **beside}, "", state, file.path)
    weights = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    iteration = content.get("iteration")
    known = {"model", "args", "checkpoint_version", "iteration"}
    return _Shard(
        file.path,
        file.tensors(weights),
        SavedArgs.of(file.path, content.get("args")),
        _version(file.path, content.get("checkpoint_version", 0)),
        iteration if type(iteration) is int else None,
        [str(key) for key, value in content.items() if key not in known and value is not None],
    )


def _flatten(values: Mapping[Any, Any], prefix: str, state: dict[str, Any], file: Path, depth: int = 0) -> None:
    """Put the tensors of nested dicts into ``state``, by their names joined with dots and in the older spelling."""
    for key, value in values.items():
        if not isinstance(key, str) or depth > _MAX_DEPTH:
            raise CheckpointError(f"{file}: {short_repr(key)}: expected the name of a tensor: damaged")
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", state, file, depth + 1)
            continue
        name = _older_spelling(f"{prefix}{key}")
        if name in state:
            raise CheckpointError(f"{file}: two tensors are {list_names([name])}")
        state[name] = value


def _older_spelling(name: str) -> str:
    name = _WRAPPER.sub("", name).replace(".self_attention.", ".attention.")
    return name.replace("final_norm.", "final_layernorm.").replace("_norm.", "_layernorm.")


def _version(file: Path, value: Any) -> str:
    known = {float(version): version for version in VERSIONS}
    if type(value) not in (int, float) or value not in known:
        raise CheckpointError(
            f"{file}: checkpoint_version is {short_repr(value)}: expected one of {', '.join(VERSIONS)}"
        )
    return known[value]


def _assemble(shards: Sequence[Sequence[_Shard]]) -> _Model:
    """Make a model of its files, given stage by stage."""
    stages: list[Stage] = []
    for number, ranks in enumerate(shards):
        first_layer = stages[-1].layers.stop if stages else 0
        stages.append(Stage(ranks, first_layer, is_first=number == 0, is_last=number == len(shards) - 1))
    return _Model(stages)


def _check_same_training(model: _Model) -> None:
    """Check that all files are of one version and one iteration.

    Raises:
        CheckpointError: they are not.
    """
    first = model.first
    for shard in model.shards:
        for what, found, expected in (
            ("checkpoint_version", shard.version, first.version),
            ("iteration", shard.iteration, first.iteration),
        ):
            if found != expected:
                raise CheckpointError(
                    f"{shard.file}: {what} is {found}, that of {first.file} {expected}: mixed-up files"
                )


def _check_names(model: _Model) -> None:
    """Check that every file has the tensors of its stage, and no others.

    Raises:
        CheckpointError: with all that are missing or unexpected, in all files.
    """
    problems = []
    for stage in model.stages:
        expected = dict.fromkeys(stage.expected_names(untied=model.untied))
        for rank in stage.ranks:
            found = name_problems(rank.tensors, expected, stage.may_have)
            problems += [f"{rank.file}: {problem}" for problem in found]
    if not model.n_layer:
        problems.append(f"{model.first.file}: no tensors named layers.0...")
    if problems:
        raise CheckpointError("; ".join(problems))


def _config(model: _Model, rows: int, options: OpenOptions) -> GPT2Config:
    """Return the sizes by the shapes, and everything else by ``args``, which must not say other sizes.

    Args:
        model: the files.
        rows: rows of the embedding of all ranks, padding included.
        options: what the user knows.

    Raises:
        CheckpointError: ``args`` and the files contradict each other, or this is no GPT-2.
        ConfigError: no GPT-2 has such sizes.
    """
    first, args, p = model.first, model.first.args, model.tensor_parallel
    args.check_is_gpt2()
    n_positions, hidden = matrix_shape(first.file, first.tensors, _POSITIONS)
    width = model.tensors("h.0.mlp.c_fc.weight")[0]
    n_inner = p * matrix_shape(width.file, {width.name: width}, width.name)[0]
    args.check_sizes(
        {
            "num_layers": model.n_layer,
            "hidden_size": hidden,
            "max_position_embeddings": n_positions,
            "padded_vocab_size": rows,
            "ffn_hidden_size": n_inner,
            "tensor_model_parallel_size": p,
            "pipeline_model_parallel_size": len(model.stages),
        }
    )
    vocab_size, stored_heads, epsilon = args.vocab_size(rows), args.n_head(), args.layer_norm_epsilon()
    args.check_head(untied=model.untied)
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=n_positions,
        n_embd=hidden,
        n_layer=model.n_layer,
        n_head=options.heads(first.file, hidden, p, stored_heads),
        n_inner=n_inner,
        activation_function=args.activation_function(),
        layer_norm_epsilon=epsilon,
        tie_word_embeddings=not model.untied,
    )


def _recipe(name: str, model: _Model, config: GPT2Config, rows: int) -> TensorRecipe:
    """Return how the canonical tensor ``name`` is made of the shards of all ranks.

    Raises:
        CheckpointError: a shard has another shape than the sizes say.
    """
    shards, shard_spec, shape = model.tensors(name), shard_spec_of(name), config.tensor_shapes()[name]
    is_padded = name in _PADDED
    check_shard_shapes(shards, (rows, *shape[1:]) if is_padded else shape, shard_spec)
    if is_padded:
        return shard_recipe(shards, shard_spec, _merge_rows)
    if shard_spec is QKV:
        return shard_recipe(shards, shard_spec, _merge_qkv(model.first.version, config.n_head // len(shards)))
    return shard_recipe(shards, shard_spec)


def _merge_rows(values: Sequence[Array], out: Array) -> None:
    """Write the rows of all ranks into ``out``, which ends before the padding."""
    start = 0
    for value in values:
        count = max(0, min(len(value), len(out) - start))
        assign(out[start : start + count], value[:count])
        start += count


def _merge_qkv(version: str, heads: int) -> Callable[[Sequence[Array], Array], None]:
    """Return what merges the fused projections of all ranks, with rows in the order of ``version``.

    Args:
        version: one of ``VERSIONS``.
        heads: the number of heads of each rank.
    """

    def merge_values(values: Sequence[Array], out: Array) -> None:
        whole = out.reshape(3, len(values), heads, -1, *out.shape[1:])
        for rank, value in enumerate(values):
            assign(whole[:, rank], qkv_view(value, version, heads))

    return merge_values


def _info(model: _Model, config: GPT2Config, rows: int) -> CheckpointInfo:
    first = model.first
    details: dict[str, str | int] = {"checkpoint_version": first.version, "tensor_parallel": model.tensor_parallel}
    if len(model.stages) > 1:
        details["pipeline_parallel"] = len(model.stages)
    if first.iteration:  # 0 is a release
        details["iteration"] = first.iteration
    if rows != config.vocab_size:
        details["padded_vocab_size"] = rows
    left_out = dict.fromkeys(name for shard in model.shards for name in shard.left_out)
    return CheckpointInfo(MEGATRON_LM, details=details, left_out=tuple(left_out))


def _check_tied(model: _Model) -> None:
    """Check that the output matrix, which the last of several stages has, is a copy of the embedding.

    Raises:
        CheckpointError: it is not.
    """
    for first, last in zip(model.stages[0].ranks, model.stages[-1].ranks, strict=True):
        if _TIED_COPY not in last.tensors:
            continue
        embedding, copy = first.tensors[_EMBEDDING], last.tensors[_TIED_COPY]
        if embedding.shape != copy.shape or not same_values(embedding.numpy(), copy.numpy()):
            raise CheckpointError(
                f"{copy.file}: {_TIED_COPY} differs from the embedding in {embedding.file}: of another model or "
                "iteration"
            )


FORMAT = Format(MEGATRON_LM, _recognise, _open, writer=WRITER)
