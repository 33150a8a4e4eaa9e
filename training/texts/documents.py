"""Read the documents that a model is trained on: text files, JSON lines, folders of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import documents as text_files
from support.errors import UserError
from support.messages import describe_json

if TYPE_CHECKING:
    from training.texts.presets import Preset

SUFFIXES = (".txt", ".jsonl")
"""The files of a folder that are read."""


class TextError(UserError):
    """A text that cannot be trained on; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text that a model learns as one.

    Attributes:
        text: what is in it; line ends are line feeds.
        prefix: what stands before the text, each of its fields ended by a line feed.
        place: where it is from, for messages: ``songs.txt, line 3``.
    """

    text: str
    prefix: str = ""
    place: str = ""


def read_documents(paths: Sequence[Path], preset: Preset, prefix_fields: Sequence[str] = ()) -> list[Document]:
    """Read the documents of files and folders, in their order.

    Args:
        paths: UTF-8 text files, files of JSON (``support.documents.read_documents``), and folders, of which every
            ``.txt`` and ``.jsonl`` is read, sorted by path, with those of the folders in them.
        preset: how a text file is cut into documents.
        prefix_fields: the fields of JSON objects that stand before the text as ``value`` and a line feed.

    Raises:
        TextError: a file cannot be read, is no UTF-8 or has no text, or a line lacks a field.
    """
    found: list[Document] = []
    for file in find_files(paths):
        found += _documents_of(file, preset, prefix_fields)
    return found


def to_paths(text: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the paths of texts that a caller names: one, or several."""
    return [Path(path) for path in ([text] if isinstance(text, (str, Path)) else text)]


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that are read: those named, and those of folders.

    Raises:
        TextError: there is no such file, or a folder has none.
    """
    result: list[Path] = []
    for path in paths:
        if not path.is_dir():
            result.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            raise TextError(f"{path}: expected files named {' or '.join(SUFFIXES)} in the folder, found none")
        result += inside
    return result


def _documents_of(file: Path, preset: Preset, prefix_fields: Sequence[str]) -> Iterator[Document]:
    for document in text_files.read_documents(file, TextError):
        if document.line is not None:
            place = f"{file}, {document.name}"
            prefix = "".join(f"{_field(document.fields, name, place)}\n" for name in prefix_fields)
            yield _checked(Document(document.text.replace("\r\n", "\n"), prefix, place))
        elif prefix_fields:
            raise TextError(f"{file}: --prefix {' '.join(prefix_fields)} takes fields of JSON lines: found a text file")
        else:
            for line, text in preset.split(document.text):
                yield _checked(Document(text, place=f"{file}, line {line}"))


def _field(fields: Mapping[str, Any], name: str, place: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        found = f"a line with {', '.join(fields) or 'no fields'}" if name not in fields else describe_json(value)
        raise TextError(f"{place}: expected a text as {name!r}, which --prefix names: found {found}")
    return value.strip()


def _checked(document: Document) -> Document:
    """Return the document, unless it has a half surrogate pair, which no tokenizer can encode, or a NUL."""
    text = document.prefix + document.text
    if "\0" in text:
        raise TextError(f"{document.place}: expected a text, found a NUL in it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"{document.place}: half a surrogate pair at character {error.start}: write the whole character"
        ) from error
    return document
