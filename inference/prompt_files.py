"""Files of prompts: lines of text, JSON lines, or a JSON array, of texts, objects or token ids.

A JSON file may be either kind whatever its suffix says: one that is JSON as a whole is read as such, any other one line
by line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.errors import UserError
from support.files import decode_utf8_lines
from support.messages import describe_json

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PROMPT_FIELDS = ("prompt", "text")
"""Where an object has its prompt: in the first of these that it has."""

RESULT_FIELDS = ("number", "seed", "text", "tokens", "logprobs", "finish_reason", "score")
"""What a result has next to its prompt and the further fields of the prompt's line."""

PromptValue = str | tuple[int, ...]
"""A prompt of a file: a text, or token ids."""

_EXPECTED = 'expected a string, a list of token ids, or an object with one as "prompt" or "text"'


class RecordError(UserError, ValueError):
    """A file of prompts or results that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class PromptLine:
    """A prompt of a file.

    Attributes:
        prompt: the text to be continued, or its tokens.
        fields: what else the line had.
        place: the file and the line, for messages; empty where it came from no file.
    """

    prompt: PromptValue
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    place: str = dataclasses.field(default="", compare=False)


def read_prompts(file: str) -> list[PromptLine]:
    """Read the prompts in a file, and what else its lines have.

    In a text each line that is not empty is a prompt. In JSON lines (``.jsonl``) and in the elements of a JSON array
    (``.json``) each is a string, a list of token ids, or an object with one of these as ``prompt`` or ``text``. ``-``
    is the standard input, of any kind: JSON where its first line begins an object, or is a list or begins one.

    Raises:
        RecordError: the file cannot be read, or a line or an element is not so.
    """
    lines = decode_utf8_lines(_read_bytes(file), file, RecordError)
    suffix = Path(file).suffix.lower()
    if suffix in JSON_SUFFIXES or (file == "-" and _looks_like_json(lines)):
        by_line = suffix in (".jsonl", ".ndjson")
        prompts = [_prompt(f"{file}, {place}", value) for place, value in _json_values(file, lines, by_line=by_line)]
    else:
        prompts = [PromptLine(line, place=f"{file}, line {number}") for number, line in _numbered(lines)]
    if not prompts:
        raise RecordError(f"{file}: has no prompts")
    return prompts


def json_note(file: str, prompts: list[PromptLine]) -> str | None:
    """Say that the lines of a text file are JSON, and are prompts as they stand; None where they are not JSON."""
    lines = [prompt.prompt for prompt in prompts if isinstance(prompt.prompt, str)]
    if file == "-" or Path(file).suffix.lower() in JSON_SUFFIXES or not lines:
        return None
    if not any(isinstance(_parse(text)[0], (list, dict)) for text in (lines[0], "\n".join(lines))):
        return None
    return f"{file} is JSON, and each line of it is read as a text: name it .json or .jsonl for the prompts in it"


def read_lines(file: str) -> list[tuple[int, str]]:
    """Read the lines of a UTF-8 file that are not empty, and their numbers; ``-`` is the standard input.

    Raises:
        RecordError: the file cannot be read, or is not UTF-8.
    """
    return _numbered(decode_utf8_lines(_read_bytes(file), file, RecordError))


def _read_bytes(file: str) -> bytes:
    try:
        if file != "-":
            return Path(file).read_bytes()
        if sys.stdin is None:
            raise RecordError("stdin is closed: expected prompts")
        return sys.stdin.buffer.read()
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from error


def _numbered(lines: list[str]) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _looks_like_json(lines: list[str]) -> bool:
    """Whether lines of unknown kind are JSON; a prompt may begin with a bracket, too: ``[CLS]``."""
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("{") or first == "[":
        return True
    return first.startswith("[") and any(isinstance(_parse(text)[0], list) for text in (first, "\n".join(lines)))


def _json_values(file: str, lines: list[str], *, by_line: bool) -> Iterator[tuple[str, Any]]:
    """Yield the values of an array, else of each line, and where each stands.

    Args:
        file: the name, for messages.
        lines: all lines of the file.
        by_line: where neither can be read, the message is about the first line, not about the whole.
    """
    numbered = _numbered(lines)
    if not numbered:
        return
    whole, error = _parse("\n".join(lines))
    if error is None and not (isinstance(whole, list) and not _is_ids(whole)):
        yield f"line {numbered[0][0]}", whole
    elif error is None:
        for number, value in enumerate(whole, 1):
            yield f"element {number}", value
    elif (by_line and numbered[0][1].strip() != "[") or _parse(numbered[0][1])[1] is None:
        for number, line in numbered:
            value, error = _parse(line)
            if error is not None:
                raise RecordError(f"{file}, line {number}: not JSON: {error}") from error
            yield f"line {number}", value
    else:
        number = error.lineno if isinstance(error, json.JSONDecodeError) else numbered[0][0]
        raise RecordError(f"{file}, line {number}: not JSON: {error}") from error


def _parse(text: str) -> tuple[Any, ValueError | RecursionError | None]:
    """Return what a text is in JSON, else why it is not JSON."""
    try:
        return json.loads(text), None
    except (ValueError, RecursionError) as error:
        return None, error


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _prompt(place: str, value: Any) -> PromptLine:
    """Return the prompt that a value of a JSON file is."""
    fields = dict(value) if isinstance(value, dict) else {}
    if field := next((name for name in PROMPT_FIELDS if name in fields), None):
        value = fields.pop(field)
    if not isinstance(value, str) and not _is_ids(value):
        raise RecordError(f"{place}: {_EXPECTED}, found {describe_json(value)}")
    if taken := [name for name in fields if name in RESULT_FIELDS]:
        raise RecordError(f"{place}: a result has a {taken[0]!r} of its own: give the field another name")
    return PromptLine(value if isinstance(value, str) else tuple(value), fields, place)
