"""What depends on where a command runs: a terminal or a pipe, a locale without Chinese characters."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from inference import TextGenerator
from tests.conftest import ROOT
from tests.inference.conftest import Run
from tokenization import chinese_punctuation

WORDS = ["浣溪沙", "--seed", "1", "--max-new-tokens", "80"]


def command(name: str, song_ci: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "inference", name, str(song_ci), *words]


def on_a_terminal(arguments: list[str]) -> str:
    """What a command prints on a terminal, stdout and stderr together."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(arguments, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0, seen
    return seen.decode("utf-8").replace("\r\n", "\n")


@pytest.fixture(scope="module")
def text(generator: TextGenerator) -> str:
    """The text of ``WORDS``, as the model makes it."""
    (result,) = generator.generate("浣溪沙", seed=1, max_new_tokens=80)
    assert "," in result.text
    return result.full_text


def test_a_terminal_shows_chinese_punctuation_and_that_a_model_is_loaded(song_ci: Path, text: str) -> None:
    loading, shown = on_a_terminal(command("generate", song_ci, *WORDS)).split("\n", 1)
    assert loading == f"Loading {song_ci} ..."
    assert shown == chinese_punctuation(text) + "\n"
    assert "，" in shown


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_a_pipe_has_the_text_as_the_model_made_it_unless_chinese_is_asked_for(
    run: Run, text: str, more: list[str]
) -> None:
    assert run("generate", *WORDS, *more) == (0, text + "\n", "")
    assert run("generate", *WORDS, *more, "--punctuation", "model") == (0, text + "\n", "")
    assert run("generate", *WORDS, *more, "--punctuation", "chinese") == (0, chinese_punctuation(text) + "\n", "")


def test_json_and_files_keep_the_text_of_the_model(run: Run, text: str, tmp_path: Path) -> None:
    _, out, _ = run("generate", *WORDS, "--json", "--punctuation", "chinese")
    assert "浣溪沙" + json.loads(out)["text"] == text
    run("generate", *WORDS, "--output", tmp_path / "out.jsonl", "--punctuation", "chinese")
    assert (tmp_path / "out.jsonl").read_text("utf-8") == out


@pytest.mark.parametrize("name", ["generate", "chat"])
def test_chinese_is_read_and_printed_whatever_the_locale_is(song_ci: Path, text: str, name: str) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    words = WORDS if name == "generate" else WORDS[1:]
    result = subprocess.run(
        command(name, song_ci, *words, "--truncate", "没有"), cwd=ROOT, capture_output=True, check=True,
        env=environment, input="浣溪沙\n".encode(),
    )  # fmt: skip
    assert result.stderr == b""
    assert result.stdout.decode() == (text if name == "generate" else text.removeprefix("浣溪沙")) + "\n"


def test_characters_that_the_vocabulary_lacks_are_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("浣溪沙\n春☃风☂☃\n", "utf-8")
    arguments = ["--prompts", str(tmp_path / "prompts.txt"), "--max-new-tokens", "1"]
    _, _, err = run("generate", *arguments)
    assert err == "note: prompt '春☃风☂☃': the model's vocabulary does not have ☃ ☂\n"
    assert run("generate", *arguments, "--quiet")[2] == ""


def test_python_m_exports_works_and_says_where_it_went() -> None:
    now, before = (
        subprocess.run(
            [sys.executable, "-m", name, "generate", "/absent", "春"], cwd=ROOT, capture_output=True, text=True,
            check=False,
        )
        for name in ("inference", "exports")
    )  # fmt: skip
    note, error = before.stderr.splitlines()
    assert note.startswith("note: `python -m exports` is now `python -m inference`")
    assert (before.returncode, error + "\n") == (now.returncode, now.stderr)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-p", "2"], "top_p is 2.0: expected more than 0, at most 1"),
        (["--eos-token-id", "6000"], "outside the vocabulary"),
        (["--num-beams", "2", "--seed", "1"], "leave out seed"),
    ],
)
def test_bad_options_are_reported_before_the_model_is_loaded(
    song_ci: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    """Of a SavedModel whose graph cannot be loaded: its options are wrong first."""
    (tmp_path / "assets").symlink_to(song_ci / "assets")
    (tmp_path / "saved_model.pb").write_text("not a graph")
    for name in ("generate", "chat", "ask"):
        if name != "chat" or "--num-beams" not in words:
            result = subprocess.run(
                command(name, tmp_path, *([] if name == "chat" else ["春"]), *words), cwd=ROOT, capture_output=True,
                text=True, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert (result.returncode, result.stderr.count("\n")) == (2, 1)
            assert message in result.stderr
