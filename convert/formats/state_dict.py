"""The state dict of a model among the dicts that programs put around it.

``{"model": {...}, "optimizer": {...}}``, dicts within dicts, prefixes of wrappers (``module.``, ``_orig_mod.``):
what a model's tensors are called tells where they are.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.formats import rows
from convert.torch_format.tensor_refs import TensorRef
from support.errors import CheckpointError
from support.messages import short_repr

WRAPPERS = ("module", "model", "state_dict", "model_state_dict", "state", "net", "network", "student", "ema")
"""What programs put a state dict under; where a file has several models, the first of these is meant."""
_MAX_DEPTH = 20
"""Of nested dicts."""
_MAX_ENTRIES, _MAX_NAME = 1_000_000, 1000
_SMALL = (str, int, float, type(None), TensorRef)
"""What is no loss to leave out without a word."""


@dataclasses.dataclass(frozen=True)
class FoundState:
    """What a dict in a file of ``torch.save`` holds.

    Attributes:
        state: the tensors that may be a model's, by their names joined with dots where dicts are nested.
        others: the names of the other tensors of the same dict, which no format has.
        left_out: what else there is, such as ``optimizer``.
        content: the whole dict.
    """

    state: Mapping[str, TensorRef]
    others: tuple[str, ...]
    left_out: tuple[str, ...]
    content: Mapping[Any, Any]


@functools.cache
def pattern_of(format: str) -> re.Pattern[str]:
    """Return what finds a format's names: group 1 is what stands in front of the first known part."""
    return re.compile(rf"((?:[^.]+\.)*?)(?=(?:{rows.find_row(format).tensor_names})(?![^.]))")


@functools.cache
def any_format() -> re.Pattern[str]:
    """Return what finds the names of every format that has a state dict."""
    names = "|".join(row.tensor_names for row in rows.ROWS if row.tensor_names)
    return re.compile(rf"((?:[^.]+\.)*?)(?=(?:{names})(?![^.]))")


def find_state_dict(content: Mapping[Any, Any], file: Path) -> FoundState:
    """Find the tensors of a model in ``content``; ``file`` is for messages.

    Raises:
        CheckpointError: there is more in it than in any checkpoint of a model.
    """
    state = _model_in(content, file, _MAX_DEPTH)
    known = {name: ref for name, ref in state.items() if any_format().match(name)}
    tops = {name.partition(".")[0] for name in known}
    others = [name for name in state if name not in known and name.partition(".")[0] in tops | _plain(content)]
    containers = [key_text(key) for key, value in content.items() if not isinstance(value, _SMALL) and key not in tops]
    return FoundState(known, tuple(others), tuple(containers), content)


def _plain(content: Mapping[Any, Any]) -> set[str]:
    """Return the beginnings of the names of those tensors that are in no dict of their own."""
    return {key_text(key).partition(".")[0] for key, value in content.items() if isinstance(value, TensorRef)}


def key_text(key: Any) -> str:
    """Return a key of a dict as a part of a name."""
    return key if isinstance(key, str) else short_repr(key)


def _model_in(content: Mapping[Any, Any], file: Path, depth: int) -> dict[str, TensorRef]:
    """Return the tensors in nested dicts by their names joined with dots: those of one model, where there are several.

    Raises:
        CheckpointError: more names than any model has.
    """
    state = _flatten(content, file)
    if not depth or not _holds_twice(state):
        return state
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, dict) and any(map(any_format().match, found := _model_in(inner, file, depth - 1))):
            return {f"{wrapper}.{name}": ref for name, ref in found.items()}
    return state


def _holds_twice(state: Mapping[str, TensorRef]) -> bool:
    """Whether two names are the same without what stands in front."""
    matches = [(name, match) for name in state if (match := any_format().match(name))]
    return len({name[match.end() :] for name, match in matches}) < len(matches)


def _flatten(content: Mapping[Any, Any], file: Path) -> dict[str, TensorRef]:
    """Return the tensors in nested dicts; a dict inside itself, or nested too deeply, is passed over.

    So are names longer than any model has: joined, they could take much more memory than the file.

    Raises:
        CheckpointError: there are more entries than any model has: a dict may contain another one many times.
    """
    state: dict[str, TensorRef] = {}
    left: list[tuple[str, Mapping[Any, Any], int]] = [("", content, 0)]
    entries = 0
    while left:
        prefix, values, depth = left.pop()
        entries += len(values)
        if entries > _MAX_ENTRIES:
            raise CheckpointError(f"{file}: more than {_MAX_ENTRIES:,} entries in nested dicts: not a GPT-2")
        inner = []
        for key, value in values.items():
            if not isinstance(value, (TensorRef, dict)) or len(prefix) + len(text := key_text(key)) > _MAX_NAME:
                continue
            if isinstance(value, TensorRef):
                state[f"{prefix}{text}"] = value
            elif depth < _MAX_DEPTH:
                inner.append((f"{prefix}{text}.", value, depth + 1))
        left += reversed(inner)
    return state
