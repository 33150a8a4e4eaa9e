"""Rows that pad a vocabulary, left out of a checkpoint."""

from __future__ import annotations

from convert.checkpoint import Checkpoint


def trim_vocabulary(checkpoint: Checkpoint, vocab_size: int) -> Checkpoint:
    """Return ``checkpoint`` without the rows from ``vocab_size`` on."""
    raise NotImplementedError(vocab_size)
