"""The random weights that all engines share: a checkpoint, and beside it where in the file each tensor lies.

Peers may live in a Python that has numpy alone, so reading needs neither this project's readers nor PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tf_model.config import GPT2Config

Array = np.ndarray[Any, Any]
INDEX = "weights.json"


def write(folder: Path, config: GPT2Config) -> None:
    """Writes a random checkpoint of float16, one shard, and its index into ``folder``."""
    from benchmarks.random_checkpoint import DTYPES, write_checkpoint
    from convert.formats.megatron.layout import cpm_name
    from convert.torch_format.reader import load

    (file,) = write_checkpoint(folder / "checkpoint", config, 1, DTYPES["float16"])
    tensors = load(file)["module"]
    places = {}
    for name in config.tensor_shapes():
        tensor = tensors[cpm_name(name)]
        places[name] = tensor.storage.offset + tensor.offset * tensor.dtype.itemsize
    index = {"config": config.to_dict(), "file": str(file.relative_to(folder)), "places": places}
    (folder / INDEX).write_text(json.dumps(index), "utf-8")


class Weights:
    """What ``write`` wrote.

    Attributes:
        folder: where the checkpoint is.
        config: the sizes.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        self.folder = folder
        self.config = GPT2Config.from_dict(index["config"])
        self._file: Path = folder / index["file"]
        self._places: dict[str, int] = index["places"]
        self._shapes = self.config.tensor_shapes()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def __iter__(self) -> Iterator[str]:
        """The canonical names."""
        return iter(self._shapes)

    def read(self, name: str) -> Array:
        """The canonical tensor ``name`` (a matrix is ``[out, in]``), float16, mapped."""
        return np.memmap(self._file, np.float16, "r", self._places[name], self._shapes[name])
