"""What a path shows without its weights being read: names in a folder, first bytes of files, names of tensors."""

from __future__ import annotations

import functools
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.formats import safetensors_file as safetensors
from convert.formats.candidate import Candidate
from convert.formats.tf_checkpoint import INDEX, open_bundle, prefix_of, prefixes
from convert.torch_format.pickle_values import Placeholder
from convert.torch_format.tensor_refs import TensorRef
from support.errors import CheckpointError

HEAD_BYTES = 1024
_MAX_ENTRIES = 20_000
"""How many names of a folder are looked at; a folder of a dataset may have millions."""
_MAX_CONFIG_BYTES = 1 << 20
_DEPTH = 4
"""How many dicts a state dict may lie in."""
_WEIGHTS = re.compile(
    r"(model\.safetensors|pytorch_model\.bin|mp_rank_0+_model_states\.pt|.+\.(safetensors|bin|pt|pth|ckpt|h5|hdf5))"
)
"""Names of files that may hold weights; those that come first in the pattern are opened first."""
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|rng_state.*|training_args|.*optim_states|zero_pp_rank_.*|scaler)\.(pt|pth|bin)"
)

Shapes = Mapping[str, tuple[int, ...]]


class Look:
    """What is at the path of a candidate that no format could open; every look is remembered.

    Attributes:
        candidate: the candidate.
        path: its path.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.path = candidate.path

    @property
    def is_dir(self) -> bool:
        return self.candidate.is_dir

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names in the folder, sorted; empty where the path is a file."""
        if not self.is_dir:
            return ()
        with os.scandir(self.path) as entries:
            found = [entry.name for entry, _ in zip(entries, range(_MAX_ENTRIES), strict=False)]
        return tuple(sorted(found))

    def has(self, *names: str) -> bool:
        """Whether the folder has all of ``names``."""
        return all(name in self.names for name in names)

    def matching(self, pattern: str) -> list[str]:
        """Return the names that ``pattern`` fits as a whole."""
        compiled = re.compile(pattern)
        return [name for name in self.names if compiled.fullmatch(name)]

    @functools.cached_property
    def weights_files(self) -> list[Path]:
        """Files that may hold weights, the most likely one first: the path itself, or those in the folder."""
        if not self.is_dir:
            return [self.path]
        found = [name for name in self.names if _WEIGHTS.fullmatch(name) and not _NO_WEIGHTS.fullmatch(name)]
        first = ("model.safetensors", "pytorch_model.bin")
        found.sort(key=lambda name: (name not in first, not name.startswith("mp_rank_"), name))
        return [file for name in found[:99] if is_regular(file := self.path / name)]

    @functools.cached_property
    def value(self) -> Any:
        """The object in the first file of weights, where ``torch.save`` wrote it; None elsewhere."""
        try:
            return self.candidate.torch_file(self.weights_files[0]).value if self.weights_files else None
        except CheckpointError:
            return None

    @functools.cached_property
    def tensors(self) -> Shapes:
        """Names and shapes of the tensors in the first file of weights that can be read; empty where none can."""
        if prefix := self._tensorflow_prefix():
            try:
                return {name: tensor.shape for name, tensor in open_bundle(prefix)[0].items()}
            except (CheckpointError, OSError):
                return {}
        if not self.weights_files:
            return {}
        try:
            return {name: t.shape for name, t in safetensors.read_header(self.weights_files[0]).items()}
        except CheckpointError:
            return largest_state(self.value)

    def _tensorflow_prefix(self) -> Path | None:
        """Return the beginning of the names of a checkpoint of TensorFlow."""
        if self.is_dir:
            return next((self.path / name for name in prefixes(self.candidate.entries())), None)
        name = prefix_of(self.path) if self.path.is_file() else self.path.name
        prefix = self.path.with_name(name) if name else None
        return prefix if prefix and prefix.with_name(prefix.name + INDEX).is_file() else None

    @property
    def folder(self) -> Path:
        """The folder of the path: itself, or the one that the file is in."""
        return self.path if self.is_dir else self.path.parent

    def json(self, name: str) -> dict[str, Any]:
        """Read a small JSON object in the folder; empty where there is none."""
        file = self.folder / name
        try:
            if not is_regular(file) or file.stat().st_size > _MAX_CONFIG_BYTES:
                return {}
            values = json.loads(file.read_text("utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}


def short_name(name: str, limit: int = 40) -> str:
    """Return a name for a message, with its beginning and its end where it is long."""
    return name if len(name) <= limit else f"{name[: limit // 2 - 2]}...{name[1 - limit // 2 :]}"


def is_regular(file: Path) -> bool:
    """Whether there is a regular file; a pipe or a device would be waited for."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError):
        return False


def head_of(file: Path) -> bytes:
    """Read the first bytes of a regular file; empty where they cannot be read."""
    if not is_regular(file):
        return b""
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD_BYTES)
    except OSError:
        return b""


def largest_state(value: object) -> Shapes:
    """Return names and shapes of the dict within ``value`` that has the most tensors; each dict is looked at once."""
    largest: Shapes = {}
    seen: set[int] = set()
    left = [(value, 0)]
    while left:
        values, depth = left.pop()
        if not isinstance(values, dict) or id(values) in seen:
            continue
        seen.add(id(values))
        own = {name: t.shape for name, t in values.items() if isinstance(name, str) and isinstance(t, TensorRef)}
        largest = max(largest, own, key=len)
        if depth < _DEPTH:
            left += [(item, depth + 1) for item in values.values() if isinstance(item, dict)]
    return largest


def module_class(value: object) -> str | None:
    """Return the class of a whole ``nn.Module`` that a file holds, or holds as a value of its dict."""
    for item in (value, *(value.values() if isinstance(value, dict) else ())):
        if isinstance(item, Placeholder) and isinstance(item.state, dict) and "_modules" in item.state:
            words = item.args[0] if item.args and isinstance(item.args[0], Placeholder) else item
            return words.name
    return None
