"""``score``: the figures of a file of texts, as a table and as JSON, and files that cannot be used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from inference import TextGenerator, load
from inference.cli import main
from tests.conftest import ROOT
from tests.helpers.assertions import assert_one_line_error

HELD_OUT = ROOT / "demo" / "held-out.jsonl"
Score = Callable[..., int]


@pytest.fixture(scope="module")
def generator(song_ci: Path) -> TextGenerator:
    return load(song_ci)


@pytest.fixture
def score(song_ci: Path, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> Score:
    """Runs the command in this process, with a model that is loaded already -> exit code."""
    monkeypatch.setattr(TextGenerator, "load", lambda folder, **_: generator)
    return lambda *words: main(["score", str(song_ci), *map(str, words)])


def test_figures_of_each_document_and_of_all(
    score: Score, generator: TextGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("--text", HELD_OUT, "--json", "--batch-size", "3", "--quiet") == 0
    out, err = capsys.readouterr()
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
    assert err == ""


def test_a_text_file_is_one_document(
    score: Score, generator: TextGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(json.loads(line) for line in HELD_OUT.read_text("utf-8").splitlines()[:6])
    (tmp_path / "poems.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert score("--text", tmp_path / "poems.txt", "--quiet") == 0
    header, total = capsys.readouterr().out.splitlines()
    (expected,) = generator.score(text)
    assert header.split()[:4] == ["document", "tokens", "characters", "perplexity"]
    assert total.split()[:3] == ["total", str(len(expected.tokens) - 1), str(len(text))]
    assert float(total.split()[3]) == pytest.approx(expected.perplexity, rel=1e-3)


def test_a_document_of_one_token_has_no_perplexity(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "春"}\n"春风"\n', "utf-8")
    assert score("--text", tmp_path / "a.jsonl") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["line", "1", "0", "1", "-", "-"]
    assert score("--text", tmp_path / "a.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["perplexity"] is None


def test_unknown_tokens_are_counted_on_stderr(score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("春☃风☂", "utf-8")
    assert score("--text", tmp_path / "a.txt") == 0
    assert "does not have 2 of 5 tokens" in capsys.readouterr().err
    assert score("--text", tmp_path / "a.txt", "--quiet") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.txt", None, "cannot be read"),
        ("a.txt", b"", "expected a text, found none"),
        ("a.txt", b"\xff\xfe", "expected UTF-8 text, found another encoding at byte 0"),
        ("a.txt", "春".encode(), "expected a text of 2 tokens or more"),
        ("a.txt", "\u3000".encode(), "expected a text, found none"),
        ("a.jsonl", b"{}\n", 'line 1: expected a string with a text, or an object with one as "text"'),
        ("a.jsonl", b"{\n", "line 1: not JSON"),
        ("a.jsonl", b"\n\n", "expected a text, found none"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert score("--text", tmp_path / name) == 2
    assert_one_line_error(capsys, name, words)


def test_bad_batch_sizes_are_one_line(score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    assert score("--text", HELD_OUT, "--batch-size", "0") == 2
    assert_one_line_error(capsys, "--batch-size is 0")


def test_scoring_reports_its_progress(generator: TextGenerator) -> None:
    texts = ["春风" * 400, "秋雨" * 10, "夕阳"]
    done: list[int] = []
    scores = list(generator.score_each(iter(texts), batch_size=2, on_progress=done.append))
    assert len(scores) == 3
    assert done == sorted(done)
    assert len(done) > 5
    assert done[-1] == sum(len(text.encode()) for text in texts)
