"""A folder that appears at its destination complete, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from convert.output.manifest import MANIFEST, has_only_its_own
from support.errors import ConvertError
from support.files import describe_write_error, flush_to_disk
from support.messages import show_bytes

_NEW, _OLD = "new", "old"
_NAME_MAX = 255
"""Bytes of a name on the usual file systems of Linux."""
_SMALL = 1 << 25
"""Bytes below which an estimate is mostly room for names and headers: the disk says itself when it is full."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a folder is to become.

    Attributes:
        others: what all else is called, as in "has files in it ...".
        is_older: whether a folder is an older result of this kind, which may be replaced.
        forbidden: characters that its path must not have, and ``because`` of what.
    """

    others: str
    is_older: Callable[[Path], bool]
    forbidden: str = ""
    because: str = ""


SAVED_MODEL = Kind(
    others="that this program did not write",
    is_older=lambda folder: (folder / MANIFEST).is_file() and has_only_its_own(folder),
    forbidden="*?[]",
    because="TensorFlow loads nothing from a path with * ? [ or ]",
)


@contextlib.contextmanager
def new_folder(
    destination: Path, *, force: bool, size: int, inputs: Sequence[Path] = (), kind: Kind = SAVED_MODEL
) -> Iterator[Path]:
    """Give an empty folder beside ``destination`` to write into; it takes the destination's name when the block ends.

    The folder is ``.<name>.partial/new`` (``partial_name``); ``.<name>.partial`` is locked while it is in use, and what
    a killed run left in it is cleared by the next one. When the block ends, everything is flushed to the disk and
    renamed. When it raises, everything is removed. An older result is replaced (``force``) by exchanging the two names,
    in one step where the system can.

    Args:
        destination: the folder to make; its parents are made too.
        force: replace an older result that is there. All else that is not empty is left alone, whatever ``force``.
        size: bytes that will be written; free space is checked before the first of them.
        inputs: what the destination must not be, nor contain.
        kind: what is written, and may be replaced.

    Raises:
        ConvertError: the destination exists, cannot be written, is being written by another run; too little space.
    """
    try:
        destination = Path(os.path.abspath(destination))
    except OSError as error:
        raise ConvertError(f"{destination}: the current folder is gone; change to one that is there") from error
    check_destination(destination, force, inputs, kind)
    with _translated(destination), _made(destination.parent):
        partial = destination.with_name(partial_name(destination))
        with _locked(partial, destination):
            free = shutil.disk_usage(partial).free
            if free < size and (size > _SMALL or free < size // 8):
                raise ConvertError(
                    f"{destination}: {show_bytes(size)} are needed, {show_bytes(free)} are free on this disk; choose "
                    "another --output"
                )
            yield partial / _NEW
            _flush(partial / _NEW)
            check_destination(destination, force, inputs, kind)  # again: it may have appeared in the meantime
            _move(partial, destination)
        flush_to_disk(destination.parent)


def partial_name(destination: Path) -> str:
    """Return the name of the folder beside ``destination`` that is written into.

    Where ``.<name>.partial`` is longer than the file system allows, as it may be for a name that is not, the end of the
    name is left out and its hash stands there: the same name in every run.
    """
    name = f".{destination.name}.partial"
    try:
        limit = os.pathconf(destination.parent, "PC_NAME_MAX")
    except (OSError, ValueError):
        limit = _NAME_MAX
    if len(os.fsencode(name)) <= limit:
        return name
    ending = f"-{hashlib.sha256(os.fsencode(destination.name)).hexdigest()[:16]}.partial"
    begin = os.fsencode(destination.name)[: max(0, limit - len(ending) - 1)].decode("utf-8", "ignore")
    return f".{begin}{ending}"


def check_destination(destination: Path, force: bool, inputs: Sequence[Path], kind: Kind = SAVED_MODEL) -> None:
    """Check that ``destination`` may become the new folder without a loss of anything but an older result.

    Raises:
        ConvertError: it may not.
    """
    if "\0" in str(destination) or not is_encodable(destination):
        raise ConvertError(f"{str(destination)!a}: not the name of a folder; choose another --output")
    if set(str(destination)) & set(kind.forbidden):
        raise ConvertError(f"{destination}: {kind.because}; choose another --output")
    try:
        if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
            raise ConvertError(f"{destination}: is not a folder; choose another --output")
        used = [path.resolve() for path in (Path.cwd(), *inputs)]
        resolved = destination.resolve()
    except (OSError, RuntimeError) as error:  # a folder that may not be searched, or is gone; a link to itself
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConvertError(f"{destination}: cannot be looked up: {reason}; choose another --output") from error
    for path in used:
        if path == resolved:
            what = "the current folder" if path == used[0] else "the input"
            raise ConvertError(f"{destination}: is {what}; choose another --output")
        if path.is_relative_to(resolved):
            raise ConvertError(f"{destination}: has {path} in it; choose another --output")
    try:
        if not destination.exists() or not any(destination.iterdir()):
            return
    except OSError as error:
        raise ConvertError(f"{destination}: cannot be read: {error.strerror}") from error
    if not kind.is_older(destination):
        raise ConvertError(f"{destination}: has files in it {kind.others}; choose another --output")
    if not force:
        raise ConvertError(
            f"{destination}: exists already; choose another --output, or replace it with --force "
            "(overwrite=True in Python)"
        )


def is_encodable(path: Path) -> bool:
    """Whether a path can be a name of the file system; a surrogate that stands for no byte cannot."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _translated(destination: Path) -> Iterator[None]:
    """Errors of the file system as one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ConvertError(f"{destination}: the disk is full; nothing was left behind") from error
        raise ConvertError(describe_write_error(error, destination, "choose another --output")) from error


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; those that were made are removed again when the block raises."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _locked(partial: Path, destination: Path) -> Iterator[None]:
    """Make ``partial`` with an empty folder in it, hold a lock on it, and remove it when the block ends.

    The kernel drops the lock with the process, however that ends.
    """
    held, made, handle = False, False, -1
    try:
        while not held:
            if handle >= 0:
                os.close(handle)
                handle = -1
            made = True  # before it is true: an interruption may come in between
            try:
                partial.mkdir()
            except FileExistsError:
                made = False
            try:
                handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The run that held the lock before may have renamed or removed this very folder.
                if os.path.samestat(os.fstat(handle), os.stat(partial)):
                    _check_leftovers(partial)
                    held = True
                    _clear(partial)
            except FileNotFoundError:
                continue
            except BlockingIOError:
                made = False
                raise ConvertError(f"{destination}: another run is writing it now") from None
        yield
    finally:
        if held:
            shutil.rmtree(partial, ignore_errors=True)
        elif made:
            with contextlib.suppress(OSError):  # not there yet; or another run has taken it, and it is not empty
                partial.rmdir()
        if handle >= 0:
            os.close(handle)


def _check_leftovers(partial: Path) -> None:
    """Raise ``ConvertError`` for somebody else's folder: it has other things in it than an earlier run leaves."""
    if {path.name for path in partial.iterdir()} - {_NEW, _OLD}:
        raise ConvertError(f"{partial}: is in the way, and nothing that this program left: move it elsewhere")


def _clear(partial: Path) -> None:
    """Empty what an earlier run has left, and make the folder to write into."""
    for path in partial.iterdir():
        shutil.rmtree(path)
    (partial / _NEW).mkdir()


def _flush(folder: Path) -> None:
    for directory, _, files in os.walk(folder):
        for name in files:
            flush_to_disk(Path(directory, name))
        flush_to_disk(Path(directory))


def _move(partial: Path, destination: Path) -> None:
    """Rename the new folder; one that is in the way goes to ``partial``, to be removed there."""
    new = partial / _NEW
    if not destination.exists():
        new.rename(destination)
        return
    with contextlib.suppress(OSError, AttributeError):
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        names = os.fsencode(new), os.fsencode(destination)
        if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    destination.rename(partial / _OLD)  # file systems and libraries without the exchange
    new.rename(destination)
