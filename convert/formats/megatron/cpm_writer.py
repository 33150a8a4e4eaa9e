"""Writes CPM's checkpoints: canonical tensors in, p model-parallel shards out, one tensor at a time.

    <root>/latest_checkpointed_iteration.txt             "80000" or "release"
    <root>/80000/mp_rank_00_model_states.pt              as DeepSpeed, CPM's releases and its change_mp.py write them

The names and splits are the reader's table, ``megatron.TENSORS``. The files of all ranks are written side by side, so
that each tensor is read once, whatever p is. Sources: as for ``megatron``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.formats.megatron.cpm import BOOKKEEPING, source_name
from convert.formats.megatron.rank_files import DEEPSPEED_NAME, RELEASE, TRACKER, iteration_of_file
from convert.formats.megatron.sharding import ShardSpec, shard_shape, split
from convert.formats.uer_layer_norm import PLAIN_EPSILON, advice
from convert.tensors import Array, DType
from convert.torch_format.writer import Pending, writing
from support.errors import ConvertError
from support.messages import list_names
from tf_model.config import STANDARD, TANH_GELU, GPT2Config

_TENSOR_BYTES, _FILE_BYTES = 600, 2000
"""Room for what is written beside the values: headers, padding, names and shapes."""

_ALWAYS: Mapping[str, tuple[Any, ...]] = {
    "activation_function": TANH_GELU,
    "layer_norm": (STANDARD,),
    "layer_norm_epsilon": (PLAIN_EPSILON,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
}
"""What CPM's programs do not read from anywhere."""


def possible_ranks(config: GPT2Config) -> list[int]:
    """The numbers of ranks that a model can be split over: those that divide heads, vocabulary and widths; ascending.

    Source: ``divide`` and ``VocabUtility`` in ``mpu/utils.py`` of CPM-1-Generate, which stop at anything else.
    """
    common = math.gcd(*_divided(config).values())
    return [p for p in range(1, common + 1) if common % p == 0]


def _divided(config: GPT2Config) -> dict[str, int]:
    """What is shared out to the ranks, by its name in a message."""
    return {
        "heads": config.n_head,
        "vocabulary": config.vocab_size,
        "hidden size": config.n_embd,
        "feed-forward width": config.n_inner,
    }


def check_ranks(config: GPT2Config, p: int) -> None:
    """Checks that a model of these sizes can be split over ``p`` ranks.

    Raises:
        ConvertError: it cannot; with the sizes that stand in the way, and the numbers of ranks that are possible.
    """
    possible = possible_ranks(config)
    if p in possible:
        return
    problems = [f"{what} {size}" for what, size in _divided(config).items() if p > 0 and size % p]
    reason = f"it does not divide {', '.join(problems)}" if problems else "expected 1 or more"
    raise ConvertError(f"--tensor-parallel {p}: {reason}: possible for this model: {list_names(possible, 40)}")


def check_writable(checkpoint: Checkpoint) -> None:
    """Checks that CPM's programs compute such a model; their files say nothing but weights.

    Another width of the feed-forward layer than 4 h is somebody's own program, where a source of this format has it.

    Raises:
        ConvertError: they do not, and why.
    """
    config = checkpoint.config
    problems = [
        f"{name} is {getattr(config, name)!r}, there it is always {values[0]!r}"
        for name, values in _ALWAYS.items()
        if getattr(config, name) not in values
    ]
    if checkpoint.info.format != "megatron" and config.n_inner != 4 * config.n_embd:
        problems.append(f"n_inner is {config.n_inner}, there it is always {4 * config.n_embd}")
    if problems:
        raise ConvertError(f"CPM's Megatron format cannot hold this model: {'; '.join(problems)}: {advice(config)}")


def shard_bytes(
    config: GPT2Config,
    dtypes: Mapping[str, DType],
    p: int,
    split_of: Callable[[str], ShardSpec] = lambda name: source_name(name)[1],
) -> int:
    """Bytes that all files together take, at most; of values, and some hundred for each tensor beside them."""
    values = sum(
        math.prod(shard_shape(shape, split_of(name), p)) * dtypes[name].itemsize
        for name, shape in config.tensor_shapes().items()
    )
    return p * (values + len(dtypes) * _TENSOR_BYTES + _FILE_BYTES)


def named_iteration(checkpoint: Checkpoint) -> int | str:
    """What the iteration of a copy is called: as its source, where that is a Megatron checkpoint; else ``release``."""
    inside = checkpoint.info.details.get("iteration")
    number = inside if isinstance(inside, int) and 0 < inside < 10**15 else None
    files = checkpoint.info.files
    return (iteration_of_file(files[0]) if files else None) or number or RELEASE


def write_megatron(
    root: Path, checkpoint: Checkpoint, dtypes: Mapping[str, DType], p: int, read: Callable[[str, DType], Array]
) -> list[Path]:
    """Writes a checkpoint of ``p`` shards into the folder ``root``; gives its files, rank 0 first.

    A shard has storages of its tensors' own size. What of a training is left out has the value that DeepSpeed's loader
    takes for a new one; the number of the iteration is kept.

    Args:
        root: an empty folder.
        checkpoint: whose sizes and iteration the copy gets.
        dtypes: canonical name -> the type to write it in, for every tensor.
        p: one of ``possible_ranks``.
        read: gives a whole tensor by its canonical name; its memory may be used again at the next call.

    Raises:
        ConvertError: the model cannot be split over so many ranks.
        OSError: a file cannot be written. What ``read`` raises comes through, too.
    """
    check_writable(checkpoint)
    check_ranks(checkpoint.config, p)
    iteration = named_iteration(checkpoint)
    number = checkpoint.info.details.get("iteration", iteration)
    rest: dict[str, Any] = {**BOOKKEEPING, "mp_world_size": p}
    if isinstance(number, int):  # upstream asks for none in a release
        rest["iteration"] = number
    shapes = checkpoint.config.tensor_shapes()
    folder = root / str(iteration)
    folder.mkdir()
    files = [folder / DEEPSPEED_NAME.format(rank=rank) for rank in range(p)]
    with contextlib.ExitStack() as stack:
        writers = []
        for file in files:
            tensors = {}
            for name, shape in shapes.items():
                source, kind = source_name(name)
                tensors[source] = Pending(shard_shape(shape, kind, p), dtypes[name])
            writers.append(stack.enter_context(writing(file, {"module": tensors, **rest})))
        for name in shapes:
            shards = split(read(name, dtypes[name]), source_name(name)[1], p)
            for writer, shard in zip(writers, shards, strict=True):
                writer.write(shard)
    (root / TRACKER).write_text(str(iteration))
    return files
