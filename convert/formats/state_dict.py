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

WRAPPERS = ("module", "model", "state_dict", "model_state_dict", "state", "net", "network", "student")
"""What programs put a state dict under; where a file has several models, the first of these is meant."""
AVERAGES = re.compile(r"ema|average|avg|swa|teacher|reference|backup|best", re.IGNORECASE)
"""What the keys of a second model next to the one that was trained are called."""
_OPTIMIZERS = re.compile(
    r"(\w+_)?optim(izers?|_state_dict|izer_state_dict)?|(\w+_)?schedulers?|grad_scaler", re.IGNORECASE
)
"""Keys of dicts that hold moments by the names of the weights."""
MOMENTS = (".exp_avg", ".exp_avg_sq", ".max_exp_avg_sq", ".momentum_buffer", ".step")
_MAX_DEPTH = 20
"""Of nested dicts."""
_MAX_ENTRIES, _MAX_NAME, _MAX_DOTS = 1_000_000, 250, 20
"""Wrappers may put some parts in front of a name; more would only take time."""
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


def is_known(name: object) -> bool:
    """Whether a key is a name that a format's tensor may have."""
    return isinstance(name, str) and is_short(name) and any_format().match(name) is not None


def is_short(name: str) -> bool:
    """Whether a name may be a tensor's: to search longer ones for its parts would only take time."""
    return len(name) <= _MAX_NAME and name.count(".") <= _MAX_DOTS


def find_state_dict(content: Mapping[Any, Any], file: Path) -> FoundState:
    """Find the tensors of a model in ``content``; ``file`` is for messages.

    Raises:
        CheckpointError: there is more in it than in any checkpoint of a model.
    """
    state = _model_in(content, file, _MAX_DEPTH)
    known = {name: ref for name, ref in state.items() if is_known(name)}
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

    Tensors that stand in no dict of their own come first, then those under the usual keys; averages come last.

    Raises:
        CheckpointError: more names than any model has.
    """
    state = _flatten(content, file)
    if not depth or not _holds_twice(state):
        return state
    own = {key: ref for key, ref in content.items() if isinstance(ref, TensorRef) and is_known(key)}
    if own:
        return {name: ref for name, ref in state.items() if name in content}
    models = {}
    for key, inner in content.items():
        if isinstance(inner, dict) and any(map(is_known, found := _model_in(inner, file, depth - 1))):
            models[key] = {f"{key_text(key)}.{name}": ref for name, ref in found.items()}
    usual = next((key for key in WRAPPERS if key in models), None)
    others = [key for key in models if not AVERAGES.search(key_text(key))]
    chosen = usual if usual is not None else others[0] if len(others) == 1 else None
    return state if chosen is None else models[chosen]


def _holds_twice(state: Mapping[str, TensorRef]) -> bool:
    """Whether two names are the same without what stands in front."""
    matches = [(name, match) for name in state if is_short(name) and (match := any_format().match(name))]
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
                if is_short(name := f"{prefix}{text}") and not name.endswith(MOMENTS):
                    state[name] = value
            elif depth < _MAX_DEPTH and not _OPTIMIZERS.fullmatch(text):
                inner.append((f"{prefix}{text}.", value, depth + 1))
        left += reversed(inner)
    return state
