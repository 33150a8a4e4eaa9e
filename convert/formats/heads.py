"""The number of attention heads, which the shapes of a GPT-2's tensors do not tell."""

from __future__ import annotations

HEADS = {768: 12, 1024: 16, 2560: 32}
"""Heads by hidden size of the published models: CPM-distill, the medium configuration, CPM-Generate."""


def possible_heads(hidden: int, p: int) -> list[int]:
    """The numbers of heads that divide the hidden size and can be shared out to ``p`` ranks, ascending."""
    return [heads for heads in range(p, hidden + 1, p) if hidden % heads == 0]
