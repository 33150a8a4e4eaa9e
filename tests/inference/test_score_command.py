"""``score``: the figures of a file of texts, as a table and as JSON, and files that cannot be used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from inference import TextGenerator
from tests.conftest import ROOT
from tests.helpers.assertions import assert_one_line
from tests.inference.conftest import Run

HELD_OUT = ROOT / "demo" / "held-out.jsonl"


def test_figures_of_each_document_and_of_all(run: Run, generator: TextGenerator) -> None:
    code, out, err = run("score", "--text", HELD_OUT, "--json", "--batch-size", "3", "--quiet")
    *documents, total = map(json.loads, out.splitlines())
    texts = [json.loads(line) for line in HELD_OUT.read_text("utf-8").splitlines()]
    assert [document["line"] for document in documents] == list(range(1, len(texts) + 1))
    nats = 0.0
    for text, document in zip(texts, documents, strict=True):
        (expected,) = generator.score(text)
        assert (document["tokens"], document["characters"]) == (len(expected.tokens) - 1, len(text))
        assert document["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
        assert document["bits_per_character"] == pytest.approx(-expected.total / math.log(2) / len(text), rel=1e-4)
        nats -= expected.total
    tokens = sum(document["tokens"] for document in documents)
    assert (total["total"], total["documents"], total["tokens"]) == (True, len(texts), tokens)
    assert total["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert total["perplexity"] == pytest.approx(generator.perplexity(texts), rel=1e-4)
    assert total["perplexity"] == pytest.approx(48.74, rel=0.1)  # of all held-out poems, recorded by the training
    assert (code, err) == (0, "")


def test_a_text_file_is_one_document(run: Run, generator: TextGenerator, tmp_path: Path) -> None:
    text = "\n".join(json.loads(line) for line in HELD_OUT.read_text("utf-8").splitlines()[:6])
    (tmp_path / "poems.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    header, total = run("score", "--text", tmp_path / "poems.txt", "--quiet")[1].splitlines()
    (expected,) = generator.score(text)
    assert header.split()[:4] == ["document", "tokens", "characters", "perplexity"]
    assert total.split()[:3] == ["total", str(len(expected.tokens) - 1), str(len(text))]
    assert float(total.split()[3]) == pytest.approx(expected.perplexity, rel=1e-3)


def test_an_array_has_a_row_for_each_element(run: Run, generator: TextGenerator, tmp_path: Path) -> None:
    file = tmp_path / "train.JSON"
    file.write_text(json.dumps(["一曲新词酒一杯", {"text": "去年天气旧亭台"}]), "utf-8")
    code, out, _ = run("score", "--text", file, "--json")
    assert code == 0
    assert [next(iter(json.loads(line).items())) for line in out.splitlines()] == [
        ("element", 1), ("element", 2), ("total", True),
    ]  # fmt: skip
    assert "element 2" in run("score", "--text", file)[1]


def test_a_document_of_one_token_has_no_perplexity(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "春"}\n"春风"\n', "utf-8")
    _, table, _ = run("score", "--text", tmp_path / "a.jsonl")
    assert table.splitlines()[1].split() == ["line", "1", "0", "1", "-", "-"]
    _, lines, _ = run("score", "--text", tmp_path / "a.jsonl", "--json")
    assert json.loads(lines.splitlines()[0])["perplexity"] is None


def test_unknown_tokens_are_counted_on_stderr(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("春☃风☂", "utf-8")
    assert "does not have 2 of 5 tokens" in run("score", "--text", tmp_path / "a.txt")[2]
    assert run("score", "--text", tmp_path / "a.txt", "--quiet")[2] == ""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.txt", None, "cannot be read"),
        ("a.txt", b"", "expected a text, found none"),
        ("a.txt", b"\xff\xfe", "UTF-16 text"),
        ("a.txt", b"\xff\xfa", "expected UTF-8 text, found another encoding at byte 0"),
        ("a.txt", "春".encode(), "expected a text of 2 tokens or more"),
        ("a.txt", "\u3000".encode(), "expected a text, found none"),
        ("a.jsonl", b"{}\n", 'line 1: expected a string with a text, or an object with one as "text"'),
        ("a.jsonl", b"{\n", "line 1: not JSON"),
        ("a.jsonl", b"\n\n", "expected a text, found none"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    run: Run, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, err = run("score", "--text", tmp_path / name)
    assert code == 2
    assert_one_line(err, name, words)


def test_bad_batch_sizes_are_one_line(run: Run) -> None:
    code, _, err = run("score", "--text", HELD_OUT, "--batch-size", "0")
    assert code == 2
    assert_one_line(err, "--batch-size is 0")


def test_scoring_reports_its_progress(generator: TextGenerator) -> None:
    texts = ["春风" * 400, "秋雨" * 10, "夕阳"]
    done: list[int] = []
    scores = list(generator.score_each(iter(texts), batch_size=2, on_progress=done.append))
    assert len(scores) == 3
    assert done == sorted(done)
    assert len(done) > 5
    assert done[-1] == sum(len(text.encode()) for text in texts)
