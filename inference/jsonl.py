"""Files of the command line: prompts in, results out as JSON lines, appended so that a run can be taken up again."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import io
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.errors import UserError
from support.files import decode_utf8_lines

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")

RESULT_FIELDS = ("number", "seed", "text", "tokens", "logprobs", "finish_reason", "score")
"""What a result has next to its prompt and the further fields of the prompt's line."""


class RecordError(UserError, ValueError):
    """A file of prompts or results that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class PromptLine:
    """A line of a file of prompts.

    Attributes:
        prompt: the text to be continued.
        fields: what else the line had.
    """

    prompt: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Job:
    """One result to be made.

    Attributes:
        prompt: the text.
        number: which of the results of this prompt, from 0.
        fields: what else the prompt's line had, to be found again in the record.
    """

    prompt: str
    number: int
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """What tells the job from all others of a run."""
        return self.prompt, self.number


def read_prompts(file: str) -> list[PromptLine]:
    """Read the prompts in a file, and what else its lines have.

    In a text each line that is not empty is a prompt. In JSON lines (``.jsonl``) each is a string or an object with
    ``prompt``. ``-`` is the standard input, of either kind: JSON if its first line is an object.

    Raises:
        RecordError: the file cannot be read, or a line is not so.
    """
    lines = read_lines(file)
    as_json = Path(file).suffix in JSON_SUFFIXES or (file == "-" and lines[:1] and lines[0][1].lstrip().startswith("{"))
    prompts = [_parse(file, i, line) if as_json else PromptLine(line) for i, line in lines]
    if not prompts:
        raise RecordError(f"{file}: has no prompts")
    return prompts


def read_lines(file: str) -> list[tuple[int, str]]:
    """Read the lines of a UTF-8 file that are not empty, and their numbers; ``-`` is the standard input.

    Raises:
        RecordError: the file cannot be read, or is not UTF-8.
    """
    lines = decode_utf8_lines(_read_bytes(file), file, RecordError)
    return [(i, line) for i, line in enumerate(lines, 1) if line.strip()]


def _read_bytes(file: str) -> bytes:
    try:
        if file != "-":
            return Path(file).read_bytes()
        if sys.stdin is None:
            raise RecordError("stdin is closed: expected prompts")
        return sys.stdin.buffer.read()
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from error


def _parse(file: str, number: int, line: str) -> PromptLine:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file}, line {number}: not JSON: {error}") from error
    if isinstance(value, str):
        return PromptLine(value)
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        if taken := [name for name in value if name in RESULT_FIELDS]:
            raise RecordError(
                f"{file}, line {number}: a result has a {taken[0]!r} of its own: give the field another name"
            )
        return PromptLine(value.pop("prompt"), value)
    raise RecordError(f'{file}, line {number}: expected a string, or an object with the string "prompt"')


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
    seen: collections.Counter[str] = collections.Counter()
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

    def done(self) -> set[tuple[str, int]]:
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

    def _parse(self, number: int, line: bytes) -> tuple[str, int]:
        try:
            record = json.loads(line)
            prompt, which = record["prompt"], record["number"]
            if isinstance(prompt, str) and type(which) is int and isinstance(record["text"], str):
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
    if not (rest.startswith(_HEAD) or _HEAD.startswith(rest)):
        return False
    try:
        json.loads(rest)
    except ValueError:
        return True
    return False


_HEAD = b'{"prompt": "'
"""How every record begins."""


@contextlib.contextmanager
def open_results(path: Path) -> Iterator[ResultFile]:
    """Open or make a file of results and lock it.

    Raises:
        RecordError: it cannot be opened, or another process has it.
    """
    if str(path) == "-":
        raise RecordError("-: --output appends to a file, --json prints the results")
    try:
        file = io.FileIO(path, "a+")
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RecordError(f"{path}: not a file: --output appends to a file, --json prints the results")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecordError(f"{path}: another run is writing it: wait for it, or choose another --output") from error
        yield ResultFile(path, file)
