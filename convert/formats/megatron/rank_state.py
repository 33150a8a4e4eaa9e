"""What the file of a rank holds: its state dict, which programs put into other dicts and behind prefixes of wrappers.

DeepSpeed has the state dict under ``module``, Megatron under ``model``, Lightning under ``state_dict``; DDP, FSDP and
``torch.compile`` put ``module.`` and ``_orig_mod.`` before its names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from convert.formats import safetensors_file
from convert.formats.candidate import Candidate
from convert.formats.rank_files import (
    RankFile,
    find_first_rank_file,
    has_tracker,
    named_folders,
    resolve_rank_files,
)
from convert.formats.state_dict import AVERAGES, WRAPPERS, key_text
from convert.formats.tensor_map import LazyTensor
from support.errors import CheckpointError

_VIRTUAL_STAGE = re.compile(r"model\d+")
_MAX_DEPTH = 5
"""Of dicts that have nothing but a state dict."""


@dataclasses.dataclass(frozen=True)
class RankContent:
    """A rank's file whose names have been read.

    Attributes:
        path: the file.
        value: the object in the file: a dict, if it is a rank's.
        tensors: makes tensors of a state dict in ``value``; ``CheckpointError`` where a value is none.
        saved_name: the name, without its ending, that the file was saved under; None where nobody knows it.
        is_pickle: whether it is of ``torch.save``; else it is a safetensors file.
    """

    path: Path
    value: Any
    tensors: Callable[[Mapping[Any, object]], Mapping[str, LazyTensor]]
    saved_name: str | None = None
    is_pickle: bool = True


def read_rank(candidate: Candidate, path: Path) -> RankContent:
    """Read the names in a rank's file, of ``torch.save`` or safetensors.

    Raises:
        CheckpointError: the file is damaged.
    """
    if candidate.head(path)[8:9] == b"{":
        header = safetensors_file.read_header(path)
        return RankContent(path, header, lambda state: cast(dict[str, LazyTensor], state), is_pickle=False)
    file = candidate.torch_file(path)
    return RankContent(path, file.value, file.tensors, file.saved_name)


def first_value(candidate: Candidate) -> Any:
    """Return the object in the file that shows what a candidate holds, for recognisers; None where there is none."""
    file = find_first_rank_file(candidate)
    if file is None or candidate.head(file)[8:9] == b"{":
        weights = candidate.weights
        return None if weights is None else weights.beside or dict(weights.tensors)
    return candidate.torch_dict(file)


def find_files(candidate: Candidate, iteration: str | None) -> list[RankFile]:
    """Return the files of all ranks: those in Megatron's or DeepSpeed's folders, else the one file with weights.

    Raises:
        CheckpointError: as ``resolve_rank_files``.
    """
    is_laid_out = has_tracker(candidate) or find_first_rank_file(candidate) is not None or iteration is not None
    if not is_laid_out and candidate.weights is not None:
        return [RankFile(candidate.weights.where)]
    try:
        return resolve_rank_files(candidate, iteration)
    except CheckpointError:
        from convert.formats import refusals  # which knows formats, and is needed here only

        for folder in named_folders(candidate) if candidate.is_dir else []:
            if (reason := refusals.explain_error(Candidate(folder))) is not None:
                raise CheckpointError(f"{folder}: {reason}") from None
        raise


def state_in(
    value: Any, is_state: Callable[[Mapping[Any, Any]], bool], depth: int = _MAX_DEPTH
) -> tuple[str, Mapping[Any, Any]] | None:
    """Find a state dict in the object of a file.

    Args:
        value: the object.
        is_state: whether a dict is the state dict that is looked for.
        depth: how deeply dicts under other keys than the usual ones are searched.

    Returns:
        the key of the object that the state dict is under, empty where it is the object; None where there is none.
    """
    usual = next((pair for pair in _dicts(value, "", set()) if is_state(pair[1])), None)
    if usual is not None or not isinstance(value, dict) or not depth:
        return usual
    inner = {key_text(key): item for key, item in value.items() if isinstance(item, dict) and item is not value}
    keys = [key for key in inner if not AVERAGES.search(key) and not _VIRTUAL_STAGE.fullmatch(key)]
    others = [(key, found[1]) for key in keys if (found := state_in(inner[key], is_state, depth - 1)) is not None]
    return others[0] if len(others) == 1 else None


def _dicts(value: Any, key: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield a dict and those that wrappers have put into it, each once, with the key at the top that leads to it."""
    if isinstance(value, dict) and depth <= _MAX_DEPTH and id(value) not in seen:
        seen.add(id(value))
        yield key, value
        for wrapper in WRAPPERS:
            yield from _dicts(value.get(wrapper), key or key_text(wrapper), seen, depth + 1)


def without_prefix(state: Mapping[Any, Any], known: re.Pattern[str]) -> dict[str, Any]:
    """Take off what stands before every known name; names are texts then, whatever the file has.

    Args:
        state: the state dict.
        known: finds a known name anywhere in a name; what it matches begins after what is taken off.
    """
    names = {key_text(key): value for key, value in state.items()}
    found = [match.start() for name in names if (match := known.search(name))]
    first = next((name for name in names if known.search(name)), "")
    prefix = first[: min(found, default=0)]
    if not all(name.startswith(prefix) for name in names if known.search(name)):
        prefix = ""
    return {name.removeprefix(prefix): value for name, value in names.items()}
