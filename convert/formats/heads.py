"""The number of attention heads, which cannot be read from the shapes of a GPT-2's tensors."""

from __future__ import annotations

from pathlib import Path

from convert.output.manifest import ManifestError, read_manifest
from support.errors import CheckpointError
from support.messages import list_names, pluralize

HEADS = {768: 12, 1024: 16, 2560: 32}
"""Heads by hidden size of the published models: CPM-distill, the medium configuration, CPM-Generate."""


def possible_heads(hidden: int, p: int) -> list[int]:
    """Return the numbers of heads that divide the hidden size and can be shared out to ``p`` ranks, ascending."""
    return [heads for heads in range(p, hidden + 1, p) if hidden % heads == 0]


def head_count_from_manifest(path: Path, hidden: int) -> int | None:
    """Return the number of heads that the manifest of a copy records; None where there is no such manifest.

    CPM's files themselves do not record it.

    Args:
        path: the copy, or the folder of its iteration.
        hidden: its hidden size.
    """
    for folder in (path, path.parent):
        try:
            config = read_manifest(folder)["config"]
            if config["n_embd"] == hidden and type(config["n_head"]) is int:
                return int(config["n_head"])
        except (ManifestError, KeyError, TypeError):
            continue
    return None


def resolve_head_count(where: Path, hidden: int, ranks: int, given: int | None, stored: int | None = None) -> int:
    """Return the number of heads: as stored or given, else that of the published model of this hidden size.

    Args:
        where: the file for messages.
        hidden: the hidden size.
        ranks: model-parallel ranks that the heads are shared out to.
        given: the number that the user gave, if any.
        stored: the number that the files record, if any.

    Raises:
        CheckpointError: heads do not divide the hidden size or cannot be shared out to the ranks, nobody knows them, or
            other ones are given than are stored.
    """
    if stored is not None and given is not None and stored != given:
        raise CheckpointError(f"{where}: says {stored} heads, but --heads {given}: leave that out")
    heads = stored if stored is not None else HEADS.get(hidden) if given is None else given
    possible = possible_heads(hidden, ranks)
    if heads in possible:
        return heads
    likely = [n for n in possible if 32 <= hidden // n <= 128]
    hint = f"likely {list_names(likely, 20)} (32 to 128 wide), " if likely else ""
    if stored is not None:
        problem, hint = f"{stored} heads do not fit", hint.replace("likely", "expected")
    elif given is None:
        problem = "the number of heads is not in the file"
    else:
        problem = f"{given} heads do not fit"
    advice = "" if stored is not None else "give --heads (heads= in Python), "
    problem += f" (hidden size {hidden}, {pluralize(ranks, 'rank')})"
    raise CheckpointError(f"{where}: {problem}: {advice}{hint}possible {list_names(possible, 40)}")
