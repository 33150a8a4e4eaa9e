"""Checkpoints of newer Megatron-LM: ``model`` holds ``language_model``; tensor x pipeline parallel, with ``args``.

    <root>/latest_checkpointed_iteration.txt
    <root>/iter_0000500/mp_rank_00/model_optim_rng.pt            tensor parallel
    <root>/iter_0000500/mp_rank_00_000/model_optim_rng.pt        tensor parallel, pipeline stage

Sources: ``megatron/checkpointing.py`` (paths) and ``megatron/model/language_model.py`` (names) of Megatron-LM.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions
from convert.formats.megatron.layout import MEGATRON_LM, qkv_view, shard_spec_of
from convert.formats.megatron.megatron_lm_shard import is_state, load_shard
from convert.formats.megatron.megatron_lm_writer import WRITER
from convert.formats.megatron.pipeline import Pipeline, assemble_pipeline
from convert.formats.megatron.rank_state import find_files, first_value, read_rank, state_in
from convert.formats.megatron.sharding import QKV, check_shard_shapes, shard_recipe
from convert.formats.tensor_map import TensorMapCheckpoint, TensorRecipe, matrix_shape
from convert.tensors import Array, assign, same_values
from support.errors import CheckpointError
from tf_model.config import GPT2Config

_PADDED = ("wte.weight", "lm_head.weight")
"""Canonical tensors that may have more rows in the files than there are tokens."""


def _recognise(candidate: Candidate) -> bool:
    """Whether a file of a rank has tensors with this format's names, whatever they are under."""
    return state_in(first_value(candidate), is_state) is not None


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    """Open the checkpoint; weights are touched only when they are read.

    The candidate is the folder with the tracker file, the folder of an iteration, or a file that is the whole model.

    Raises:
        CheckpointError: anything that keeps the files from being one whole model.
        ConfigError: no GPT-2 has such sizes.
    """
    files = find_files(candidate, options.iteration)
    by_stage = itertools.groupby(files, lambda file: file.stage)
    stages = []
    for _, ranks in by_stage:
        stages.append([load_shard(read_rank(candidate, file.path)) for file in ranks])
    model = assemble_pipeline(stages)
    model.check_same_training()
    model.first.args.check_is_gpt2()
    model.check_names()
    rows = model.tensor_parallel * _matrix_shape(model, "wte.weight")[0]
    config = _config(model, rows, options)
    return TensorMapCheckpoint(
        config,
        {name: _recipe(name, model, config, rows) for name in config.tensor_shapes()},
        _info(model, config, rows, options),
        check=functools.partial(_check_tied, model),
    )


def _config(model: Pipeline, rows: int, options: OpenOptions) -> GPT2Config:
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
    n_positions, hidden = _matrix_shape(model, "wpe.weight")
    n_inner = p * _matrix_shape(model, "h.0.mlp.c_fc.weight")[0]
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
    stored_heads, epsilon = args.n_head(), args.layer_norm_epsilon()
    chosen = options.vocab_size if options.vocab_size in range(1, rows + 1) else None
    vocab_size = args.vocab_size(rows) if chosen is None else rows
    args.check_head(untied=model.untied)
    n_head = options.heads(first.file, hidden, p, stored_heads)
    args.check_attention(hidden, n_head)
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=n_positions,
        n_embd=hidden,
        n_layer=model.n_layer,
        n_head=n_head,
        n_inner=n_inner,
        activation_function=args.activation_function(options.activation_function),
        layer_norm_epsilon=epsilon,
        tie_word_embeddings=not model.untied,
    )


def _matrix_shape(model: Pipeline, name: str) -> tuple[int, int]:
    """Return the shape of rank 0's shard of a canonical matrix."""
    shard = model.tensors(name)[0]
    return matrix_shape(shard.file, {shard.name: shard}, shard.name)


def _recipe(name: str, model: Pipeline, config: GPT2Config, rows: int) -> TensorRecipe:
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


def _info(model: Pipeline, config: GPT2Config, rows: int, options: OpenOptions) -> CheckpointInfo:
    first = model.first
    details: dict[str, str | int] = {"checkpoint_version": first.version, "tensor_parallel": model.tensor_parallel}
    if len(model.stages) > 1:
        details["pipeline_parallel"] = len(model.stages)
    if first.iteration:  # 0 is a release
        details["iteration"] = first.iteration
    if rows != config.vocab_size:
        details["padded_vocab_size"] = rows
    left_out = dict.fromkeys(itertools.chain.from_iterable(shard.left_out for shard in model.shards))
    notes = []
    if not first.args.says_activation and options.activation_function is None:
        notes.append(
            f"{first.file}: does not say which gelu it was trained with: the tanh form is taken, Megatron-LM's "
            "default; --activation-function gelu is for models of --no-bias-gelu-fusion"
        )
    return CheckpointInfo(MEGATRON_LM, details=details, notes=tuple(notes), left_out=tuple(left_out))


def _check_tied(model: Pipeline) -> None:
    """Check that the output matrix, which the last of several stages has, is a copy of the embedding.

    Raises:
        CheckpointError: it is not.
    """
    for embedding, copy in model.tied_copies():
        if embedding.shape != copy.shape or not same_values(embedding.numpy(), copy.numpy()):
            raise CheckpointError(
                f"{copy.file}: {copy.name} differs from the embedding in {embedding.file}: of another model or "
                "iteration"
            )


FORMAT = Format(MEGATRON_LM, _recognise, _open, writer=WRITER)
