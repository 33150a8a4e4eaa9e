"""Write newer Megatron-LM's checkpoints: tensor parallel, one pipeline stage, with ``args``.

    <root>/latest_checkpointed_iteration.txt
    <root>/iter_0000500/mp_rank_00/model_optim_rng.pt, mp_rank_01/...        or release/

Sources: as for ``megatron_lm``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.formats.format import Read, WriteOption, Writer, WriteRequest
from convert.formats.limits import ANY
from convert.formats.megatron.layout import MEGATRON_LM, VERSIONS, megatron_lm_name, qkv_view, shard_spec_of
from convert.formats.megatron.megatron_lm_args import args_of
from convert.formats.megatron.sharding import QKV, shard_shape, split
from convert.formats.megatron.writing import TENSOR_PARALLEL, check_ranks, iteration_for_copy, shard_bytes
from convert.formats.rank_files import MEGATRON_FILE, RELEASE, TRACKER
from convert.tensors import Array
from convert.torch_format.writer import Pending, writing
from tf_model.config import TANH_GELU, GPT2Config

CHECKPOINT_VERSION = WriteOption(
    "checkpoint_version", "order of Q, K and V; 3.0 has the newer names too", default=VERSIONS[-1], choices=VERSIONS
)
DIVISIBLE_BY = WriteOption(
    "make_vocab_size_divisible_by",
    "pad each rank's rows of the vocabulary with zeros to a multiple of N",
    kind=int,
    default=128,
    range=(1, 1 << 20),
    metavar="N",
)


def padded_vocab_size(config: GPT2Config, p: int, divisible_by: int) -> int:
    """Return the rows of the embedding, padding included, so that each rank's are a multiple of ``divisible_by``.

    Source: ``_vocab_size_with_padding`` in ``megatron/tokenizer/tokenizer.py``.
    """
    return -(-config.vocab_size // (divisible_by * p)) * divisible_by * p


def _padded_config(request: WriteRequest) -> GPT2Config:
    """Return the sizes of the model in the files: its vocabulary has the padding."""
    config, options = request.checkpoint.config, request.options
    p = max(options[TENSOR_PARALLEL.name], 1)  # a number below 1 is an error that _check reports
    return dataclasses.replace(config, vocab_size=padded_vocab_size(config, p, options[DIVISIBLE_BY.name]))


def _check(request: WriteRequest) -> None:
    check_ranks(_padded_config(request), request.options[TENSOR_PARALLEL.name])


def _size(request: WriteRequest) -> int:
    return shard_bytes(_padded_config(request), request.dtypes, request.options[TENSOR_PARALLEL.name])


def _write(request: WriteRequest, root: Path, read: Read) -> list[Path]:
    """Write the tracker file and the files of all ranks into the empty folder ``root``; return the ranks' files."""
    p, version = request.options[TENSOR_PARALLEL.name], request.options[CHECKPOINT_VERSION.name]
    iteration = iteration_for_copy(request.checkpoint.info)
    folder = root / (RELEASE if iteration == RELEASE else f"iter_{int(iteration):07d}")
    files = [folder / f"mp_rank_{rank:02d}" / MEGATRON_FILE for rank in range(p)]
    content = _content(request, iteration)
    with contextlib.ExitStack() as stack:
        writers = []
        for file in files:
            file.parent.mkdir(parents=True)
            writers.append(stack.enter_context(writing(file, content)))
        for name, shape in _padded_config(request).tensor_shapes().items():
            values = read(name, request.dtypes[name])
            shards = _shards(name, values, shape[0], p)
            for writer, shard in zip(writers, shards, strict=True):
                is_fused = shard_spec_of(name) is QKV
                writer.write(_reordered(shard, version, request.checkpoint.config.n_head // p) if is_fused else shard)
    (root / TRACKER).write_text(str(iteration))
    return files


def _content(request: WriteRequest, iteration: int | str) -> dict[str, Any]:
    """Return what the file of each rank holds, with tensors whose values come later."""
    config, padded, options = request.checkpoint.config, _padded_config(request), request.options
    p, version = options[TENSOR_PARALLEL.name], options[CHECKPOINT_VERSION.name]
    tensors = {
        megatron_lm_name(name): Pending(shard_shape(shape, shard_spec_of(name), p), request.dtypes[name])
        for name, shape in padded.tensor_shapes().items()
    }
    return {
        "args": args_of(config, p, padded.vocab_size, options[DIVISIBLE_BY.name]),
        "checkpoint_version": float(version),
        "iteration": iteration if isinstance(iteration, int) else 0,
        "model": {"language_model": _nested(tensors, version)},
    }


def _shards(name: str, values: Array, rows: int, p: int) -> Iterable[Array]:
    """Return the shards of a tensor, rank 0 first; where ``rows`` are more than it has, the rest is padding."""
    return split(values, shard_spec_of(name), p) if len(values) == rows else _padded(values, rows // p, p)


def _padded(values: Array, size: int, p: int) -> Iterator[Array]:
    """Yield ``size`` rows for each of ``p`` ranks: of ``values`` as far as they reach, then of zeros."""
    for rank in range(p):
        part = values[rank * size : (rank + 1) * size]
        yield np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])


def _reordered(shard: Array, version: str, heads: int) -> Array:
    """Return a rank's rows of Q, then K, then V, in the order of ``version``."""
    result = np.empty_like(shard)
    qkv_view(result, version, heads)[...] = shard.reshape(3, heads, -1, *shard.shape[1:])
    return result


def _nested(tensors: Mapping[str, Pending], version: str) -> dict[str, Any]:
    """Return the tensors as Megatron-LM nests them, in the order in which they are written."""
    is_newer = version == "3.0"
    embedding = {
        name: {"weight": tensors[f"embedding.{name}.weight"]} for name in ("word_embeddings", "position_embeddings")
    }
    layers = {
        name.replace(".attention.", ".self_attention.") if is_newer else name: tensor
        for name, tensor in tensors.items()
        if name.startswith(("layers.", "final_layernorm."))
    }
    nested: dict[str, Any] = {"embedding": embedding, "encoder" if is_newer else "transformer": layers}
    if "output_layer.weight" in tensors:
        nested["output_layer"] = {"weight": tensors["output_layer.weight"]}
    return nested


def _record(request: WriteRequest) -> Mapping[str, Any]:
    return {"layout": MEGATRON_LM, "iteration": iteration_for_copy(request.checkpoint.info)}


WRITER = Writer(
    _write,
    _size,
    holds={
        "n_inner": ANY,
        "activation_function": (*TANH_GELU, "gelu"),
        "layer_norm_epsilon": ANY,
        "tie_word_embeddings": ANY,
    },
    check=_check,
    options=(TENSOR_PARALLEL, CHECKPOINT_VERSION, DIVISIBLE_BY),
    record=_record,
)
