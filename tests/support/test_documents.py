"""Documents in text files and JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support.documents import Document, json_note, read_documents, read_text_file
from support.errors import UserError


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"\xef\xbb\xbf" + "明月\r\n\r\n几时\r\n".encode())
    (document,) = read_documents(file, UserError)
    assert document == Document("明月\n\n几时\n")
    assert not document.is_complete
    assert document.place(file) == str(file)


def test_a_text_file_is_read_no_further_than_asked(tmp_path: Path) -> None:
    """Counted in characters, of which a file may have an incomplete one where the reading stops."""
    file = tmp_path / "text"
    file.write_bytes("明月\r\n几时几".encode() + b"\xff" * 20)
    assert read_text_file(file, UserError, 4) == ("明月\n", True)
    assert list(read_documents(file, UserError, 2)) == [Document("明月", is_cut=True)]


def test_each_json_line_is_a_complete_document(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, ["明月", {"text": "春风", "title": "x"}])), "utf-8")
    documents = list(read_documents(file, UserError))
    assert documents == [Document("明月", 1), Document("春风", 3, fields={"text": "春风", "title": "x"})]
    assert all(document.is_complete for document in documents)
    assert documents[1].place(file) == f"{file}: line 3"


def test_lines_of_an_object_are_one_text(tmp_path: Path) -> None:
    file = tmp_path / "songs.jsonl"
    file.write_text('{"lines": ["明月", "几时有"], "tune": "水调歌头"}\n', "utf-8")
    (document,) = read_documents(file, UserError)
    assert document.text == "明月\n几时有"
    assert document.fields["tune"] == "水调歌头"


FILES = {
    "capitals.JSONL": '"明月"\r\n\r\n{"text": "春风", "title": "x"}\r\n',
    "with a mark.NDJSON": '\ufeff"明月"\n\n{"text": "春风"}',
    "lines.json": '"明月"\n\n{"text": "春风"}\n',
    "array.json": '["明月", {"text": "春风"}]',
    "array with a mark.Json": '\ufeff[\r\n\r\n"明月",\r\n{"text": "春风"}\r\n]\r\n',
    "array.jsonl": '["明月", {"text": "春风"}]',
    "indented array.ndjson": '[\n  "明月",\n  {\n    "text": "春风"\n  }\n]\n',
    "train.json": '\n[\n "明月",\n {"text": "春风"}]',
}


@pytest.mark.parametrize("name", FILES)
def test_json_of_any_layout_is_read_as_its_documents(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name].encode())
    documents = list(read_documents(tmp_path / name, UserError))
    assert [document.text for document in documents] == ["明月", "春风"]
    assert all(document.is_complete for document in documents)
    expected = "element 2" if "[" in FILES[name] else "line 3"
    assert documents[1].place(tmp_path / name) == f"{tmp_path / name}: {expected}"


def test_an_indented_object_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{\n  "id": 7,\n  "text": "明月"\n}\n', "utf-8")
    assert [document.text for document in read_documents(file, UserError)] == ["明月"]


@pytest.mark.parametrize(
    ("content", "is_json"),
    [
        ('["明月", "春风"]', True),
        ('[\n"明月"\n]', True),
        ('{"text": "明月"}\n{"text": "春风"}', True),
        ("[CLS]明月", False),
        ("[1] 明月", False),
        ("明月", False),
    ],
)
def test_a_text_file_that_is_json_is_noted(content: str, is_json: bool, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(content, "utf-8")
    (document,) = read_documents(file, UserError)
    assert document.text == content
    assert ("name it .json" in (json_note(file, document) or "")) == is_json


def test_a_text_may_be_called_json(tmp_path: Path) -> None:
    (tmp_path / "song.json").write_text("明月\n几时\n", "utf-8")
    assert list(read_documents(tmp_path / "song.json", UserError)) == [Document("明月\n几时\n")]


def test_json_lines_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """A file may be larger than memory: what follows is not UTF-8."""
    file = tmp_path / "text.jsonl"
    file.write_bytes(b'"a"\n{\xff\n')
    documents = read_documents(file, UserError)
    assert next(documents).text == "a"
    with pytest.raises(UserError, match="another encoding at byte 5"):
        next(documents)


def test_a_pipe_is_refused_before_anybody_waits_for_it(tmp_path: Path) -> None:
    for name in ("text.txt", "text.json", "text.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: expected a file, found something else"):
            list(read_documents(tmp_path / name, UserError))


def test_what_the_shell_has_opened_may_be_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"text")
    os.close(writer)
    assert list(read_documents(Path(f"/dev/fd/{reader}"), UserError)) == [Document("text")]
    os.close(reader)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.txt", None, "text.txt: cannot be read: No such file"),
        ("text.txt", b"", "text.txt: expected a text, found none"),
        ("text.txt", b"\xef\xbb\xbf \r\n", "text.txt: expected a text, found none"),
        ("text.txt", "明月".encode("gb18030"), "text.txt: expected UTF-8 text, found another encoding at byte 0"),
        ("text.txt", "明月\n几时有，".encode("gb18030"), r"byte 0 \(line 1\): it looks like GB18030.*iconv -f GB18030"),
        ("text.txt", "明月几时有\n把酒问青天\n".encode("utf-16-le"), "text.txt: UTF-16 text, which Notepad"),
        ("text.txt", "明月几时有\n把酒问青天\n".encode("utf-16-be"), "text.txt: UTF-16 text, which Notepad"),
        ("text.txt", "明月几时有".encode()[:-1], r"ends within a character, at byte 12 \(line 1\): the file was cut"),
        ("text.txt", b"caf\xe9", r"another encoding at byte 3 \(line 1\): save it as UTF-8"),
        ("text.txt", ("明月几时有" * 99).encode("gb18030"), "it looks like GB18030"),
        ("text.txt", ("ab明月 c几时有" * 99).encode("gb18030"), "it looks like GB18030"),
        ("text.txt", b"caf\xe9\n", r"another encoding at byte 3 \(line 1\): save it as UTF-8"),
        ("text.txt", "明\n月\n\0".encode(), r"text.txt: expected UTF-8 text, found a NUL at byte 8 \(line 3\)"),
        ("text.jsonl", '"明"\n"月"\n"\0"'.encode(), r"found a NUL at byte 13 \(line 3\)"),
        ("text.jsonl", b'"a"\n"\xff"\n', r"another encoding at byte 5 \(line 2\): save it as UTF-8"),
        ("text.jsonl", b'{"lines": ["a", 5]}', "found an object with 'lines'"),
        ("text.jsonl", b"\n\n", "text.jsonl: expected a text, found none"),
        ("text.jsonl", b'"a"\n{', "text.jsonl: line 2: not JSON: "),
        ("text.ndjson", b'{"prompt": "a"}', "line 1: expected a string with a text, or an object with one as"),
        ("text.json", b'["a", 5]', "text.json: element 2: expected a string with a text"),
        ("text.jsonl", b'{"content": "a", "id": 5}', "found an object with 'content', 'id'"),
        ("text.jsonl", b"{}", "found an object without anything in it"),
        ("text.jsonl", b'["a", null]', "text.jsonl: element 2: .*, found null"),
        ("text.jsonl", b'["a"]\n["b"]', "text.jsonl: line 1: .*, found a list of 1 value"),
        ("text.jsonl", b'""', "found one without characters"),
        ("text.json", b"[]", "text.json: expected a text, found none"),
        ("text.json", b'[\n"a",\n"b"\n"c"\n]', "text.json: line 4: not JSON"),
        ("text.JSON", b'{"text": "a"}\n{"text": ', "text.JSON: line 2: not JSON"),
        ("text.json", b"[" * 100_000, "text.json: line 1: not JSON"),
        ("text.jsonl", b'"a"\n" "', "line 2: expected a string with a text, or an object with one as"),
    ],
)
def test_bad_file_is_refused(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        list(read_documents(tmp_path / name, UserError))
