"""What a path is that cannot be read as it is, and the next step, in one line.

A table of descriptions, the first that knows the path counts. They look at names in folders, at the first bytes of
files and at names of tensors, never at weights. Each gives the message without the path in front of it.
"""

from __future__ import annotations

from collections.abc import Callable

from convert.formats.candidate import Candidate
from convert.formats.refusals.below import describe_below
from convert.formats.refusals.folders import (
    describe_adapter,
    describe_archive,
    describe_blobs,
    describe_deepspeed,
    describe_distributed,
    describe_flax,
    describe_lack,
    describe_other_programs,
    describe_saved_model,
    describe_shards,
)
from convert.formats.refusals.heads import describe_file, describe_hdf5
from convert.formats.refusals.look import Look, short_name
from convert.formats.refusals.missing import describe_missing
from convert.formats.refusals.tensors import describe_model_type, describe_names, describe_object, describe_tensors
from support.messages import list_names

_Describe = Callable[[Look], str | None]

CERTAIN: tuple[_Describe, ...] = (
    describe_missing,
    describe_adapter,
    describe_flax,
    describe_deepspeed,
    describe_distributed,
    describe_saved_model,
    describe_shards,
    describe_file,
    describe_hdf5,
    describe_tensors,
    describe_object,
)
"""What says more than the error of a format that took the path for its own and could not open it."""

LIKELY: tuple[_Describe, ...] = (
    describe_model_type,
    describe_other_programs,
    describe_below,
    describe_blobs,
    describe_archive,
    describe_lack,
    describe_names,
)
"""What is said where no format takes the path."""


def explain(candidate: Candidate) -> str | None:
    """Say what a path is that no format recognises, and the next step; None where nobody knows.

    Raises:
        OSError: a folder cannot be read.
    """
    return _first((*CERTAIN, *LIKELY), candidate)


def explain_error(candidate: Candidate) -> str | None:
    """Say what a path is that a format recognised and could not open; None where its own error says more."""
    try:
        return _first(CERTAIN, candidate)
    except OSError:
        return None


def describe_unknown(candidate: Candidate) -> str:
    """Say that a path is nothing that anybody here knows."""
    wanted = "give the file or folder with a GPT-2's weights (model.safetensors, a .pt file ...)"
    if not candidate.is_dir:
        return f"no checkpoint of a known format: {wanted}"
    names = list_names((short_name(entry.name, 24) for entry in candidate.entries()), 3) or "nothing"
    return f"no checkpoint of a known format in it, only {names}: {wanted}"


def _first(table: tuple[_Describe, ...], candidate: Candidate) -> str | None:
    look = Look(candidate)
    return next((text for describe in table if (text := describe(look)) is not None), None)
