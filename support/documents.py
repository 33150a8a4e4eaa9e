"""Read documents from a file of text: one document in a text file, one a line in JSON lines, the elements of an array.

No more of a text file or of JSON lines is read than is asked for, so a file may be larger than memory.
"""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from support.errors import UserError
from support.files import GB18030, UTF16, check_is_file, is_chinese_utf16, is_cut_off, is_gb18030, is_utf16
from support.messages import describe_json

_JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
JSON_SUFFIXES = (*_JSON_LINES_SUFFIXES, ".json")
"""The files that may have several documents."""

_MAX_BYTES = 1 << 30
"""Bytes of a text file that are read at most, and of one line of JSON lines."""


class Document(NamedTuple):
    """One text of a file.

    Attributes:
        text: what is in it; line ends are line feeds.
        line: its line in JSON lines, or its element in an array, from 1; None where the document is a text file.
        is_cut: whether the file has more text than ``max_characters`` allowed.
        unit: what ``line`` counts: lines or elements.
        fields: the object that the text is of; empty where it was none.
    """

    text: str
    line: int | None = None
    is_cut: bool = False
    unit: str = "line"
    fields: Mapping[str, Any] = MappingProxyType({})

    @property
    def is_complete(self) -> bool:
        """Whether the end of the text is the end of the document, as in JSON lines; a text file may be an excerpt."""
        return self.line is not None

    @property
    def name(self) -> str | None:
        """Which of its file's documents it is: ``line 3``; None where it is a text file."""
        return None if self.line is None else f"{self.unit} {self.line}"

    def place(self, path: Path) -> str:
        """Where the document is, for messages: ``poems.jsonl: line 3``."""
        return str(path) if self.line is None else f"{path}: {self.name}"


def read_documents(path: Path, error: type[UserError], max_characters: int | None = None) -> Iterator[Document]:
    """Yield the documents of a UTF-8 file; each is read when it is asked for.

    Args:
        path: JSON lines where the name ends in ``.jsonl`` or ``.ndjson``: each line a string, or an object with
            ``"text"``, or with ``"lines"``, a list of strings between which line feeds go. JSON where it ends in
            ``.json`` and the content is an array or begins like a value: its elements or lines are such documents. JSON
            lines that are an array or an indented object are read so, too. Any other file is one document.
        error: the class of error that is raised.
        max_characters: how much of a text file is read; None for all of it. JSON lines are read line by line anyway.

    Raises:
        error: the file cannot be read, is not UTF-8, or a line has no text. A file without any text is an error, too.
    """
    suffix = path.suffix.lower()
    if suffix in _JSON_LINES_SUFFIXES and not _begins_as_array(path, error):
        documents = _json_lines(path, error)
    elif suffix in _JSON_LINES_SUFFIXES or (suffix == ".json" and _begins_as_json(path, error)):
        documents = _json_values(path, error)
    else:
        documents = _whole_file(path, error, max_characters)
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise error(f"{path}: expected a text, found none")


def read_text_file(path: Path, error: type[UserError], max_characters: int | None = None) -> tuple[str, bool]:
    """Read what a UTF-8 file begins with, and whether there is more of it; line ends become line feeds.

    Raises:
        error: the file cannot be read, or is not UTF-8 text.
    """
    try:
        check_is_file(path, error, may_be_stream=True)
        with path.open("rb") as file:
            size = -1 if max_characters is None else min(4 * max_characters, _MAX_BYTES)
            content = file.read(size)
            has_more = max_characters is not None and bool(file.read(1))
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}") from failure
    text = _decode(path, content, error, is_end=not has_more)
    is_cut = has_more or (max_characters is not None and len(text) > max_characters)
    return text[:max_characters].replace("\r\n", "\n"), is_cut


def _whole_file(path: Path, error: type[UserError], max_characters: int | None) -> Iterator[Document]:
    text, is_cut = read_text_file(path, error, max_characters)
    if text.strip():
        yield Document(text, is_cut=is_cut)


def _json_lines(path: Path, error: type[UserError]) -> Iterator[Document]:
    for number, line in enumerate(_lines(path, error), 1):
        if not line.strip():
            continue
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError) as failure:
            raise error(f"{path}: line {number}: not JSON: {failure}") from failure
        yield _document(path, error, value, number)


def _begins_as_json(path: Path, error: type[UserError]) -> bool:
    beginning, _ = read_text_file(path, error, 4096)
    return beginning.lstrip()[:1] in ("[", "{", '"')


def _begins_as_array(path: Path, error: type[UserError]) -> bool:
    """Whether a file begins as an array or an indented object, which no JSON line with a text does."""
    try:
        check_is_file(path, error, may_be_stream=True)
        with path.open("rb") as file:
            beginning = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}") from failure
    return beginning.startswith(b"[") or beginning.partition(b"\n")[0].strip() == b"{"


def json_note(path: Path, document: Document) -> str | None:
    """Say that a text file is JSON, and is read as one text; None where it is not JSON."""
    if document.line is not None or document.is_cut or document.text.lstrip()[:1] not in ("[", "{"):
        return None
    lines = document.text.strip().partition("\n")[0], document.text
    if not any(isinstance(_parsed(text), (list, dict)) for text in lines):
        return None
    return f"{path} is JSON, and is read as one text: name it .json or .jsonl for the texts in it"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_values(path: Path, error: type[UserError]) -> Iterator[Document]:
    """Yield the elements of an array; of anything else that is not one value, its lines."""
    text, _ = read_text_file(path, error)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as failure:
        if text.lstrip().partition("\n")[0].strip() == "[":
            line = failure.lineno if isinstance(failure, json.JSONDecodeError) else 1
            raise error(f"{path}: line {line}: not JSON: {failure}") from failure
        yield from _json_lines(path, error)
        return
    for number, one in enumerate(value if isinstance(value, list) else [value], 1):
        yield _document(path, error, one, number, "element")


def _document(path: Path, error: type[UserError], value: Any, number: int, unit: str = "line") -> Document:
    fields = value if isinstance(value, dict) else {}
    text = fields.get("text", _joined(fields.get("lines"))) if fields else value
    if not isinstance(text, str) or not text.strip():
        found = describe_json(value) if not isinstance(value, str) else "one without characters"
        raise error(
            f'{path}: {unit} {number}: expected a string with a text, or an object with one as "text", found {found}'
        )
    return Document(text, number, unit=unit, fields=fields)


def _joined(lines: Any) -> str | None:
    """Return a list of lines as one text; None where it is no list of strings."""
    is_text = isinstance(lines, list) and all(isinstance(line, str) for line in lines)
    return "\n".join(lines) if is_text else None


def _lines(path: Path, error: type[UserError]) -> Iterator[str]:
    start = 0
    try:
        with path.open("rb") as file:
            for number in itertools.count(1):
                line = file.readline(_MAX_BYTES)
                if not line:
                    return
                if len(line) == _MAX_BYTES:
                    raise error(
                        f"{path}: line {number}: has more than {_MAX_BYTES >> 30} GB: expected a document a line"
                    )
                yield _decode(path, line, error, start, first_line=number)
                start += len(line)
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}") from failure


def _decode(
    path: Path, content: bytes, error: type[UserError], start: int = 0, *, first_line: int = 1, is_end: bool = True
) -> str:
    """Decode what a file has from byte ``start`` on, which is in line ``first_line``.

    Without ``is_end`` it may stop within a character.
    """

    def place(offset: int) -> str:
        lines = content.count(b"\n", 0, offset)
        return f"byte {start + offset} (line {first_line + lines})"

    if not start and is_utf16(content):
        raise error(f"{path}: {UTF16}")
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=is_end)
    except UnicodeDecodeError as failure:
        if not start and is_chinese_utf16(content):
            raise error(f"{path}: {UTF16}") from failure
        if is_end and is_cut_off(content, failure.start):
            raise error(
                f"{path}: the UTF-8 text ends within a character, at {place(failure.start)}: the file was cut off: "
                "copy it again"
            ) from failure
        advice = f"it looks like {GB18030}" if is_gb18030(content, failure.start) else "save it as UTF-8"
        found = f"another encoding at {place(failure.start)}: {advice}"
        raise error(f"{path}: expected UTF-8 text, found {found}") from failure
    if (zero := content.find(0)) >= 0:
        raise error(f"{path}: expected UTF-8 text, found a NUL at {place(zero)}: not a text file")
    return text if start else text.removeprefix("\ufeff")
