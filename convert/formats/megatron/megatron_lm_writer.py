"""Writes newer Megatron-LM's checkpoints: tensor parallel, one pipeline stage, with ``args``.

    <root>/latest_checkpointed_iteration.txt
    <root>/iter_0000500/mp_rank_00/model_optim_rng.pt, mp_rank_01/...        or release/

The names, splits and orders are the reader's, ``megatron_lm``. Sources: as there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.formats.megatron.cpm_writer import check_ranks, named_iteration
from convert.formats.megatron.megatron_lm import source_name, thirds
from convert.formats.megatron.rank_files import MEGATRON_FILE, RELEASE, TRACKER
from convert.formats.megatron.sharding import QKV, shard_shape, split
from convert.tensors import Array, DType
from convert.torch_format.writer import Pending, writing
from support.errors import ConvertError
from tf_model.config import STANDARD, TANH_GELU, GPT2Config


def check_config(config: GPT2Config) -> None:
    """Checks that Megatron-LM has such a model.

    Raises:
        ConvertError: it has not, and why.
    """
    problems = []
    if config.activation_function not in (*TANH_GELU, "gelu"):
        problems.append(f"activation {config.activation_function}")
    if config.layer_norm != STANDARD:
        problems.append(f"{config.layer_norm} layer norms")
    if config.scale_attn_by_inverse_layer_idx:
        problems.append("attention scaled by the layer's number")
    if problems:
        raise ConvertError(
            f"Megatron-LM's format cannot hold this model: it has no {', no '.join(problems)}: choose another format"
        )


def write_megatron_lm(
    root: Path,
    checkpoint: Checkpoint,
    dtypes: Mapping[str, DType],
    p: int,
    version: str,
    divisible_by: int,
    read: Callable[[str, DType], Array],
) -> list[Path]:
    """Writes a checkpoint of ``p`` tensor-parallel ranks into the folder ``root``; gives its files, rank 0 first.

    Args:
        root: an empty folder.
        checkpoint: whose sizes and iteration the copy gets.
        dtypes: canonical name -> the type to write it in, for every tensor.
        p: a number of ranks that divides heads and widths.
        divisible_by: each rank's part of the vocabulary is padded to a multiple of it, with rows of zeros.
        version: one of ``megatron_lm.VERSIONS``: the order of Q, K and V. From 3.0 on names are the newer ones.
        read: gives a whole tensor by its canonical name; its memory may be used again at the next call.

    Raises:
        ConvertError: the model cannot be split over so many ranks, or the format cannot hold it.
        OSError: a file cannot be written. What ``read`` raises comes through, too.
    """
    config = checkpoint.config
    check_config(config)
    rows = padded_vocab_size(config, p, divisible_by)
    check_ranks(dataclasses.replace(config, vocab_size=rows), p)
    iteration = named_iteration(checkpoint)
    folder = root / (RELEASE if iteration == RELEASE else f"iter_{int(iteration):07d}")
    shapes = dataclasses.replace(config, vocab_size=rows).tensor_shapes()
    files = [folder / f"mp_rank_{rank:02d}" / MEGATRON_FILE for rank in range(p)]
    with contextlib.ExitStack() as stack:
        writers = []
        for file in files:
            file.parent.mkdir(parents=True)
            tensors = {
                source_name(name)[0]: Pending(shard_shape(shape, source_name(name)[1], p), dtypes[name])
                for name, shape in shapes.items()
            }
            top: dict[str, Any] = {
                "args": _args(config, p, rows, divisible_by), "checkpoint_version": float(version),
                "iteration": _number(iteration), "model": {"language_model": _nested(tensors, version)},
            }  # fmt: skip
            writers.append(stack.enter_context(writing(file, top)))
        for name in shapes:
            kind = source_name(name)[1]
            values = read(name, dtypes[name])
            shards: Iterable[Array]
            if len(values) == shapes[name][0]:
                shards = split(values, kind, p)
            else:  # the vocabulary: a rank may have rows of it, or padding, or both
                shards = _padded(values, shapes[name][0] // p, p)
            for writer, shard in zip(writers, shards, strict=True):
                writer.write(_reordered(shard, version, config.n_head // p) if kind is QKV else shard)
    (root / TRACKER).write_text(str(iteration))
    return files


def _padded(values: Array, size: int, p: int) -> Iterator[Array]:
    """The rows of each of ``p`` ranks, ``size`` of them; of those that ``values`` does not reach, zeros."""
    for rank in range(p):
        part = values[rank * size : (rank + 1) * size]
        yield np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])


def _number(iteration: int | str) -> int:
    return iteration if isinstance(iteration, int) else 0


def _reordered(shard: Array, version: str, heads: int) -> Array:
    """A rank's rows of Q, then K, then V, in the order of ``version``."""
    result = np.empty_like(shard)
    thirds(result, version, heads)[...] = shard.reshape(3, heads, -1, *shard.shape[1:])
    return result


def _nested(tensors: Mapping[str, Pending], version: str) -> dict[str, Any]:
    """The tensors as Megatron-LM nests them; in the order in which they are written."""
    newer = version == "3.0"
    embedding = {
        name: {"weight": tensors[f"embedding.{name}.weight"]} for name in ("word_embeddings", "position_embeddings")
    }
    layers = {
        name.replace(".attention.", ".self_attention.") if newer else name: tensor
        for name, tensor in tensors.items()
        if name.startswith(("layers.", "final_layernorm."))
    }
    nested: dict[str, Any] = {"embedding": embedding, "encoder" if newer else "transformer": layers}
    if "output_layer.weight" in tensors:
        nested["output_layer"] = {"weight": tensors["output_layer.weight"]}
    return nested


def padded_vocab_size(config: GPT2Config, p: int, divisible_by: int) -> int:
    """Rows of the embedding, so that each rank's are a multiple of ``divisible_by``.

    Source: ``_vocab_size_with_padding`` in ``megatron/tokenizer/tokenizer.py``.
    """
    return -(-config.vocab_size // (divisible_by * p)) * divisible_by * p


def _args(config: GPT2Config, p: int, rows: int, divisible_by: int) -> argparse.Namespace:
    """What Megatron-LM and its tools ask a checkpoint's ``args`` for."""
    tanh = config.activation_function in TANH_GELU
    return argparse.Namespace(
        num_layers=config.n_layer, hidden_size=config.n_embd, ffn_hidden_size=config.n_inner,
        num_attention_heads=config.n_head, kv_channels=config.head_dim, seq_length=config.n_positions,
        max_position_embeddings=config.n_positions, vocab_size=config.vocab_size, padded_vocab_size=rows,
        make_vocab_size_divisible_by=divisible_by, layernorm_epsilon=config.layer_norm_epsilon,
        position_embedding_type="learned_absolute", add_position_embedding=True, tensor_model_parallel_size=p,
        pipeline_model_parallel_size=1, untie_embeddings_and_output_weights=not config.tie_word_embeddings,
        openai_gelu=False, bias_gelu_fusion=tanh, apply_residual_connection_post_layernorm=False,
    )  # fmt: skip
