"""LoRA adapters of peft, merged into a checkpoint while its weights are read."""

from __future__ import annotations

from pathlib import Path

from convert.checkpoint import Checkpoint


def merge_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return ``checkpoint`` with the adapter in ``folder`` merged into its weights."""
    raise NotImplementedError(folder)
