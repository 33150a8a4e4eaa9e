"""Read the documents that a model is trained on: text files, JSON lines, folders of both."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from support import documents as text_files
from support.errors import UserError
from support.files import check_is_file, describe_read_error
from support.messages import describe_json, list_names
from training.own_folders import is_own_folder

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
        paths: UTF-8 text files, files of JSON (``support.documents.read_documents``), and folders (``find_files``).
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
    """Return the files that are read: those named, and every ``.txt`` and ``.jsonl`` in folders, sorted by path.

    Of what is in a folder, hidden files and folders are left out, and those that this program makes: a run that goes on
    must not find samples of its own among its texts.

    Raises:
        TextError: a folder has no such file, or may not be read.
    """
    result: list[Path] = []
    for path in paths:
        try:
            if path.is_dir():
                inside = sorted(_files_in(path))
            else:
                check_is_file(path, TextError)  # no stream, either: the files are read once more for their hashes
                inside = [path]
        except OSError as error:
            raise TextError(describe_read_error(error, path)) from error
        if not inside:
            raise TextError(f"{path}: expected files named {' or '.join(SUFFIXES)} in the folder, found none")
        result += inside
    return result


def _files_in(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> NoReturn:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if name[0] != "." and not is_own_folder(Path(place, name))]
        files = [Path(place, name) for name in names if name[0] != "."]
        yield from (file for file in files if file.suffix.lower() in SUFFIXES and file.is_file())


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
        found = f"a line with {list_names(fields) or 'no fields'}" if name not in fields else describe_json(value)
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
