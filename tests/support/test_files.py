"""Small text files as editors leave them: byte order marks, Windows' line ends, other encodings."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from support.documents import read_documents, read_text_file
from support.errors import UserError
from support.files import read_json_object, read_text, read_utf8_lines
from tests.helpers.assertions import assert_one_line

TEXT = '{"词": "蝶恋花",\n "行": 12}\n'
VALUES = {"词": "蝶恋花", "行": 12}
AS_WRITTEN = {
    "plain": TEXT.encode(),
    "with a byte order mark": codecs.BOM_UTF8 + TEXT.encode(),
    "lines of Windows": TEXT.replace("\n", "\r\n").encode(),
    "Notepad's UTF-8": codecs.BOM_UTF8 + TEXT.replace("\n", "\r\n").encode(),
    "no line end": TEXT.strip().encode(),
}
OTHER_ENCODINGS = {
    "Notepad's Unicode": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16 of a Mac": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-16 without a mark": '{"n": 12}'.encode("utf-16-le"),
    "UTF-16 without a mark, the other way": '{"n": 12}'.encode("utf-16-be"),
    "UTF-32": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
}


@pytest.mark.parametrize("kind", AS_WRITTEN)
def test_every_reader_takes_what_editors_of_utf8_write(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "词.json"
    file.write_bytes(AS_WRITTEN[kind])
    assert read_json_object(file, UserError) == VALUES
    assert read_text(file, UserError).rstrip("\n") == TEXT.rstrip("\n")
    assert [line for line in read_utf8_lines(file, UserError) if line] == TEXT.splitlines()
    assert read_text_file(file, UserError)[0].rstrip("\n") == TEXT.rstrip("\n")


@pytest.mark.parametrize("kind", OTHER_ENCODINGS)
def test_utf16_is_named_and_what_to_do_about_it(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(OTHER_ENCODINGS[kind])
    for read in (read_json_object, read_text, read_utf8_lines, read_text_file, lambda *a: list(read_documents(*a))):
        with pytest.raises(UserError) as error:
            read(file, UserError)
        assert_one_line(f"error: {error.value}\n", "config.json: UTF-16 text, which Notepad calls Unicode: save it as")


def test_other_encodings_are_errors_that_name_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "vocab.json"
    file.write_bytes('{"词": 1}'.encode("gb18030"))
    with pytest.raises(UserError, match=r"vocab\.json: not UTF-8: byte 2 is 0xb4: save it as UTF-8"):
        read_json_object(file, UserError)


def test_a_file_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="has more than 64 MB: expected a small text file"):
        read_json_object(tmp_path / "config.json", UserError)
