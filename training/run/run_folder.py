"""``DIR.training/``: what a training run keeps on the disk, so that the same command goes on where it was stopped."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.output.hashing import hash_file
from support.errors import UserError
from support.files import describe_read_error, describe_write_error, read_json_object, replacing, write_json
from support.messages import list_names
from training.differences import find_changed_options
from training.own_folders import RECORD

MAKE_ROOM = "make room and give the same command again: it goes on from the last state"
START_OVER = "start over with --fresh (fresh=True in Python)"
"""What a user can do where the disk is full, and where a run cannot go on."""
_LOCK = "lock"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunError(UserError):
    """A run that cannot go on: of another command, damaged, in use, or out of disk space."""


class RunFolder:
    """The files of a run; ``open_run`` makes one.

    Attributes:
        folder: ``DIR.training``.
        record: ``run.json``: what decides the weights that come out: options, hashes of texts and model.
        state: trained variables, optimizer and counters of the last step that was saved.
        best: the trained variables that had the best validation loss.
        held_out: the documents that were held out, as JSON lines that ``verify --text`` reads.
        log: a row a step.
        events: what TensorBoard shows.
        samples: texts that the model wrote while it was trained.
        plot: a picture of both losses.
        adapter: of LoRA, in peft's format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / RECORD
        self.state = folder / "state.safetensors"
        self.best = folder / "best.safetensors"
        self.held_out = folder / "held-out.jsonl"
        self.log = folder / "log.csv"
        self.events = folder / "events"
        self.samples = folder / "samples"
        self.plot = folder / "plot.png"
        self.adapter = folder / "adapter"

    def own(self) -> list[Path]:
        """Return the files and folders that a run writes, but for the lock, whether or not they are there."""
        files = [self.record, self.state, self.best, self.held_out, self.log, self.plot]
        return [
            *files,
            *(path.with_name(f"{path.name}.new") for path in files),
            self.events,
            self.samples,
            self.adapter,
        ]

    def write_held_out(self, texts: Sequence[str]) -> None:
        """Write the documents that were held out, if there are any.

        Raises:
            RunError: they cannot be written.
        """
        if not texts:
            return
        with writing_to(self.held_out, MAKE_ROOM), replacing(self.held_out) as new:
            new.write_text("".join(f"{json.dumps({'text': text}, ensure_ascii=False)}\n" for text in texts), "utf-8")

    def finish(self) -> None:
        """Drop state and best weights, which only a run that goes on needs: the weights are in the result."""
        for path in (self.state, self.best):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_run(folder: Path, record: Mapping[str, Any], *, fresh: bool = False) -> Iterator[RunFolder]:
    """Give the folder of a run, which no other process may use meanwhile.

    Args:
        folder: it and its parents are made if need be.
        record: what decides the weights that come out, as JSON has it. A run goes on only with the same.
        fresh: drop what an earlier run has left.

    Raises:
        RunError: the folder is in use, has files of something else, or a run with another record.
    """
    run = RunFolder(folder)
    with writing_to(folder, "choose another --output"):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        with writing_to(folder, "choose another --output"):
            _begin(run, record, fresh)
        yield run


def _begin(run: RunFolder, record: Mapping[str, Any], fresh: bool) -> None:
    """Check the files of an earlier run, or drop them; write the record."""
    known = {_LOCK, *(path.name for path in run.own())}
    if others := sorted(path.name for path in run.folder.iterdir() if path.name not in known):
        raise RunError(f"{run.folder}: has {list_names(others)} in it, which no training left there: move it elsewhere")
    if fresh or not run.state.exists():  # without a state nothing was trained
        for path in run.own():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    else:
        _check_record(run, record)
    with replacing(run.record) as new:
        write_json(new, record)


def _check_record(run: RunFolder, record: Mapping[str, Any]) -> None:
    """Check that an earlier run had the same record."""
    old = read_json_object(run.record, RunError, START_OVER)
    if changed := find_changed_options(old, json.loads(json.dumps(record))):
        raise RunError(
            f"{run.folder}: was trained with other options or files: {'; '.join(changed)}: "
            f"give the same again, or {START_OVER}"
        )


def hash_files(paths: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of files, and of all files in folders, by path as given.

    Raises:
        RunError: one cannot be read.
    """
    hashes = {}
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            try:
                hashes[str(file)] = hash_file(file)["sha256"]
            except OSError as error:
                raise RunError(describe_read_error(error, file)) from error
    return hashes


@contextlib.contextmanager
def writing_to(path: Path, advice: str) -> Iterator[None]:
    """Errors of the file system as one line; ``advice`` is what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise RunError(f"{path}: the disk is full: {advice}") from error
        raise RunError(describe_write_error(error, path, advice)) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the kernel drops it with the process, however that ends."""
    with writing_to(folder, "choose another --output"):
        file = (folder / _LOCK).open("wb")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder}: another run is training in it now") from None
        yield
