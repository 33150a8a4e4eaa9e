"""The checkpoints that upstream published, known by their hashes."""

from __future__ import annotations

from collections.abc import Sequence

from tf_model.config import GPT2Config

CPM_GENERATE = GPT2Config(vocab_size=30000, n_positions=1024, n_embd=2560, n_layer=32, n_head=32)

_SHA1: dict[tuple[str, ...], str] = {
    ("7a8461098dae374a836f55bf2002bf21cba05964", "6ab97bd06979c1707080b33cfddff4f08c9af675"): (
        "CPM-Generate, first release (November 2020)"
    ),
    ("71d6b6ad4f47b46724eb82c05da8fb9175e62a7d", "42aa247a262e2011fa5e276f1a8389fad6d80edc"): (
        "CPM-Generate, second release (since 2020-12-13)"
    ),
}
"""SHA-1 of rank 0 and rank 1, from the README of CPM-1-Generate (its commits 2422770 and 3f816d1)."""


def may_be_known(config: GPT2Config, shards: int) -> bool:
    """Whether a checkpoint of these sizes is worth a SHA-1."""
    return config == CPM_GENERATE and shards == len(next(iter(_SHA1)))


def release_name(sha1: Sequence[str]) -> str | None:
    """The published checkpoint whose shards, rank 0 first, have these SHA-1 hashes."""
    return _SHA1.get(tuple(sha1))
