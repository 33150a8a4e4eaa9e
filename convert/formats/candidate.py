"""A path that may be a checkpoint: its folders are listed once and its pickles are parsed once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.formats.tensor_map import LazyTensor
from convert.formats.weights import Weights, find_weights, known_tensors
from convert.torch_format.reader import TorchFile, read_torch_file
from support.errors import CheckpointError
from support.messages import short_repr


class Candidate:
    """What is at ``path``, as far as anybody has looked; every look is remembered.

    Recognisers ask it for names of files and of tensors, and the format that opens the checkpoint takes what they have
    read. It lives for one call of ``open_checkpoint``: later changes on the disk are not seen.

    Attributes:
        path: a file, a folder, or the beginning of the names of some files, as TensorFlow has it.
        weights_error: why ``weights`` is None though there is a file with weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folders: dict[Path, tuple[Path, ...]] = {}
        self._torch_files: dict[Path, TorchFile | CheckpointError] = {}
        self._heads: dict[Path, bytes] = {}
        self.weights_error: CheckpointError | None = None

    @functools.cached_property
    def is_file(self) -> bool:
        return self.path.is_file()

    @functools.cached_property
    def is_dir(self) -> bool:
        return self.path.is_dir()

    @functools.cached_property
    def weights(self) -> Weights | None:
        """The tensors of one file, or of an index, by their names; None where there is no such file.

        A damaged file is None, too: ``weights_error`` has what is wrong with it then.
        """
        try:
            return find_weights(self)
        except CheckpointError as error:
            self.weights_error = error
            return None

    def known_tensors(self, format: str) -> Mapping[str, LazyTensor]:
        """Return the tensors of a format by its own names; nothing where there is no file with weights.

        For recognisers: the format that opens the file reports what is wrong with it.
        """
        try:
            return known_tensors(self.weights, format).tensors if self.weights else {}
        except CheckpointError as error:
            self.weights_error = error
            return {}

    def entries(self, folder: Path | None = None) -> tuple[Path, ...]:
        """List what is in ``folder`` (by default ``path``), sorted; nothing where it is no folder.

        Raises:
            OSError: the folder cannot be read.
        """
        folder = self.path if folder is None else folder
        if folder not in self._folders:
            self._folders[folder] = tuple(sorted(folder.iterdir())) if folder.is_dir() else ()
        return self._folders[folder]

    def head(self, file: Path) -> bytes:
        """Read the first 512 bytes of a regular file; nothing of anything else: a pipe would be waited for.

        Raises:
            OSError: the file cannot be read.
        """
        if file not in self._heads:
            self._heads[file] = b""
            if file.is_file():
                with file.open("rb") as opened:
                    self._heads[file] = opened.read(512)
        return self._heads[file]

    def torch_file(self, file: Path) -> TorchFile:
        """Read a file of ``torch.save``; its pickle is parsed the first time and never again.

        Raises:
            CheckpointError: as ``read_torch_file``.
        """
        if file not in self._torch_files:
            try:
                self._torch_files[file] = read_torch_file(file)
            except CheckpointError as error:
                self._torch_files[file] = error
        found = self._torch_files[file]
        if isinstance(found, CheckpointError):
            raise found
        return found

    def torch_dict(self, file: Path) -> dict[Any, Any]:
        """Read the dict in a file of ``torch.save``; empty where it is no such file, or holds something else.

        For recognisers: the format that opens the file reports damage.
        """
        try:
            value = self.torch_file(file).value
        except CheckpointError:
            return {}
        return value if isinstance(value, dict) else {}

    def torch_state(self, file: Path) -> dict[Any, Any]:
        """Read the state dict in a file of ``torch.save``.

        Raises:
            CheckpointError: as ``read_torch_file``, or the file holds something else than a dict.
        """
        value = self.torch_file(file).value
        if not isinstance(value, dict):
            raise CheckpointError(f"{file}: expected a dict of tensors, found {short_repr(value)}")
        return value
