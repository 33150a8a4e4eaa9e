"""Checkpoints of CPM and of the Megatron-LM that it was trained with, in p model-parallel shards.

Sources: ``utils.py``, ``change_mp.py``, ``mpu/`` of CPM-1-Generate; ``utils.py`` of CPM-1-Finetune, CPM-1-Distill.

    <root>/latest_checkpointed_iteration.txt             "80000" or "release"
    <root>/80000/mp_rank_00_model_states.pt              DeepSpeed, and CPM's releases
    <root>/iter_0080000/mp_rank_00/model_optim_rng.pt    plain Megatron

A file is a pickled dict with the rank's tensors under ``module`` or ``model`` and with what training needs to continue,
which is ignored. It holds no sizes: they are derived from the shapes, except the number of heads.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions
from convert.formats.heads import head_count_from_manifest
from convert.formats.megatron.cpm_writer import BOOKKEEPING, WRITER
from convert.formats.megatron.layout import CPM, CPM_NAMES, cpm_name, shard_spec_of
from convert.formats.megatron.megatron_lm_args import SavedArgs
from convert.formats.megatron.rank_state import (
    RankContent,
    find_files,
    first_value,
    read_rank,
    state_in,
    without_prefix,
)
from convert.formats.megatron.sharding import ShardingError, check_shard_shapes, shard_recipe
from convert.formats.rank_files import RankFile, check_saved_ranks, find_first_rank_file, has_latest, has_tracker
from convert.formats.state_dict import MOMENTS, key_text
from convert.formats.tensor_map import (
    LazyTensor,
    TensorMapCheckpoint,
    check_not_partitioned,
    matrix_shape,
    name_problems,
)
from support.errors import CheckpointError
from support.messages import list_names, pluralize, short_repr
from tf_model.config import GPT2Config
from tokenization.special_tokens import CPM_TOKENS

_COUNTS = frozenset(key for key, neutral in BOOKKEEPING.items() if neutral is not None)
"""Bookkeeping that is no loss to leave out: numbers of steps, samples and ranks."""

_LAYER = re.compile(r"transformer\.layers\.(0|[1-9]\d{0,3})\.")
_KNOWN = re.compile(
    r"(?<![^.])(?:word_embeddings\.weight$|position_embeddings\.weight$|transformer\.(?:layers\.\d+|final_layernorm)\.)"
)
"""What finds the names of ``CPM_NAMES`` after the prefixes of wrappers."""


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One rank's file.

    Attributes:
        file: the file.
        saved_name: the name, without its ending, that the file was saved under; None where nobody knows it.
        tensors: the rank's tensors under Megatron's names.
        iteration, world_size: what the file says about the training, if it does.
        args: those of the training, if the file has them.
        is_pickle: whether the file is of ``torch.save``.
        left_out: names of what else the file holds.
    """

    file: Path
    saved_name: str | None
    tensors: Mapping[str, LazyTensor]
    iteration: int | None
    world_size: int | None
    args: SavedArgs
    is_pickle: bool
    left_out: list[str]


def _recognise(candidate: Candidate) -> bool:
    if has_tracker(candidate) or has_latest(candidate) or find_first_rank_file(candidate) is not None:
        return True
    return candidate.weights is not None and state_in(first_value(candidate), _is_state) is not None


def _is_state(values: Mapping[Any, Any]) -> bool:
    """Whether a dict has tensors with CPM's names."""
    return any(isinstance(name, str) and _KNOWN.search(name) and not name.endswith(MOMENTS) for name in values)


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    """Open the checkpoint; weights are touched only when they are read.

    The candidate is the folder with the tracker file, the folder of an iteration, or a file that is the whole model.

    Raises:
        CheckpointError: anything that keeps the files from being one whole model.
    """
    files = find_files(candidate, options.iteration)
    if files[-1].stage:
        raise CheckpointError(f"{files[-1].path}: of a pipeline stage, which CPM's Megatron does not have")
    shards = [_load_shard(read_rank(candidate, file.path)) for file in files]
    n_layer = _check_names(shards)
    _check_rank_count(files, shards[0], alone=candidate.is_file)
    check_saved_ranks(zip(files, (shard.saved_name for shard in shards), strict=True))
    try:
        config = _sizes(shards, n_layer)
    except ShardingError as error:
        raise CheckpointError(f"{candidate.path}: {error}") from error
    iteration = _check_numbers(shards)
    shards[0].args.check_is_gpt2()
    stored = shards[0].args.n_head()
    if options.n_head is None and stored is None:
        options = dataclasses.replace(options, n_head=head_count_from_manifest(candidate.path, config.n_embd))
    n_head = options.heads(shards[0].file, config.n_embd, len(shards), stored)
    return _checkpoint(dataclasses.replace(config, n_head=n_head), shards, iteration)


def _checkpoint(config: GPT2Config, shards: Sequence[_Shard], iteration: int | None) -> Checkpoint:
    recipes = {name: shard_recipe(_tensors(name, shards), shard_spec_of(name)) for name in config.tensor_shapes()}
    details: dict[str, str | int] = {"tensor_parallel": len(shards)}
    if iteration is not None:
        details["iteration"] = iteration
    left_out = dict.fromkeys(itertools.chain.from_iterable(shard.left_out for shard in shards))
    is_pickle = shards[0].is_pickle  # the forward pass for files alone cannot read others
    return TensorMapCheckpoint(
        config,
        recipes,
        CheckpointInfo(CPM, details=details, left_out=tuple(left_out), is_changed=not is_pickle),
        tokens=CPM_TOKENS if config.vocab_size > 7 else None,  # its ids are 5 and 7
    )


def _tensors(name: str, shards: Sequence[_Shard]) -> list[LazyTensor]:
    """Return the shards of the canonical tensor ``name``, rank 0 first."""
    return [shard.tensors[cpm_name(name)] for shard in shards]


def _load_shard(file: RankContent) -> _Shard:
    """Take what is known of a rank's file out of its pickle.

    Raises:
        CheckpointError: the file is not a rank's, or holds something else than tensors where the weights are.
    """
    content = file.value
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file.path}: expected a dict with the weights under 'module' or 'model', found {short_repr(content)}"
        )
    found = state_in(content, _is_state)
    if found is None:  # a dict that lacks every name
        found = next(((key, content[key]) for key in ("module", "model") if isinstance(content.get(key), dict)), None)
    if found is None:
        keys = list_names(content, 9)
        raise CheckpointError(f"{file.path}: expected a dict under 'module' or 'model', found the keys {keys}")
    weights, state = found
    if version := content.get("checkpoint_version"):  # Q, K and V are in another order since 1.0
        raise CheckpointError(
            f"{file.path}: checkpoint_version is {short_repr(version)}, which CPM's Megatron does not have: expected "
            "none, or a language_model under 'model', as newer Megatron-LM has it"
        )
    numbers = {key: content[key] for key in ("iteration", "mp_world_size") if type(content.get(key)) is int}
    # Upstream's change_mp.py leaves None where something was.
    known = {weights, *numbers, *_COUNTS}
    others = {key_text(key): value for key, value in content.items() if value is not None and state is not content}
    own = {name: value for name, value in state.items() if not key_text(name).endswith(MOMENTS)}
    if state is content:  # the state dict is the whole file: dicts in it are something else
        others = {key_text(name): value for name, value in own.items() if isinstance(value, dict)}
        own = {name: value for name, value in own.items() if not isinstance(value, dict)}
    left_out = [name for name in others if name not in known]
    tensors = file.tensors(without_prefix(own, _KNOWN))
    check_not_partitioned(file.path, tensors)
    return _Shard(
        file.path,
        file.saved_name,
        tensors,
        numbers.get("iteration"),
        numbers.get("mp_world_size"),
        SavedArgs.of(file.path, None if state is content else content.get("args")),
        file.is_pickle,
        left_out,
    )


def _check_names(shards: Sequence[_Shard]) -> int:
    """Check that every shard has the tensors of each layer, and no others; return the number of layers.

    Raises:
        CheckpointError: with all that are missing and all that are too many, in all files.
    """
    names = itertools.chain.from_iterable(shard.tensors for shard in shards)
    layers = [_LAYER.match(name) for name in names]
    n_layer = 1 + max((int(layer[1]) for layer in layers if layer), default=0)
    expected: list[str] = []
    for template in CPM_NAMES.values():
        expected += [template.format(layer) for layer in range(n_layer)] if "{}" in template else [template]
    problems = []
    for shard in shards:
        problems += [f"{shard.file}: {problem}" for problem in name_problems(shard.tensors, dict.fromkeys(expected))]
    if problems:
        raise CheckpointError("; ".join(problems))
    return n_layer


def _matrix_shape(shard: _Shard, canonical: str) -> tuple[int, int]:
    return matrix_shape(shard.file, shard.tensors, cpm_name(canonical))


def _check_rank_count(files: Sequence[RankFile], first: _Shard, *, alone: bool) -> None:
    """Check that there are as many files as the shapes of rank 0 say that there are ranks.

    The fused projection and the one after it both say it. Where they disagree, the number of ranks is not what is
    wrong: ``_sizes`` names the shape that is.
    """
    hidden = _matrix_shape(first, "wpe.weight")[1]
    by_qkv, rest = divmod(3 * hidden, _matrix_shape(first, "h.0.attn.c_attn.weight")[0])
    ranks = hidden / _matrix_shape(first, "h.0.attn.c_proj.weight")[1]
    if rest or by_qkv != ranks or ranks == len(files):
        return
    if alone:
        who = f"rank {files[0].rank}" if files[0].name_pattern else "one"
        raise CheckpointError(f"{first.file}: {who} of a model split over {by_qkv} ranks: give the folder of them all")
    problem = f"{first.file}: from a model split over {pluralize(by_qkv, 'rank')}, but {_files_found(files)}"
    if len(files) > ranks:
        raise CheckpointError(f"{problem}: those next to it are not of this model, or it was split wrongly")
    raise CheckpointError(f"{problem}: {files[-1].name_of(len(files))} is missing")


def _files_found(files: Sequence[object]) -> str:
    return f"{pluralize(len(files), 'file')} found"


def _sizes(shards: Sequence[_Shard], n_layer: int) -> GPT2Config:
    """Return the sizes, from the shapes of rank 0 and with one head, after checking every shape of every rank.

    Raises:
        CheckpointError: a shape does not fit the sizes.
        ShardingError: the sizes cannot be split over this number of ranks.
    """
    p, first = len(shards), shards[0]
    n_positions, hidden = _matrix_shape(first, "wpe.weight")
    vocab_size, n_inner = (p * _matrix_shape(first, name)[0] for name in ("wte.weight", "h.0.mlp.c_fc.weight"))
    config = GPT2Config(vocab_size, n_positions, hidden, n_layer, n_head=1, n_inner=n_inner)
    for name, shape in config.tensor_shapes().items():
        check_shard_shapes(_tensors(name, shards), shape, shard_spec_of(name))
    return config


def _check_numbers(shards: Sequence[_Shard]) -> int | None:
    """Return the iteration that the files name, if any, after checking what they say about ranks and iterations.

    Raises:
        CheckpointError: the files disagree with one another, or with the number of files.
    """
    for shard in shards:
        if shard.world_size not in (None, len(shards)):
            raise CheckpointError(f"{shard.file}: mp_world_size is {shard.world_size}, but {_files_found(shards)}")
    named = [shard for shard in shards if shard.iteration is not None]
    for shard in named:
        if shard.iteration != named[0].iteration:
            other = f"{named[0].file} is of {named[0].iteration}"
            raise CheckpointError(f"{shard.file}: of iteration {shard.iteration}, but {other}: mixed-up files")
    return named[0].iteration if named else None


FORMAT = Format(CPM, _recognise, _open, writer=WRITER)
