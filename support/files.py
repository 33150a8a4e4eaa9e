"""Read and write small text files; every error is one line that names the file."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from support.errors import UserError
from support.messages import short_repr

UTF16 = "UTF-16 text, which Notepad calls Unicode: save it as UTF-8"
"""What messages say of such a file."""
GB18030 = "GB18030, which Windows in China calls ANSI: save it as UTF-8, or iconv -f GB18030 -t UTF-8 FILE > NEW"
"""What messages say of such a file."""
_TWO_BYTES = re.compile(rb"(?:[\x09-\x7e]\0|\0[\x09-\x7e]){2}")
"""Two characters of UTF-16 without a byte order mark; no text has a NUL."""
_SAMPLE = 4096
"""Bytes by which the encoding is told."""
_SMALL = 1 << 26
"""Bytes of a file that is read whole: the index of the largest models has a few megabytes."""


def read_json_object(path: Path, error: type[UserError], hint: str = "") -> dict[str, Any]:
    """Read the JSON object in a UTF-8 file, which may begin with a byte order mark.

    Args:
        path: the file.
        error: the class of error that is raised.
        hint: what the message ends with when the file cannot be read, such as what the file belongs to.

    Raises:
        error: the file cannot be read, is not JSON, or holds something else than an object.
    """
    text = read_text(path, error, hint)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as failure:
        raise error(f"{path}: expected JSON: {short_repr(str(failure))}") from failure
    if not isinstance(values, dict):
        raise error(f"{path}: expected a JSON object, found {short_repr(values)}")
    return values


def read_text(path: Path, error: type[UserError], hint: str = "") -> str:
    """Read a small UTF-8 file without a byte order mark; its line ends become line feeds.

    Args:
        path: the file.
        error: the class of error that is raised.
        hint: what the message ends with when the file cannot be read.

    Raises:
        error: the file cannot be read, is larger than 64 MB, or is not UTF-8.
    """
    try:
        check_is_file(path, error)
        with path.open("rb") as file:
            content = file.read(_SMALL + 1)
    except OSError as failure:
        ending = f": {hint}" if hint else ""
        raise error(f"{path}: cannot be read: {failure.strerror}{ending}") from failure
    if len(content) > _SMALL:
        raise error(f"{path}: has more than {_SMALL >> 20} MB: expected a small text file")
    return decode_utf8(content, str(path), error).replace("\r\n", "\n")


def check_is_file(path: Path, error: type[UserError], *, may_be_stream: bool = False) -> None:
    """Refuse what is there and no file: opening a pipe would wait for somebody who writes.

    Args:
        path: of the file.
        error: the class of error that is raised.
        may_be_stream: whether ``/dev/stdin`` and the like will do, which the shell has opened.

    Raises:
        error: it is no file.
        OSError: it cannot be looked at.
    """
    is_stream = may_be_stream and path.parts[:2] == ("/", "dev")
    if path.exists() and not path.is_file() and not is_stream:
        raise error(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'something else'}")


def decode_utf8(content: bytes, name: str, error: type[UserError]) -> str:
    """Decode a UTF-8 text without its byte order mark; ``name`` says in messages where it is from.

    Raises:
        error: the bytes are not UTF-8; the message names UTF-16, which Windows' Notepad calls Unicode.
    """
    if is_utf16(content):
        raise error(f"{name}: {UTF16}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        found = f"byte {failure.start} is 0x{failure.object[failure.start]:02x}"
        raise error(f"{name}: not UTF-8: {found}: save it as UTF-8") from failure


def is_utf16(content: bytes) -> bool:
    """Whether a text begins as one of UTF-16 or UTF-32: with a byte order mark, or an ASCII character and a NUL."""
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
    return content.startswith(marks) or _TWO_BYTES.match(content) is not None


def is_chinese_utf16(content: bytes) -> bool:
    """Whether bytes that are not UTF-8 are Chinese text in UTF-16 without a byte order mark.

    Most characters are then Chinese, or line ends. In GB18030 no two bytes make one of those; two of ASCII often do, so
    many must have another byte.
    """
    sample = content[:_SAMPLE]
    for order in ("little", "big"):
        units = [int.from_bytes(sample[at : at + 2], order) for at in range(0, len(sample) - 1, 2)]
        chinese = [unit for unit in units if _is_chinese(chr(unit)) or unit in (0x0A, 0x0D, 0x20)]
        others = [unit for unit in chinese if unit & 0x8080]
        if 5 * len(chinese) >= 4 * len(units) and 2 * len(others) >= len(units) >= 4:
            return True
    return False


def _is_chinese(character: str) -> bool:
    return "\u3000" <= character <= "\u9fff" or "\uff00" <= character <= "\uffef"


def is_cut_off(content: bytes, start: int) -> bool:
    """Whether bytes that are UTF-8 before ``start``, and not only ASCII, end within a character there."""
    if content[:start].isascii():  # one byte of another encoding, as likely
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content[start:])
    except UnicodeDecodeError:
        return False
    return True


def is_gb18030(content: bytes, start: int) -> bool:
    """Whether bytes from ``start`` on, which are not UTF-8, are Chinese text in GB18030 or GBK, its older form."""
    sample = content[start : start + _SAMPLE]
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(sample)
    except UnicodeDecodeError:
        return False
    others = [character for character in text if not character.isascii()]
    chinese = sum(map(_is_chinese, others))
    return len(sample) > 1 and 2 * chinese > len(others)


def describe_read_error(error: OSError, path: Path) -> str:
    """Say in one line what cannot be read: the folder on the way that may not be searched, else the file itself.

    Args:
        error: what the system said.
        path: what was looked for, where ``error`` names no file.
    """
    place = Path(error.filename) if isinstance(error.filename, str) else path
    if error.errno == errno.ENAMETOOLONG:  # which file was looked for in it makes no difference
        place = path if place.is_relative_to(path) else place
    if error.errno == errno.EACCES:
        closed = (folder for folder in reversed(place.parents) if not os.access(folder, os.X_OK, effective_ids=True))
        place = next(closed, place)
    return f"{place}: cannot be read: {error.strerror or error}"


def describe_write_error(error: OSError, path: Path, advice: str) -> str:
    """Say in one line what cannot be written, and why: the folder that is missing, closed, or not a folder at all.

    Args:
        error: what the system said.
        path: what was to be written, where ``error`` names no file.
        advice: what to do, as in ``choose another --output``.
    """
    place = Path(os.path.abspath(os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else path))
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not _exists(place):
        folder = next((parent for parent in place.parents if _exists(parent)), place)
        return f"{path}: cannot be written: {reason} in the folder {folder}: {advice}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
        on_the_way = next((parent for parent in place.parents if _exists(parent)), place)
        file = place if place.is_file() else on_the_way
        if file.is_file():
            return f"{path}: cannot be written: {file} is a file, not a folder: {advice}"
        if error.errno == errno.ENOENT and not _exists(place.parent):
            return f"{path}: cannot be written: there is no folder {place.parent}: make it, or {advice}"
    return f"{error.filename or path}: cannot be written: {reason}"


def _exists(path: Path) -> bool:
    """Whether something is there that may be looked at."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON in UTF-8; a surrogate, as in the name of a file, becomes an escape."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8", errors="backslashreplace")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a new file next to ``path``; it takes the place of ``path`` when the block ends.

    Whenever the process or the machine stops, ``path`` is the old file or the new one as a whole. When the block
    raises, the old one stays.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        yield new
        flush_to_disk(new)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the names of a folder's files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    text = decode_utf8(content, name, error)
    return [line.rstrip("\r") for line in text.split("\n")]


def anonymous_file() -> IO[bytes]:
    """Open a file without a name, in memory where the system can: there may be no folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("gpt2-savedmodel"), "w+b")
    return tempfile.TemporaryFile()
