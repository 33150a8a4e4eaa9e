"""``reshard``: the name of ``to-megatron`` for those who have such a checkpoint already."""

from __future__ import annotations

from convert.commands.to_megatron import DESCRIPTION, add_arguments, run

__all__ = ["DESCRIPTION", "EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "Megatron and DeepSpeed shards of one number of model-parallel ranks -> another: the same as to-megatron"
EXAMPLE = "python -m convert reshard --checkpoint CPM-Generate --tensor-parallel 1 --output CPM-Generate-1"
