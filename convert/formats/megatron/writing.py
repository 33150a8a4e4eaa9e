"""What the writers of both Megatron formats share: the possible numbers of ranks, the iteration, the size of files."""

from __future__ import annotations

import math
from collections.abc import Mapping

from convert.checkpoint import CheckpointInfo
from convert.formats.format import WriteOption
from convert.formats.megatron.layout import shard_spec_of
from convert.formats.megatron.sharding import shard_shape
from convert.formats.rank_files import RELEASE, iteration_of_file
from convert.tensors import DType
from support.errors import ConvertError
from support.messages import list_names
from tf_model.config import GPT2Config

TENSOR_PARALLEL = WriteOption(
    "tensor_parallel",
    "number of model-parallel ranks, each with a file of its own; it must divide the heads and the vocabulary",
    kind=int,
    required=True,
    metavar="P",
)

_TENSOR_BYTES, _FILE_BYTES = 600, 2000
"""Room for headers, padding, names and shapes: for each tensor, and for each file."""


def possible_ranks(config: GPT2Config) -> list[int]:
    """Return the numbers of ranks that a model can be split over, ascending: they divide heads, vocabulary and widths.

    Source: ``divide`` and ``VocabUtility`` in ``mpu/utils.py`` of CPM-1-Generate, which stop at anything else.
    """
    common = math.gcd(*_divided_sizes(config).values())
    return [p for p in range(1, common + 1) if common % p == 0]


def _divided_sizes(config: GPT2Config) -> dict[str, int]:
    """Return the sizes that the ranks share, by their names in a message."""
    return {
        "heads": config.n_head,
        "vocabulary": config.vocab_size,
        "hidden size": config.n_embd,
        "feed-forward width": config.n_inner,
    }


def check_ranks(config: GPT2Config, p: int) -> None:
    """Check that a model of these sizes can be split over ``p`` ranks.

    Raises:
        ConvertError: it cannot; with the sizes that ``p`` does not divide, and the numbers of ranks that are possible.
    """
    possible = possible_ranks(config)
    if p in possible:
        return
    problems = [f"{what} {size}" for what, size in _divided_sizes(config).items() if p > 0 and size % p]
    reason = f"it does not divide {', '.join(problems)}" if problems else "expected 1 or more"
    raise ConvertError(f"{TENSOR_PARALLEL.flag} {p}: {reason}: possible for this model: {list_names(possible, 40)}")


def shard_bytes(config: GPT2Config, dtypes: Mapping[str, DType], p: int) -> int:
    """Return an upper bound of the bytes of all files of ``p`` ranks together."""
    values = sum(
        math.prod(shard_shape(shape, shard_spec_of(name), p)) * dtypes[name].itemsize
        for name, shape in config.tensor_shapes().items()
    )
    return p * (values + len(dtypes) * _TENSOR_BYTES + _FILE_BYTES)


def iteration_for_copy(info: CheckpointInfo) -> int | str:
    """Return the iteration that a copy is named after: that of a Megatron checkpoint, or else ``release``."""
    number = info.details.get("iteration")
    in_file = number if isinstance(number, int) and 0 < number < 10**15 else None
    in_name = iteration_of_file(info.files[0]) if info.files else None
    return in_name or in_file or RELEASE
