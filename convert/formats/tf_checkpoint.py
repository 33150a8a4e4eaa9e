"""TensorFlow's checkpoint files ("tensor bundle", version 2), read by TensorFlow, one tensor at a time.

    <prefix>.index                       names, types, shapes, places, and a CRC-32C of each tensor
    <prefix>.data-00000-of-00001         the values; there may be several such files

Sources: ``tensor_bundle.proto`` and ``tensor_bundle.cc`` of TensorFlow. ``exports/tensor_bundle.py`` writes them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from convert.tensors import Array, DType
from support.errors import CheckpointError
from support.messages import list_names
from support.tensorflow_runtime import one_line_message, quiet_stderr

INDEX = ".index"
_DATA = re.compile(r"(.+)\.data-(\d{5})-of-(\d{5})")
_PATTERN = set("*?[]\\")
"""TensorFlow looks for the index as for a pattern of names."""
_POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class BundleTensor:
    """A tensor of a checkpoint of TensorFlow: a ``LazyTensor``. Its values are checked as they are read."""

    file: Path
    name: str
    """For messages: ``key``, or a better name."""
    shape: tuple[int, ...]
    dtype: DType
    key: str
    """As the file calls it."""
    reader: Any
    """TensorFlow's, of the whole checkpoint."""
    lacks_checksum: bool = False

    def numpy(self) -> Array:
        try:
            values: Array = self.reader.get_tensor(self.key)
        except Exception as error:  # TensorFlow's own kinds, and an IndexError where the file ends too early
            raise CheckpointError(
                f"{self.file}: {list_names([self.name])}: cannot be read: {one_line_message(error)}: "
                "damaged or cut off, get "
                "it again"
            ) from error
        if values.shape != self.shape:  # a scalar has come, or parts of another tensor
            raise CheckpointError(f"{self.file}: {list_names([self.name])}: expected {list(self.shape)}: damaged")
        return values


def prefix_of(file: Path) -> str | None:
    """Return the name that the checkpoint has of which ``file`` is a part, by its name only."""
    if match := _DATA.fullmatch(file.name):
        return match[1]
    return file.stem if file.suffix in (INDEX, ".meta") else None


def prefixes(entries: Iterable[Path]) -> list[str]:
    """Return the names of the checkpoints in a folder: those of the files that end with ``.index``."""
    return sorted(path.stem for path in entries if path.suffix == INDEX and path.stem and path.is_file())


def data_files(prefix: Path) -> list[Path]:
    """Return the files with the values of a checkpoint.

    Raises:
        CheckpointError: there are none, or some are missing.
        OSError: the folder cannot be read.
    """
    found: dict[int, set[int]] = {}
    for path in prefix.parent.iterdir():
        if (match := _DATA.fullmatch(path.name)) and match[1] == prefix.name:
            found.setdefault(int(match[3]), set()).add(int(match[2]))
    count = max(found, default=1)
    names = [f"{prefix.name}.data-{i:05d}-of-{count:05d}" for i in range(count)]
    missing = [name for i, name in enumerate(names) if i not in found.get(count, ())]
    if missing:
        raise CheckpointError(
            f"{prefix}{INDEX}: {list_names(missing)}: missing in the same folder: get all files of the checkpoint"
        )
    return [prefix.with_name(name) for name in names]


def open_bundle(
    prefix: Path, wanted: Callable[[str], bool] = lambda key: True
) -> tuple[dict[str, BundleTensor], list[Path]]:
    """Return the tensors of a checkpoint by name, and the files that their values are in; only the index is read.

    Args:
        prefix: path of the files without ``.index`` and ``.data-*``.
        wanted: which; of these none may be part of another.

    Raises:
        CheckpointError: a file is missing, damaged, or shorter than its tensors.
        OSError: a file cannot be read.
    """
    index = prefix.with_name(prefix.name + INDEX)
    if not index.is_file():
        raise CheckpointError(f"{index}: is missing: get all files of the checkpoint")
    files = data_files(prefix)
    for file in (index, *files):
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{file}: expected a file, found something else")
        with file.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                raise CheckpointError(f"{file}: a Git LFS pointer: fetch the file itself with `git lfs pull`")
    if strange := sorted(_PATTERN & {*str(prefix)}):
        raise CheckpointError(
            f"{prefix}: TensorFlow reads nothing from a path with {' '.join(strange)} in it: rename it"
        )
    with quiet_stderr():  # takes seconds
        import tensorflow as tf
    where = files[0] if len(files) == 1 else index  # which of several has a tensor, the reader does not tell
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        sources = {
            key: BundleTensor(where, key, tuple(shape), _numpy(dtypes[key]), key, reader)
            for key, shape in sorted(shapes.items())
            if wanted(key)
        }
    except Exception as error:  # whatever a broken file makes it stumble over
        raise CheckpointError(f"{index}: cannot be read: {one_line_message(error)}: damaged, get it again") from error
    needed = sum(math.prod(s.shape) * s.dtype.itemsize for s in sources.values() if not s.dtype.hasobject)
    size = sum(file.stat().st_size for file in files)
    if size < needed:
        raise CheckpointError(f"{where}: expected {needed} bytes or more, found {size}: cut off, get it again")
    return sources, files


def _numpy(dtype: Any) -> DType:
    """NumPy's name for a type of TensorFlow's; ``object`` for strings and for types that NumPy lacks."""
    try:
        found: DType = np.dtype(dtype.as_numpy_dtype)
        return found
    except (KeyError, TypeError, AttributeError):
        return np.dtype(object)
