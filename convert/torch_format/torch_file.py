"""A file of ``torch.save`` after its pickle has been parsed: its value, its saved name, and its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.torch_format.tensor_refs import Storage, TensorRef
from support.errors import CheckpointError
from support.messages import list_names, short_repr


class TorchTensor(NamedTuple):
    """A tensor of a ``TorchFile`` under the name that the file gives it.

    Attributes:
        file: the file.
        name: the tensor's name in its state dict.
        ref: where the values are.
        checked: the storages of the file whose checksum has been compared; all tensors of the file share the set.
    """

    file: Path
    name: str
    ref: TensorRef
    checked: set[Storage]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ref.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.ref.dtype

    @property
    def lacks_checksum(self) -> bool:
        """Whether the file has no checksum for the tensor, so that damage would not be noticed."""
        return self.ref.storage.crc is None

    def numpy(self) -> np.ndarray[Any, Any]:
        """Map the values, read-only; compare the checksum of their storage first, once for each storage.

        Raises:
            CheckpointError: the bytes are damaged, or cannot be read any more.
        """
        if self.ref.storage not in self.checked:
            self.ref.storage.check()
            self.checked.add(self.ref.storage)
        return self.ref.numpy()


@dataclasses.dataclass(frozen=True, eq=False)
class TorchFile:
    """A file of ``torch.save`` whose pickle has been parsed.

    Attributes:
        path: the file.
        value: the object in the file, as ``reader.load`` describes it. Several readers may share it: do not change it.
        saved_name: the name, without its ending, that the file had when PyTorch wrote it; None in the legacy format.
    """

    path: Path
    value: Any
    saved_name: str | None
    _checked: set[Storage] = dataclasses.field(default_factory=set, init=False, repr=False)

    def tensors(self, state: Mapping[Any, object]) -> dict[str, TorchTensor]:
        """Return the tensors of a state dict of the value, by name.

        Raises:
            CheckpointError: a value is not a tensor, or a tensor has more bytes than the file.
        """
        tensors: dict[str, TorchTensor] = {}
        for name, value in state.items():
            where = f"{self.path}: {list_names([name])}"
            if not isinstance(name, str) or not isinstance(value, TensorRef):
                raise CheckpointError(f"{where}: expected a tensor, found {short_repr(value)}")
            if value.nbytes > value.storage.nbytes:  # a view that repeats values: small in the file, huge in memory
                raise CheckpointError(f"{where}: {value.nbytes} bytes, of which the file has fewer")
            tensors[name] = TorchTensor(self.path, name, value, self._checked)
        return tensors
