"""``python -m inference``: what it prints, exit codes, one line for every mistake, interruptions that lose nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.__main__ import main
from inference.cli import PROGRAM
from inference.jsonl import open_results
from inference.text_generator import TextGenerator
from tests.conftest import ROOT
from tests.helpers.assertions import assert_one_line
from tests.inference.conftest import Run

PROMPTS = ["浣溪沙", "菩萨蛮\n"]
FEW = ["--max-new-tokens", "8", "--seed", "1"]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").removesuffix("\n").split("\n")]


def text(generator: TextGenerator, prompt: str, seed: int = 1, **options: Any) -> str:
    return generator.generate(prompt, seed=seed, **{"max_new_tokens": 8, **options})[0].text


def test_texts_are_printed_after_their_prompts(run: Run, generator: TextGenerator) -> None:
    first, second = (text(generator, prompt) for prompt in PROMPTS)
    assert run("generate", *PROMPTS, *FEW) == (0, f"{PROMPTS[0]}{first}\n{'=' * 20}\n{PROMPTS[1]}{second}\n", "")
    assert run("generate", PROMPTS[0], *FEW, "--no-prompt") == (0, f"{first}\n", "")
    assert run("generate", PROMPTS[0], *FEW, "--stream") == (0, f"{PROMPTS[0]}{first}\n", "")
    assert run("generate", PROMPTS[0], *FEW, "--stream", "--no-prompt") == (0, f"{first}\n", "")


def test_prompts_may_stand_after_options(run: Run) -> None:
    expected = run("generate", *PROMPTS, *FEW, "--truncate", "。", "--eos-token-id", "7")
    assert run("generate", "--truncate", "。", PROMPTS[0], *FEW, "--eos-token-id", "7", PROMPTS[1]) == expected
    assert run("ask", "春", *FEW, "秋") == run("ask", "春", "秋", *FEW)


def test_every_option_reaches_the_model(run: Run, generator: TextGenerator) -> None:
    given = {"max_new_tokens": 9, "min_new_tokens": 2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3,
             "suppress_tokens": [14, 15], "eos_token_id": [7, 5], "temperature": 1.5, "top_k": 500, "top_p": 0.95,
             "min_p": 0.001, "typical_p": 0.99, "seed": 4, "window_tokens": 100, "window_line_token_id": 3}  # fmt: skip
    words = [
        word
        for name, value in given.items()
        for word in (
            "--" + name.replace("_", "-"),
            ",".join(map(str, value)) if isinstance(value, list) else str(value),
        )
    ]
    expected = generator.generate(PROMPTS[0], truncate=["、", "？"], **given)[0].text
    code, out, _ = run("generate", *PROMPTS[:1], "--no-prompt", *words, "--truncate", "、", "--truncate", "？")
    assert (code, out) == (0, expected + "\n")
    beams = ["--num-beams", "3", "--length-penalty", "0.5", "--early-stopping", "1", "--max-length", "9"]
    found = generator.generate(
        PROMPTS[0], num_beams=3, num_return_sequences=2, length_penalty=0.5, early_stopping=1, max_length=9
    )
    _, out, _ = run("generate", PROMPTS[0], "--number", "2", "--json", *beams)
    assert [json.loads(line)["text"] for line in out.splitlines()] == [result.text for result in found]


def test_the_window_keeps_lines_or_tokens(run: Run, generator: TextGenerator) -> None:
    options: dict[str, Any] = {"max_new_tokens": 300, "eos_token_id": -1, "seed": 1}
    words = ["--max-new-tokens", "300", "--eos-token-id", "-1", "--seed", "1", "--no-prompt"]
    by = {"tokens": -1, "line": generator.tokenizer.line_token_id}
    texts = {}
    for name, token in by.items():
        texts[name] = generator.generate(PROMPTS[0], **options, window_line_token_id=token)[0].text
        assert run("generate", PROMPTS[0], *words, "--window", name)[1] == texts[name] + "\n"
    assert len(set(texts.values())) == 2


def test_json_and_output_have_the_same_records(run: Run, generator: TextGenerator, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPTS[0], "score": 5}), "utf-8")
    code, _, err = run("generate", "--prompts", str(prompts), *FEW, "--json")
    assert (code, "a result has a 'score' of its own" in err) == (2, True)
    lines = [{"id": 1, "prompt": PROMPTS[0], "note": "no"}, {"prompt": "\u2028词", "id": 2}, {"prompt": PROMPTS[0]}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--prompts", str(prompts), "--number", "2", *FEW]
    assert run("generate", *arguments, "--output", str(output)) == (0, "", "")
    found = records(output)
    _, out, _ = run("generate", *arguments, "--json")
    assert [json.loads(line) for line in out.removesuffix("\n").split("\n")] == found
    assert [(r["prompt"], r["number"], r.get("id")) for r in found] == [
        (PROMPTS[0], 0, 1), (PROMPTS[0], 1, 1), ("\u2028词", 0, 2), ("\u2028词", 1, 2), (PROMPTS[0], 2, None),
        (PROMPTS[0], 3, None),
    ]  # fmt: skip
    for record in found:
        (alone,) = generator.generate(record["prompt"], seed=1 + record["number"], max_new_tokens=8)
        assert (record["text"], tuple(record["tokens"])) == (alone.text, alone.tokens)
        assert record["logprobs"] == pytest.approx(alone.logprobs, abs=1e-3)
        assert (record["seed"], record["finish_reason"]) == (1 + record["number"], alone.finish_reason)


def test_special_pieces_are_read_when_they_are_asked_for(run: Run, generator: TextGenerator) -> None:
    """CPM's end of a document is text, with a note, until somebody says which of the two is meant."""
    prompt = "浣溪沙<eod>一曲"
    texts = {
        more: generator.generate(prompt, seed=1, max_new_tokens=8, special_pieces=more)[0].text
        for more in (True, False)
    }
    assert texts[True] != texts[False]
    code, out, err = run("generate", prompt, *FEW)
    assert (code, out) == (0, f"{prompt}{texts[False]}\n")
    assert err.startswith(f"note: prompt '{prompt}': <eod> is text for this model: give --special-pieces for")
    assert err.count("\n") == 1
    assert run("generate", prompt, *FEW, "--special-pieces") == (0, f"{prompt}{texts[True]}\n", "")
    assert run("generate", prompt, *FEW, "--special-pieces", "--stream") == (0, f"{prompt}{texts[True]}\n", "")
    code, out, err = run("generate", prompt, *FEW, "--no-special-pieces")
    assert (code, out) == (0, f"{prompt}{texts[False]}\n")
    assert err == f"note: prompt '{prompt}': the model's vocabulary does not have < e o d >\n"


def test_what_begins_a_text_and_ends_a_line_can_be_given(run: Run, generator: TextGenerator) -> None:
    encode = generator.tokenizer.encode
    ids = [4, 6, *encode("浣溪沙"), 6, *encode("一曲")]
    options: dict[str, Any] = {"max_new_tokens": 40, "seed": 1, "line_token_id": 6}
    (expected,) = generator.generate([ids], **options)
    words = ["--start-token-ids", "4,6", "--line-token-id", "6", "--max-new-tokens", "40", "--seed", "1"]
    assert run("generate", "浣溪沙\n一曲", *words, "--no-prompt") == (0, f"{expected.text}\n", "")


def test_prompts_may_be_token_ids_in_an_array(run: Run, generator: TextGenerator, tmp_path: Path) -> None:
    ids = [generator.tokenizer.encode(prompt) for prompt in PROMPTS]
    prompts, output = tmp_path / "prompts.JSON", tmp_path / "out.jsonl"
    prompts.write_text(json.dumps([ids[0], {"text": PROMPTS[1], "id": 2}]), "utf-8")
    arguments = ["--prompts", prompts, *FEW, "--output", output]
    assert run("generate", *arguments)[0] == 0
    first, second = records(output)
    assert (first["prompt"], first["text"]) == (ids[0], text(generator, PROMPTS[0]))
    assert (second["prompt"], second["id"], second["text"]) == (PROMPTS[1], 2, text(generator, PROMPTS[1]))
    assert run("generate", *arguments, "--resume") == (0, "", f"2 of 2 results are in {output} already\n")
    code, _, err = run("generate", "--prompts", prompts, "--start-token-ids", "4", "--max-new-tokens", "1", "--json")
    assert (code, err) == (0, "")
    prompts.write_text("[[1], [6000]]")
    assert_one_line(run("generate", "--prompts", prompts, *FEW)[2], "token id 6000 is outside the vocabulary")


def _key(record: dict[str, Any]) -> tuple[str, int]:
    return record["prompt"], record["number"]


@pytest.mark.parametrize("more", [[], ["--num-beams", "3"]])
def test_resume_makes_what_is_missing_and_leaves_what_is_there(run: Run, tmp_path: Path, more: list[str]) -> None:
    """What is there is left alone, what is missing comes out as if nothing had happened."""
    output = tmp_path / "out.jsonl"
    seed = [] if more else ["--seed", "1"]
    arguments = [*PROMPTS, PROMPTS[0], "--number", "3", "--max-new-tokens", "6", "--output", str(output), *more, *seed]
    assert run("generate", *arguments)[0] == 0
    whole, lines = records(output), output.read_text("utf-8").split("\n")
    assert len(whole) == 9
    output.write_text("".join(lines[n] + "\n" for n in (1, 2, 5, 8)) + lines[0][:30], "utf-8")
    assert run("generate", *arguments, "--resume")[0] == 0
    for record, expected in zip(sorted(records(output), key=_key), sorted(whole, key=_key), strict=True):
        # Which rows a batch has moves the last bits of floating-point numbers, never the text.
        assert record.pop("logprobs") == pytest.approx(expected.pop("logprobs"), abs=1e-4)
        assert record == expected
    assert run("generate", *arguments, "--resume") == (0, "", f"9 of 9 results are in {output} already\n")
    assert len(records(output)) == 9
    assert run("generate", *arguments)[0] == 0  # without --resume: once more
    assert len(records(output)) == 18


def test_another_runs_file_and_somebody_elses_stay_as_they_are(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with open_results(output):
        code, _, err = run("generate", PROMPTS[0], *FEW, "--output", str(output))
    assert (code, err.count("\n")) == (2, 1)
    assert "another run" in err
    output.write_text("my novel")
    for more in ([], ["--resume"]):
        assert run("generate", PROMPTS[0], *FEW, "--output", str(output), *more)[0] == 2
        assert output.read_text() == "my novel"


def test_a_preset_prints_no_end_of_document(run: Run) -> None:
    arguments = ["浣溪沙\n一曲新词", "--preset", "lyric", "--max-length", "40", "--seed", "1"]
    code, out, _ = run("generate", *arguments)
    assert code == 0
    assert out.startswith("浣溪沙\n一曲新词\n")
    assert "<eod>" not in out
    assert run("generate", *arguments, "--stream") == (0, out, "")
    _, out, _ = run("generate", *arguments, "--json")
    assert "<eod>" in json.loads(out)["text"] or "\n" in json.loads(out)["text"]
    assert run("generate", "一曲", "--preset", "novel", "--max-new-tokens", "3", "--number", "2")[0] == 0


def test_ask_puts_examples_before_the_question(run: Run, generator: TextGenerator, tmp_path: Path) -> None:
    examples = tmp_path / "examples.tsv"
    examples.write_bytes("\ufeff一？\t二\u2028三\r\n\n四？\t五\n".encode())
    shots = "问题：一？\n答案：二\u2028三\n问题：四？\n答案：五\n问题：六\n答案："
    expected = generator.generate(shots, max_new_tokens=50, truncate="\n", seed=1)[0].text.strip()
    assert run("ask", " 六 ", "--examples", str(examples), "--seed", "1") == (0, expected + "\n", "")
    code, out, _ = run("ask", "六", "七", "--seed", "1")
    assert (code, [line.split("\t")[0] for line in out.splitlines()]) == (0, ["六", "七"])
    for content, words in ((b"a\n", "line 1: expected a question"), (b"\n", "no examples"), (b"\xff", "not UTF-8")):
        examples.write_bytes(content)
        code, _, err = run("ask", "六", "--examples", str(examples))
        assert (code, err.count("\n"), words in err) == (2, 1, True)


BAD: list[tuple[list[str], str]] = [
    ([], "the prompt has no tokens"),
    ([""], "the prompt has no tokens"),
    (["春", "\t"], "the prompt has no tokens"),
    (["\udcff"], "half a surrogate pair"),
    (["春", "--temperature", "-1"], "temperature is -1.0: expected 0 or more"),
    (["春", "--temperature", "nan"], "temperature is nan"),
    (["春", "--temperature", "warm"], "invalid float value: 'warm'"),
    (["春", "--temprature", "1"], "did you mean --temperature?"),
    (["春", "--top-p", "0"], "more than 0, at most 1"),
    (["春", "--top-p", "1.1"], "more than 0, at most 1"),
    (["春", "--top-k", "1e3"], "invalid int value"),
    (["春", "--num-beams", "0"], "num_beams is 0"),
    (["春", "--num-beams", "2", "--seed", "1"], "leave out seed"),
    (["春", "--num-beams", "2", "--number", "3"], "no more than that"),
    (["春", "--num-beams", "2", "--max-new-tokens", "300"], "beam search has no window"),
    (["春", "--max-new-tokens", "-5"], "max_new_tokens is -5"),
    (["春", "--max-new-tokens", "5", "--max-length", "5"], "exclude each other"),
    (["春", "--eos-token-id", "6000"], "outside the vocabulary"),
    (["春", "--eos-token-id", "7,x"], "expected token ids with commas"),
    (["春", "--number", "0"], "--number is 0"),
    (["春", "--number", "1000000000000"], "--number is"),
    (["春", "--batch-size", "0"], "--batch-size is 0"),
    (["春", "--resume"], "--resume needs --output"),
    (["春", "--stream", "--json"], "--stream prints one text"),
    (["春", "--stream", "--num-beams", "2"], "a stream is one text"),
    (["春", "--json", "--output", "x"], "choose one"),
    (["--prompts", "/absent"], "cannot be read"),
    (["春", "--output", "/absent/x"], "cannot be written"),
    (["春", "--output", "/dev/null"], "not a file"),
    (["春", "--window", "page"], "invalid choice"),
    (["春", "--truncate", ""], "expected a text"),
    (["春", "--start-token-ids", "[MASK]"], "expected token ids with commas"),
    (["春", "--start-token-ids", "4,6000"], "start_token_ids: 6000 is outside the vocabulary"),
    (["春", "--line-token-id", "-2"], "line_token_id is -2"),
    (["", "--start-token-ids", "-1"], "start_token_ids has none to start from"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_a_mistake_is_one_line(run: Run, arguments: list[str], words: str) -> None:
    code, out, err = run("generate", *arguments)
    assert (code, out) == (2, "")
    assert_one_line(err, words)


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["generate"], ["ask", "x"], ["generate", "/absent", "a"]])
def test_a_missing_command_or_model_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    assert (code, capsys.readouterr().err.count("\n")) == (2, 1)


def test_a_bad_prompt_stops_the_run_before_it_begins(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"a"\n"\\u3000"\n')
    code, _, err = run("generate", "--prompts", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out"), *FEW)
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert "\\u3000" in err


def test_a_prompt_longer_than_the_model_is_noted(run: Run, generator: TextGenerator) -> None:
    prompt = "春风又绿江南岸" * 60
    tokens = len(generator.tokenizer.encode_prompt(prompt))
    few = ["--max-new-tokens", "2", "--no-prompt"]
    for more, kept in ([], 128), (["--window-tokens", "9"], 9), (["--stream"], 128):
        code, out, err = run("generate", prompt, *few, *more)
        assert code == 0
        assert out.strip()
        said = f"{tokens} tokens, the model 256 positions: of the prompt no more than the last {kept} tokens are read"
        assert said in err
    assert run("generate", prompt, *few, "--quiet")[2] == ""


def test_prompts_come_from_stdin_as_utf8(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeff浣溪沙\r\n\n菩萨蛮".encode()), "ascii"))
    _, out, _ = run("generate", "--prompts", "-", "--json", *FEW)
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["浣溪沙", "菩萨蛮"]


def test_chat_continues_line_after_line(run: Run, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty line goes on; what cannot be encoded is said, and the next line is read."""
    first = text(generator, "浣溪沙")
    second = text(generator, "浣溪沙" + first)
    typed = "\n浣溪沙\n\n".encode() + b"\xff\n/quit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), "utf-8"))
    code, out, err = run("chat", *FEW)
    assert (code, out) == (0, f"{first}\n{second}\n")
    assert err.count("\n") == err.count("error:") == 2


def test_help_is_whole_and_imports_no_tensorflow(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("", *PROGRAM.commands):
        with pytest.raises(SystemExit) as exit_:
            main([*command.split(), "--help"])
        shown = capsys.readouterr().out
        assert exit_.value.code == 0
        assert re.search("examples?:\n  python -m inference ", shown)
        assert "exit codes:" in shown
    code = (
        "import sys\nfrom inference.__main__ import main\ntry: main(['generate', '--help'])\n"
        "except SystemExit: print({'tensorflow', 'torch', 'keras', 'jieba'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("\nset()\n")


def command(song_ci: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "inference", arguments[0], str(song_ci), *arguments[1:]]


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, "", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_loses_nothing_and_is_resumed(
    run: Run, song_ci: Path, tmp_path: Path, sent: signal.Signals, code: int, said: str
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["generate", *PROMPTS, "--number", "60", "--max-new-tokens", "4", "--seed", "1", "--batch-size", "1",
                 "--output", str(output)]  # fmt: skip
    process = subprocess.Popen(command(song_ci, *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until(lambda: output.exists() and output.read_bytes().count(b"\n") >= 3)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f"error: {said}\n" if said else "")
    before = output.read_bytes()
    assert 3 <= before.count(b"\n") < 120
    output.write_bytes(before + b'{"prompt": "\xe6')  # as if it had come in the middle of a character
    assert run(*arguments, "--resume")[0] == 0
    assert output.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    found = records(output)
    assert len(found) == len({(record["prompt"], record["number"]) for record in found}) == 120
    assert all(record["seed"] == 1 + record["number"] for record in found)


def test_a_reader_that_has_seen_enough_ends_the_run_quietly(song_ci: Path) -> None:
    words = " ".join(f"'{word}'" for word in command(song_ci, "generate", "浣溪沙", *FEW, "--number", "3"))
    script = f"{words} | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout.split(), result.stderr) == (["141"], "")


def test_a_full_disk_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, contextlib.suppress(OSError), open("/dev/full", "w") as full:
        patch.setattr("sys.stdout", full)
        code, _, error = run("generate", "浣溪沙", *FEW)
    assert (code, error) == (2, "error: stdout cannot be written: No space left on device\n")


@pytest.fixture
def terminal(song_ci: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """``chat`` in a terminal of its own, whose text has no end."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(song_ci, "chat", "--max-new-tokens", "100000", "--eos-token-id", "-1"), cwd=ROOT, stdin=theirs,
        stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    yield ours, process
    process.kill()
    process.wait()
    os.close(ours)


def test_chat_in_a_terminal_obeys_ctrl_c_and_ctrl_d(terminal: tuple[int, subprocess.Popen[bytes]]) -> None:
    """Ctrl-C stops the text and not the program, an empty line goes on, Ctrl-D ends it."""
    ours, process = terminal
    os.set_blocking(ours, False)
    seen = bytearray()

    def has(pattern: str) -> bool:
        try:
            seen.extend(os.read(ours, 65536))
        except BlockingIOError:
            pass
        except OSError:  # the other side is closed
            return process.poll() is not None
        return re.search(pattern, seen.decode("utf-8", "ignore"), re.DOTALL) is not None

    until(lambda: has("Ctrl-D.*> $"))
    for typed in ("浣溪沙\n", "\n"):
        os.write(ours, typed.encode())
        until(lambda: has(r"> (浣溪沙)?\r?\n.*[\u4e00-\u9fff].*[\u4e00-\u9fff]{3}"))
        seen.clear()
        os.write(ours, b"\x03")
        until(lambda: has("\n> $"))
        seen[:] = b"> "
        assert process.poll() is None
    os.write(ours, b"half a line")
    until(lambda: has("half a line$"))
    os.write(ours, b"\x03")
    until(lambda: has("line.*\n> $"))
    os.write(ours, b"\x04")
    until(lambda: process.poll() is not None or has("no such text"))
    assert process.returncode == 0
    assert b"Traceback" not in seen
