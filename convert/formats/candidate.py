"""A path that may be a checkpoint: its folders are listed once and its pickles are parsed once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from convert.torch_format.reader import TorchFile, read_torch_file
from support.errors import CheckpointError
from support.messages import short_repr


class Candidate:
    """What is at ``path``, as far as anybody has looked; every look is remembered.

    Recognisers ask it for names of files and of tensors, and the format that opens the checkpoint takes what they have
    read. It lives for one call of ``open_checkpoint``: later changes on the disk are not seen.

    Attributes:
        path: a file, a folder, or the beginning of the names of some files, as TensorFlow has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folders: dict[Path, tuple[Path, ...]] = {}
        self._torch_files: dict[Path, TorchFile | CheckpointError] = {}

    @functools.cached_property
    def is_file(self) -> bool:
        return self.path.is_file()

    @functools.cached_property
    def is_dir(self) -> bool:
        return self.path.is_dir()

    def entries(self, folder: Path | None = None) -> tuple[Path, ...]:
        """List what is in ``folder`` (by default ``path``), sorted; nothing where it is no folder.

        Raises:
            OSError: the folder cannot be read.
        """
        folder = self.path if folder is None else folder
        if folder not in self._folders:
            self._folders[folder] = tuple(sorted(folder.iterdir())) if folder.is_dir() else ()
        return self._folders[folder]

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
