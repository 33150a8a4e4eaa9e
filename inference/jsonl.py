"""Files of results: JSON lines, appended so that a run can be taken up again."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import io
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inference.prompt_files import PromptLine, PromptValue, RecordError
from support.files import describe_write_error

Key = tuple[PromptValue, int]


@dataclasses.dataclass(frozen=True)
class Job:
    """One result to be made.

    Attributes:
        prompt: the text, or its tokens.
        number: which of the results of this prompt, from 0.
        fields: what else the prompt's line had, to be found again in the record.
    """

    prompt: PromptValue
    number: int
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What tells the job from all others of a run."""
        return self.prompt, self.number


def json_line(record: dict[str, Any], *, ascii_only: bool = False) -> str:
    """Return a record as a line of its file. Half a surrogate pair, which UTF-8 does not have, stays escaped."""
    line = json.dumps(record, ensure_ascii=ascii_only)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(record)
    return line + "\n"


def expand_jobs(prompts: Sequence[PromptLine], number: int) -> list[Job]:
    """Return ``number`` jobs for each prompt; where a prompt occurs again, its numbers go on."""
    seen: collections.Counter[PromptValue] = collections.Counter()
    jobs = []
    for line in prompts:
        jobs += [Job(line.prompt, seen[line.prompt] + n, line.fields) for n in range(number)]
        seen[line.prompt] += number
    return jobs


class ResultFile:
    """A file of results that is being appended to, by one process at a time."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self._path, self._file = path, file

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs whose results are not there yet.

        Raises:
            RecordError: as ``done``.
        """
        done = self.done()
        return [job for job in jobs if job.key not in done]

    def done(self) -> set[Key]:
        """Return prompt and number of the records that are there; cut off what an interrupted run left of a line.

        Raises:
            RecordError: it has lines that are not records; nothing of it is changed.
        """
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        found = {self._parse(number, line) for number, line in enumerate(lines, 1)}
        if rest and not _is_begun(rest):
            found.add(self._parse(len(lines) + 1, rest))
            self._write(b"\n")
        elif rest:
            self._file.truncate(sum(len(line) + 1 for line in lines))
        return found

    def _parse(self, number: int, line: bytes) -> Key:
        try:
            record = json.loads(line)
            prompt, which = record["prompt"], record["number"]
            if isinstance(prompt, list) and all(type(token) is int for token in prompt):
                prompt = tuple(prompt)
            if isinstance(prompt, (str, tuple)) and type(which) is int and isinstance(record["text"], str):
                return prompt, which
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise RecordError(f"{self._path}, line {number}: not a result of this command: choose another --output")

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add a line for each record, on the disk when this returns.

        Raises:
            RecordError: the disk is full, or the like; no part of a line is left.
        """
        self._write("".join(map(json_line, records)).encode())

    def _write(self, content: bytes) -> None:
        lines = memoryview(content)
        end = self._file.seek(0, os.SEEK_END)
        try:
            while lines:
                lines = lines[self._file.write(lines) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise RecordError(f"{self._path}: cannot be written: {error.strerror}") from error


def _is_begun(rest: bytes) -> bool:
    """Return whether a line without its end is the beginning of a record, not a record or somebody's text."""
    if not any(rest.startswith(head) or head.startswith(rest) for head in _HEADS):
        return False
    try:
        json.loads(rest)
    except ValueError:
        return True
    return False


_HEADS = (b'{"prompt": "', b'{"prompt": [')
"""How every record begins."""


@contextlib.contextmanager
def open_results(path: Path) -> Iterator[ResultFile]:
    """Open or make a file of results and lock it; a file that was made is removed where an error leaves it empty.

    Raises:
        RecordError: it cannot be opened, or another process has it.
    """
    if str(path) == "-":
        raise RecordError("-: --output appends to a file, --json prints the results")
    is_new = not os.path.lexists(path)
    try:
        file = io.FileIO(path, "a+")
    except OSError as error:
        raise RecordError(describe_write_error(error, path, "choose another --output")) from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RecordError(f"{path}: not a file: --output appends to a file, --json prints the results")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecordError(f"{path}: another run is writing it: wait for it, or choose another --output") from error
        if not _is_at(path, file):
            raise RecordError(f"{path}: another run has removed it in this moment: start again")
        try:
            yield ResultFile(path, file)
        except BaseException:
            if is_new:
                _remove_empty(path, file)
            raise


def _remove_empty(path: Path, file: io.FileIO) -> None:
    """Remove a file that has no result in it, while it is locked."""
    with contextlib.suppress(OSError):
        if os.fstat(file.fileno()).st_size == 0 and _is_at(path, file):
            path.unlink()


def _is_at(path: Path, file: io.FileIO) -> bool:
    """Whether ``file`` is the one at ``path``, not one that was removed there."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False
