"""Write CPM's checkpoints: canonical tensors in, p model-parallel shards out, one tensor at a time.

    <root>/latest_checkpointed_iteration.txt             "80000" or "release"
    <root>/80000/mp_rank_00_model_states.pt              as DeepSpeed, CPM's releases and its change_mp.py write them

The files of all ranks are written side by side, so each tensor is read once, whatever p is. Sources: as for ``cpm``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.formats.format import Read, Writer, WriteRequest
from convert.formats.limits import ANY, check_holds
from convert.formats.megatron.layout import CPM, cpm_name, shard_spec_of
from convert.formats.megatron.sharding import shard_shape, split
from convert.formats.megatron.writing import TENSOR_PARALLEL, check_ranks, iteration_for_copy, shard_bytes
from convert.formats.rank_files import DEEPSPEED_NAME, TRACKER
from convert.torch_format.writer import Pending, writing

BOOKKEEPING: Mapping[str, int | list[str] | None] = {
    "optimizer": None,
    "lr_scheduler": None,
    "csr_tensor_module_names": [],
    "skipped_steps": 0,
    "global_steps": 0,
    "global_samples": 0,
    "dp_world_size": 1,
}
"""What DeepSpeed's loader asks for next to ``module`` and ``mp_world_size``, as it is before a training has begun.

Source: ``_load_checkpoint`` in ``deepspeed/runtime/engine.py`` of DeepSpeed 0.3. The names are a set there, which the
loader only asks whether a name is in it.
"""


def _check(request: WriteRequest) -> None:
    """Check that the model can be split over the ranks, and that its feed-forward layers are as wide as always.

    A checkpoint of this format with another width than 4 h belongs to a program that somebody changed.

    Raises:
        ConvertError: a size of the model stands in the way.
    """
    config = request.checkpoint.config
    if request.checkpoint.info.format != CPM:
        check_holds(config, {}, f"the format {CPM}")
    check_ranks(config, request.options[TENSOR_PARALLEL.name])


def _size(request: WriteRequest) -> int:
    return shard_bytes(request.checkpoint.config, request.dtypes, request.options[TENSOR_PARALLEL.name])


def _write(request: WriteRequest, root: Path, read: Read) -> list[Path]:
    """Write the tracker file and the files of all ranks into the empty folder ``root``; return the files, rank 0 first.

    The storages of a shard have the size of its tensors. What the files leave out of a training has the value that
    DeepSpeed's loader takes for a new one. The number of the iteration is kept.
    """
    config, info = request.checkpoint.config, request.checkpoint.info
    p = request.options[TENSOR_PARALLEL.name]
    iteration = iteration_for_copy(info)
    folder = root / str(iteration)
    folder.mkdir()
    files = [folder / DEEPSPEED_NAME.format(rank=rank) for rank in range(p)]
    tensors = {
        cpm_name(name): Pending(shard_shape(shape, shard_spec_of(name), p), request.dtypes[name])
        for name, shape in config.tensor_shapes().items()
    }
    content: dict[str, Any] = {"module": tensors, **BOOKKEEPING, "mp_world_size": p}
    number = info.details.get("iteration", iteration)
    if isinstance(number, int):  # upstream asks for none in a release
        content["iteration"] = number
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writing(file, content)) for file in files]
        for name in config.tensor_shapes():
            shards = split(read(name, request.dtypes[name]), shard_spec_of(name), p)
            for writer, shard in zip(writers, shards, strict=True):
                writer.write(shard)
    (root / TRACKER).write_text(str(iteration))
    return files


def _record(request: WriteRequest) -> Mapping[str, Any]:
    return {"iteration": iteration_for_copy(request.checkpoint.info)}


WRITER = Writer(_write, _size, holds={"n_inner": ANY}, check=_check, options=(TENSOR_PARALLEL,), record=_record)
