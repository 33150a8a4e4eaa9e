"""Files and folders of texts, as documents that a model is trained on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from convert.output.hashing import Hasher
from convert.output.manifest import write_manifest
from tests.conftest import shared
from tests.helpers.privileges import as_nobody
from training.texts.documents import Document, TextError, find_files, read_documents
from training.texts.presets import find_preset

POEM = find_preset("poem")


def write(folder: Path, name: str, content: bytes | str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_a_text_file_with_a_mark_and_windows_line_ends_reads_like_any_other(tmp_path: Path) -> None:
    plain = write(tmp_path, "a.txt", "明月\n几时有\n\n春风\n")
    windows = write(tmp_path, "b.txt", "\ufeff明月\r\n几时有\r\n\r\n春风\r\n")
    texts = [[document.text for document in read_documents([file], POEM)] for file in (plain, windows)]
    assert texts == [["明月\n几时有", "春风"]] * 2


def test_a_document_knows_the_file_and_the_line_on_which_it_begins(tmp_path: Path) -> None:
    file = write(tmp_path, "songs.txt", "\n\n明月\n几时有\n\n\n春风\n")
    assert [document.place for document in read_documents([file], POEM)] == [f"{file}, line 3", f"{file}, line 7"]


def test_json_lines_are_documents_as_they_are(tmp_path: Path) -> None:
    lines = ["明月\n\n几时有", {"text": "春风\r\n", "tune": "x"}, {"lines": ["一", "二"], "author": "y"}]
    file = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    documents = read_documents([file], POEM)
    assert [document.text for document in documents] == ["明月\n\n几时有", "春风\n", "一\n二"]
    assert documents[2].place == f"{file}, line 3"


def test_a_folder_is_read_with_those_in_it_sorted_by_path_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "b/2.txt", "二")
    write(tmp_path, "b/10.JSONL", '"十"')
    write(tmp_path, "a.txt", "一")
    write(tmp_path, "README.md", "no")
    write(tmp_path, "z.txt/x.txt", "五")
    assert [document.text for document in read_documents([tmp_path], POEM)] == ["一", "十", "二", "五"]


def test_several_paths_come_in_their_order(tmp_path: Path) -> None:
    files = [write(tmp_path, name, name) for name in ("b.txt", "a.txt")]
    assert [document.text for document in read_documents(files, POEM)] == ["b.txt", "a.txt"]


def test_fields_of_json_stand_before_the_text_a_line_each(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", '{"text": "春风", "author": " 李白 ", "style": "五言", "n": 5}')
    assert read_documents([file], POEM, ["style", "author"]) == [Document("春风", "五言\n李白\n", f"{file}, line 1")]


def test_the_corpus_of_the_demo_is_readable_as_it_is() -> None:
    documents = read_documents([shared("corpora/song_ci.jsonl")], POEM, ["tune"])
    assert len(documents) > 15_000
    assert documents[0].prefix == "导引\n"
    assert documents[0].text.startswith("气和玉烛，睿化著鸿明。\n缇管一阳生。\n")


BROKEN: dict[str, tuple[str, bytes | None, tuple[str, ...], str]] = {
    "no such file": ("a.txt", None, (), "a.txt: cannot be read: No such file"),
    "an empty file": ("a.txt", b"", (), "a.txt: expected a text, found none"),
    "blank lines": ("a.txt", b"\xef\xbb\xbf \r\n\r\n", (), "a.txt: expected a text, found none"),
    "bytes that are no text": ("a.txt", b"ab\nc\xff", (), r"another encoding at byte 4 \(line 2\): save it as UTF-8"),
    "half a character": ("a.jsonl", b'"\xe6\x98"', (), r"another encoding at byte 1 \(line 1\)"),
    "GB18030": (
        "a.txt",
        "第一\n章，".encode("gb18030"),
        (),
        r"byte 0 \(line 1\): it looks like GB18030.*iconv -f",
    ),
    "UTF-16": ("a.txt", "明月".encode("utf-16"), (), "UTF-16"),
    "a NUL": ("a.txt", "明月\n\0".encode(), (), r"found a NUL at byte 7 \(line 2\)"),
    "a NUL in JSON": ("a.jsonl", rb'"a\u0000"', (), "a.jsonl, line 1: expected a text, found a NUL in it"),
    "half a surrogate": (
        "a.jsonl",
        rb'"ok"' + b"\n" + rb'"a\ud83d"',
        (),
        "line 2: half a surrogate pair at character 1",
    ),
    "no JSON": ("a.jsonl", b'"a"\n{', (), "line 2: not JSON"),
    "no text": ("a.jsonl", b'{"tune": "a"}', (), "line 1: expected a string with a text"),
    "lines that are none": ("a.jsonl", b'{"lines": "a"}', (), "line 1: expected a string with a text"),
    "a field that is missing": (
        "a.jsonl",
        b'{"text": "a"}',
        ("tune",),
        "expected a text as 'tune', .* with text",
    ),
    "a field that is a number": ("a.jsonl", b'{"text": "a", "n": 5}', ("n",), "expected a text as 'n', .* found 5"),
    "a field of a string": ("a.jsonl", b'"a"', ("tune",), "expected a text as 'tune', .* no fields"),
    "a field of a text file": ("a.txt", b"a", ("tune",), "--prefix tune takes fields of JSON lines: found a text file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, content, fields, message = BROKEN[case]
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(TextError, match=message) as caught:
        read_documents([tmp_path / name], POEM, fields)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_what_a_run_has_made_in_a_folder_of_texts_is_no_text_of_it(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "一")
    write(tmp_path, "out.training/run.json", "{}")
    write(tmp_path, "out.training/samples/step-1.txt", "no")
    write(tmp_path, ".out.partial/new/b.txt", "no")
    write(tmp_path, "._a.txt", "no")
    write(tmp_path, "poems.training/b.txt", "二")
    write(tmp_path, "manifest.json", "{}")
    write(tmp_path, "out/assets/vocab.txt", "no")
    with Hasher() as hasher:
        write_manifest(tmp_path / "out", {}, hasher)
    assert [document.text for document in read_documents([tmp_path], POEM)] == ["一", "二"]


@pytest.mark.parametrize("name", ["closed/a.txt", "closed", "."])
def test_what_may_not_be_read_is_named_with_the_reason(name: str, tmp_path: Path) -> None:
    write(tmp_path, "closed/a.txt", "一")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "closed").chmod(0o000)
    with as_nobody(), pytest.raises(TextError) as caught:
        find_files([tmp_path / name])
    assert str(caught.value) == f"{tmp_path / 'closed'}: cannot be read: Permission denied"


def test_a_pipe_is_refused_before_anybody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(TextError, match=r"a.txt: expected a file, found something else"):
        find_files([tmp_path / "a.txt"])


def test_a_name_that_no_file_system_takes_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"nnn: cannot be read: File name too long"):
        find_files([tmp_path / ("n" * 300)])


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "no")
    with pytest.raises(TextError, match=r"expected files named .txt or .jsonl in the folder, found none"):
        read_documents([tmp_path], POEM)
