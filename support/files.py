"""Read and write small text files; every error is one line that names the file."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import IO, Any

from support.errors import UserError
from support.messages import short_repr


def read_json_object(path: Path, error: type[UserError], hint: str = "") -> dict[str, Any]:
    """Read the JSON object in a UTF-8 file.

    Args:
        path: the file.
        error: the class of error that is raised.
        hint: what the message ends with when the file cannot be read, such as what the file belongs to.

    Raises:
        error: the file cannot be read, is not JSON, or holds something else than an object.
    """
    ending = f": {hint}" if hint else ""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for somebody who writes
            raise error(f"{path}: expected a file, found something else")
        values = json.loads(path.read_text("utf-8"))
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}{ending}") from failure
    except (ValueError, RecursionError) as failure:
        raise error(f"{path}: expected JSON: {short_repr(str(failure))}") from failure
    if not isinstance(values, dict):
        raise error(f"{path}: expected a JSON object, found {short_repr(values)}")
    return values


def describe_read_error(error: OSError, path: Path) -> str:
    """Say in one line what cannot be read: the folder on the way that may not be searched, else the file itself.

    Args:
        error: what the system said.
        path: what was looked for, where ``error`` names no file.
    """
    place = Path(error.filename) if isinstance(error.filename, str) else path
    if error.errno == errno.EACCES:
        closed = (folder for folder in reversed(place.parents) if not os.access(folder, os.X_OK, effective_ids=True))
        place = next(closed, place)
    return f"{place}: cannot be read: {error.strerror or error}"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON in UTF-8; a surrogate, as in the name of a file, becomes an escape."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8", errors="backslashreplace")


def read_utf8_lines(path: Path, error: type[UserError]) -> list[str]:
    """Read the lines of a UTF-8 file, without a byte order mark and without line ends.

    Only a line feed ends a line: ``str.splitlines`` would break a text at U+2028, and text files at a bare carriage
    return.

    Raises:
        error: the file cannot be read, or is not UTF-8.
    """
    try:
        return decode_utf8_lines(path.read_bytes(), str(path), error)
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}") from failure


def decode_utf8_lines(content: bytes, name: str, error: type[UserError]) -> list[str]:
    """Split UTF-8 bytes into lines as ``read_utf8_lines`` does; ``name`` says in messages where they are from.

    Raises:
        error: the bytes are not UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        found = f"byte {failure.start} is 0x{failure.object[failure.start]:02x}"
        raise error(f"{name}: not UTF-8: {found}") from failure
    return [line.rstrip("\r") for line in text.split("\n")]


def anonymous_file() -> IO[bytes]:
    """Open a file without a name, in memory where the system can: there may be no folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("gpt2-savedmodel"), "w+b")
    return tempfile.TemporaryFile()
