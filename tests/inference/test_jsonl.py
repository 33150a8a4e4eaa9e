"""Prompts in, records out: odd text files, interrupted lines, other people's files, full disks, two runs."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.jsonl import Job, expand_jobs, json_line, open_results
from inference.prompt_files import PromptLine, RecordError, read_prompts


def record(prompt: str, number: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, **more, "number": number, "seed": 1, "text": "春", "tokens": [1]}


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\r\n\r\n  \n b \r\n", ["a", " b "]),
        ("\ufeffa\nb", ["a", "b"]),
        ("a\u2028b\x85c\x0bd\re\n", ["a\u2028b\x85c\x0bd\re"]),
        ('{"prompt": "a"}\n', ['{"prompt": "a"}']),
    ],
)
def test_each_line_of_a_text_is_a_prompt(content: str, prompts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content.encode())
    assert read_prompts(str(path)) == [PromptLine(prompt) for prompt in prompts]


def test_json_lines_are_prompts_with_fields(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = ['\ufeff"a"', "", '{"id": 5, "prompt": "b\\nc", "more": {"x": [1]}}', '{"prompt": "d\u2028e"}\r']
    path.write_text("\n".join(lines), "utf-8", newline="")
    assert read_prompts(str(path)) == [
        PromptLine("a"),
        PromptLine("b\nc", {"id": 5, "more": {"x": [1]}}),
        PromptLine("d\u2028e"),
    ]


IDS_AND_TEXTS = [
    PromptLine("春"),
    PromptLine((5, 7, 11)),
    PromptLine("夏\n", {"id": 3}),
    PromptLine("秋", {"more": [1]}),
    PromptLine((2,), {"id": 4}),
]
OBJECTS = [
    '"春"',
    "[5, 7, 11]",
    '{"prompt": "夏\\n", "id": 3}',
    '{"more": [1], "text": "秋"}',
    '{"prompt": [2], "id": 4}',
]
JSON_FILES = {
    "a.jsonl": "\n".join(OBJECTS),
    "capitals.JSONL": "\n".join(OBJECTS),
    "with a mark.NdJson": "\ufeff" + "\r\n".join(OBJECTS) + "\r\n",
    "blank lines.jsonl": "\n\n" + "\n \t\n".join(OBJECTS) + "\n\n",
    "lines all the same.json": "\n".join(OBJECTS),
    "array.json": f"[{', '.join(OBJECTS)}]",
    "array.JSON": "\ufeff[\r\n  " + ",\r\n\r\n  ".join(OBJECTS) + "\r\n]\r\n",
    "array in lines.jsonl": "[\n" + ",\n".join(OBJECTS) + "]",
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_of_any_layout_gives_texts_and_token_ids(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(JSON_FILES[name].encode())
    assert read_prompts(str(tmp_path / name)) == IDS_AND_TEXTS


@pytest.mark.parametrize(
    ("content", "prompts"),
    [("[3, 4]", [PromptLine((3, 4))]), ('"春"', [PromptLine("春")]), ('{"text": "春"}', [PromptLine("春")])],
)
def test_a_file_of_one_value_is_one_prompt(content: str, prompts: list[PromptLine], tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(content, "utf-8")
        assert read_prompts(str(tmp_path / name)) == prompts


STDIN: dict[str, tuple[str, list[Any]]] = {
    "pieces in brackets": ("[CLS]春\n[MASK]夏\n", ["[CLS]春", "[MASK]夏"]),
    "a quotation": ('"春"\n', ['"春"']),
    "an array": ('["春", "夏"]', ["春", "夏"]),
    "an array over lines": ('[\r\n"春",\r\n"夏"\r\n]', ["春", "夏"]),
    "an array that begins on its first line": ('["春",\n"夏"]', ["春", "夏"]),
    "token ids": ("\ufeff[1, 2]\n[3]\n", [(1, 2), (3,)]),
    "objects": ('\n{"text": "春"}\n', ["春"]),
    "a bracket only": ("[春\n", ["[春"]),
}


@pytest.mark.parametrize("name", STDIN)
def test_stdin_is_json_where_it_can_be_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, prompts = STDIN[name]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert [line.prompt for line in read_prompts("-")] == prompts


@pytest.mark.parametrize(
    ("content", "prompts"),
    [("a\r\n{b\n", ["a", "{b"]), ('\ufeff\n {"prompt": "a"}\n"b"\n', ["a", "b"])],
)
def test_stdin_is_utf8_whatever_the_locale_is(
    content: str, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """UTF-8 whatever the locale is, and its line ends as they are."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode()), "ascii"))
    assert [line.prompt for line in read_prompts("-")] == prompts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "has no prompts"),
        ("a.txt", b" \r\n\n\t\n", "has no prompts"),
        ("a.txt", b"ab\xff", "not UTF-8: byte 2 is 0xff"),
        ("a.jsonl", b'"a"\n{"prompt": 5}', "line 2: expected a string, a list of token ids, or an object .*, found 5"),
        ("a.jsonl", b'\n{"texts": "a"}', "line 2: expected .*, found an object with 'texts'"),
        ("a.json", b'[{"content": "a", "id": 1}]', "element 1: expected .*, found an object with 'content', 'id'"),
        ("a.json", b'["a", [1, "x"]]', "element 2: expected .*, found a list of 2 values"),
        ("a.jsonl", b"true", "line 1: expected .*, found true"),
        ("a.json", b'["a", []]', "element 2: expected .*, found an empty list"),
        ("a.JSONL", b'\r\n"a"\r\n{"prompt": "b"', "line 3: not JSON"),
        ("a.ndjson", b'["a", "b"]\n["c", "d"]', "line 1: expected .*, found a list"),
        ("a.json", b'["a", 5]', "element 2: expected .*, found 5"),
        ("a.json", b'[{"prompt": "a"}, {"prompt": "b", "score": 1}]', "element 2: a result has a 'score' of its own"),
        ("a.json", b"[[1, 2], [1, true]]", "element 2: expected"),
        ("a.json", b"[[1, 2], []]", "element 2: expected"),
        ("a.json", b'[\n"a",\n\n"b"\n"c"]', "line 5: not JSON"),
        ("a.Json", b"[]", "has no prompts"),
        ("a.json", b'{"prompts": ["a"]}', "line 1: expected"),
        ("a.json", b'{"a": ' * 50_000, "line 1: not JSON"),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b"1" * 5_000, "line 1: not JSON"),
        ("a.jsonl", b"null", "line 1: expected"),
    ],
)
def test_a_bad_file_of_prompts_is_one_line(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=words) as error:
        read_prompts(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / ("a" * 300)):
        with pytest.raises(RecordError, match="cannot be read"):
            read_prompts(str(path))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RecordError, match="stdin is closed"):
        read_prompts("-")


def test_a_prompt_that_comes_again_goes_on_counting() -> None:
    """Where a prompt comes again, its numbers go on: no two jobs are the same."""
    jobs = expand_jobs([PromptLine("a", {"id": 1}), PromptLine("b"), PromptLine("a", {"id": 2})], 2)
    assert jobs == [Job("a", 0, {"id": 1}), Job("a", 1, {"id": 1}), Job("b", 0), Job("b", 1),
                    Job("a", 2, {"id": 2}), Job("a", 3, {"id": 2})]  # fmt: skip


def test_what_is_appended_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with open_results(path) as records:
        assert records.done() == set()
        records.append([record("a", id="x"), record("b\n\u2028", 1)])
        records.append([record("\ud800", 2, note="\udfff")])  # JSON can say what UTF-8 cannot
    with open_results(path) as records:
        assert records.done() == {("a", 0), ("b\n\u2028", 1), ("\ud800", 2)}
    lines = path.read_text("utf-8").split("\n")
    assert len(lines) == 4
    assert "b\\n\u2028" in lines[1]
    assert json.loads(lines[2])["note"] == "\udfff"


def test_results_of_token_ids_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    lines = [json_line({**record("a"), "prompt": ids}).encode() for ids in ((5, 7), (11,))]
    path.write_bytes(lines[0] + lines[1][:20])
    jobs = [Job((5, 7), 0), Job((11,), 0), Job((5, 7), 1)]
    with open_results(path) as records:
        assert records.pending(jobs) == jobs[1:]
    assert path.read_bytes() == lines[0]


def test_a_line_can_be_ascii() -> None:
    assert json_line({"text": "😀"}, ascii_only=True) == '{"text": "\\ud83d\\ude00"}\n'


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    """Wherever the interruption came; also when it is the first line, and when only the line feed is missing."""
    path = tmp_path / "out.jsonl"
    first, second = (json_line(record(prompt)).encode() for prompt in "ab")
    for before in (b"", first):
        for size in range(len(second)):
            path.write_bytes(before + second[:size])
            with open_results(path) as records:
                done = records.done()
                complete = size == len(second) - 1
                assert done == ({("a", 0)} if before else set()) | ({("b", 0)} if complete else set())
                records.append([record("c")])
            assert path.read_bytes() == before + (second if complete else b"") + json_line(record("c")).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"my only notes", b"my notes\n", b"\n", b"{", b'{"a": 1', b'{"a": 1}', b'{"prompt": "a"}', b"[1]\n",
        b'{"prompt": "a", "number": 0}\n', b'{"prompt": ["a"], "number": 0, "text": ""}\n', b"\xff\xfe\n",
        b'{"prompt": "a", "number": "0", "text": ""}\n', b"[" * 100_000 + b"\n", b"{\n  ",
    ],
)  # fmt: skip
@pytest.mark.parametrize("ours", [b"", json_line(record("a")).encode()])
def test_somebodys_file_stays_as_it_is(ours: bytes, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_bytes(ours + content)
    if content == b"{":  # a record begins so
        return
    with open_results(path) as records, pytest.raises(RecordError, match=r"line \d: not a result of this command"):
        records.done()
    assert path.read_bytes() == ours + content


def test_a_second_run_on_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with open_results(path), pytest.raises(RecordError, match="another run is writing it"), open_results(path):
        pass
    with open_results(path):
        pass


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent/out.jsonl", "there is no folder {0}/absent: make it, or choose another --output"),
        ("absent/deeper/out.jsonl", "there is no folder {0}/absent/deeper: make it, or choose another"),
        ("file/out.jsonl", "{0}/file is a file, not a folder: choose another --output"),
        ("file/deeper/out.jsonl", "{0}/file is a file, not a folder: choose another --output"),
        ("folder", "Is a directory"),
    ],
)
def test_what_stands_in_the_way_of_results_is_named(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecordError) as error, open_results(tmp_path / name):
        pass
    assert str(error.value).startswith(f"{tmp_path / name}: cannot be written: {words.format(tmp_path)}")


@pytest.mark.parametrize("name", ["", "absent/out", "a" * 300])
def test_files_that_cannot_be_written_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be written"), open_results(tmp_path / name):
        pass


def test_a_device_is_refused() -> None:
    with pytest.raises(RecordError, match=r"/dev/null: not a file: .*--json"), open_results(Path("/dev/null")):
        pass


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may become larger; not beyond the block, because pytest's own output may be one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """Everything that was said to be written is there, and no part of what was not."""
    path = tmp_path / "out.jsonl"
    good = json_line(record("a")).encode()
    with open_results(path) as records:
        records.append([record("a")])
        with file_size_limit(len(good) + 10), pytest.raises(RecordError, match="cannot be written: File too large"):
            records.append([record("b")])
        assert path.read_bytes() == good
        records.append([record("c")])
    assert path.read_bytes() == good + json_line(record("c")).encode()


TEXTS = st.text(st.characters(codec=None), max_size=5)
RECORDS = st.lists(st.tuples(TEXTS, st.integers(0, 3), TEXTS), max_size=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=RECORDS, after=RECORDS, keep=st.floats(0, 1))
def test_any_interruption_leaves_whole_lines(before: list[Any], after: list[Any], keep: float, tmp_path: Path) -> None:
    """Cut anywhere, a file has the records of its whole lines, and what is appended is found."""
    path = tmp_path / "out.jsonl"
    lines = [json_line(record(prompt, number, note=note)).encode() for prompt, number, note in before]
    whole = b"".join(lines)
    size = int(len(whole) * keep)
    path.write_bytes(whole[:size])
    kept, at = set(), 0
    for (prompt, number, _), line in zip(before, lines, strict=True):
        at += len(line)
        if at - 1 <= size:  # without its line feed it is complete
            kept.add((prompt, number))
    with open_results(path) as records:
        assert records.done() == kept
        records.append([record(prompt, number) for prompt, number, _ in after])
        assert records.done() == kept | {(prompt, number) for prompt, number, _ in after}
