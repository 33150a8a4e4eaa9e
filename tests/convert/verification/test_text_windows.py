"""``verify`` on text: files of prompts, whole texts, and the perplexity of both models."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.verification.text_windows import cut_windows
from demo.corpus import write_held_out
from tests.conftest import shared
from tests.helpers.assertions import assert_one_line_error
from tests.helpers.checkpoints import fill_transformers, random_state, write_megatron
from tests.helpers.light import main
from tests.helpers.verified import convert, run_verify
from tf_model.config import GPT2Config
from tokenization import CPMTokenizer


@pytest.fixture(scope="module")
def checkpoint_and_model(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> tuple[Path, Path]:
    """A checkpoint as large as the demo's vocabulary, and its SavedModel with the tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint_and_model")
    tokenizer = CPMTokenizer(demo / "tokenizer")
    config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=16, n_embd=48, n_layer=2, n_head=12)
    write_megatron(folder / "c", random_state(config, np.random.default_rng(0)), 2, extras=False)
    tokenizer.save(convert(folder / "c", folder / "m") / "assets")
    return folder / "c", folder / "m"


class TestPrompts:
    def test_each_line_is_a_prompt(
        self, checkpoint_and_model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "prompts.txt"
        file.write_bytes("\ufeff明月几时有\r\n\n \t\n\u3000\n春风\n".encode() + ("把酒问青天，" * 9).encode())
        assert run_verify(*checkpoint_and_model, "--prompts", str(file), "--json") == 0
        out, err = capsys.readouterr()
        report = json.loads(out)
        assert report["seed"] is None
        assert len(report["prompts"]) == 3
        assert report["prompts"][2]["tokens"] == 16
        assert err.count("\n") == 1
        assert err.startswith(f"note: {file}: line 6: ")
        assert err.endswith("tokens, cut to the 16 that the model takes\n")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "cannot be read"),
            (b"", "found none"),
            (b"\n \n\t\r\n", "found none"),
            ("明月".encode("gb18030"), "expected UTF-8 text, found another encoding at byte 0"),
            (("春风\n" * 8193).encode(), "8192 at most"),
        ],
        ids=["absent", "empty", "blank", "gb18030", "too many"],
    )  # fmt: skip
    def test_bad_file_is_refused(
        self, checkpoint_and_model: tuple[Path, Path], content: bytes | None, words: str, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        file = tmp_path / "prompts.txt"
        if content is not None:
            file.write_bytes(content)
        assert run_verify(*checkpoint_and_model, "--prompts", str(file)) == 2
        assert_one_line_error(capsys, words)

    def test_model_without_tokenizer_is_refused(
        self, roots: dict[int, Path], models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "prompts.txt").write_text("春风")
        code = run_verify(roots[2], models["float32"], "--prompts", str(tmp_path / "prompts.txt"))
        assert code == 2
        assert_one_line_error(capsys, "assets: no tokenizer")


class TestText:
    TEXT = "明月几时有，把酒问青天。\n不知天上宫阙，今夕是何年。\n我欲乘风归去。\n"

    @pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
    def test_perplexity_is_transformers(
        self,
        suffix: str,
        checkpoint_and_model: tuple[Path, Path],
        demo: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The same tokens in windows of 16; in JSON lines each text is a document and has its end."""
        file = tmp_path / f"text{suffix}"
        texts = [self.TEXT] if suffix == ".txt" else [self.TEXT, "春风", self.TEXT[:4]]
        lines = [texts[0], *({"text": text} for text in texts[1:])]
        content = texts[0].replace("\n", "\r\n") if suffix == ".txt" else "\n\n".join(map(json.dumps, lines))
        file.write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert run_verify(*checkpoint_and_model, "--text", str(file), "--json") == 0
        found = json.loads(capsys.readouterr().out)

        tokenizer = CPMTokenizer(demo / "tokenizer")
        config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=16, n_embd=48, n_layer=2, n_head=12)
        oracle = fill_transformers(random_state(config, np.random.default_rng(0)), config).double()
        loss, count, sizes = 0.0, 0, []
        for text in texts:
            ids = tokenizer.encode(text, append_eod=suffix == ".jsonl")
            assert len(ids) > 31 or text != self.TEXT
            first = 0
            while first < len(ids) - 1:  # each token but the first is predicted once
                window = torch.tensor([ids[first : first + 16]])
                with torch.inference_mode():
                    loss += float(oracle(window, labels=window).loss) * (window.numel() - 1)
                count += window.numel() - 1
                sizes.append(window.numel())
                first += 15
            assert count == len(ids) - 1 or suffix == ".jsonl"
        assert [prompt["tokens"] for prompt in found["prompts"]] == sizes
        assert found["seed"] is None
        perplexity = found["perplexity"]
        assert perplexity["tokens"] == count
        assert perplexity["source"] == pytest.approx(math.exp(loss / count), rel=1e-5)
        assert perplexity["converted"] == pytest.approx(math.exp(loss / count), rel=1e-5)
        assert perplexity["change"] == pytest.approx(perplexity["converted"] / perplexity["source"] - 1, abs=1e-12)
        assert perplexity["allowed"] is None  # too few

    def test_the_table_has_the_perplexity_of_each_window(
        self, checkpoint_and_model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "text.txt"
        file.write_text(self.TEXT, "utf-8")
        assert run_verify(*checkpoint_and_model, "--text", str(file)) == 0
        head, *windows, last = capsys.readouterr().out.splitlines()
        assert head.split()[-3:] == ["perplexity", "converted", "change"]
        assert len(windows) == 3
        assert [len(line) for line in windows] == [len(head)] * 3
        assert re.search(r"; perplexity [\d.e+]+, converted .*tokens: too few to judge, 1000 are needed\); ", last)

    def test_a_long_text_is_cut_and_not_read_to_its_end(
        self, checkpoint_and_model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What follows is not UTF-8."""
        file = tmp_path / "text.txt"
        file.write_bytes(self.TEXT.encode() * 100 + b"\xff")
        assert run_verify(*checkpoint_and_model, "--text", str(file), "--max-tokens", "20", "--json") == 0
        out, err = capsys.readouterr()
        assert err == f"note: {file}: only its first 20 tokens are used; --max-tokens takes more\n"
        assert [prompt["tokens"] for prompt in json.loads(out)["prompts"]] == [16, 5]

    def test_documents_that_are_not_used_are_not_read(
        self, checkpoint_and_model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A second line would be refused; a file of a hundred gigabytes would not fit into memory."""
        file = tmp_path / "text.jsonl"
        file.write_bytes(json.dumps(self.TEXT).encode() + b"\n{\xff\n" * 3)
        assert run_verify(*checkpoint_and_model, "--text", str(file), "--max-tokens", "10", "--json") == 0
        out, err = capsys.readouterr()
        assert err == f"note: {file}: only its first 10 tokens are used; --max-tokens takes more\n"
        assert sum(prompt["tokens"] for prompt in json.loads(out)["prompts"]) == 10

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("text.txt", "明月\0".encode(), "text.txt: expected UTF-8 text, found a NUL at byte 6"),
            ("text.jsonl", b'"a"\n"b\0"', "text.jsonl: expected UTF-8 text, found a NUL at byte 6"),
            ("text.jsonl", b'"a"\n"\xff"', "text.jsonl: expected UTF-8 text, found another encoding at byte 5"),
            ("text.txt", None, "text.txt: cannot be read: No such file"),
            ("text.txt", b"", "text.txt: expected a text, found none"),
            ("text.txt", b"\xef\xbb\xbf \r\n", "text.txt: expected a text, found none"),
            ("text.txt", "\u3000\u3000".encode(), "text.txt: expected a text"),
            ("text.txt", "明月".encode("gb18030"), "text.txt: expected UTF-8 text, found another encoding at byte 0"),
            ("text.txt", "明月".encode()[:-1], "text.txt: the UTF-8 text ends within a character, at byte 3"),
            ("text.jsonl", b"\n\n", "text.jsonl: expected a text, found none"),
            ("text.jsonl", b'"a"\n{', "text.jsonl: line 2: not JSON: "),
            ("text.jsonl", b"[" * 100000, "text.jsonl: line 1: not JSON: "),
            ("text.jsonl", b'{"prompt": "a"}', "line 1: expected a string with a text, or an object with one as"),
            ("text.jsonl", b'"a"\n" "', "line 2: expected a string with a text, or an object with one as"),
            ("text.jsonl", b'"\\ud800"', "line 1: text cannot be encoded"),
        ],
        ids=lambda value: value[-30:] if isinstance(value, str) else "",
    )  # fmt: skip
    def test_bad_file_is_refused(
        self, checkpoint_and_model: tuple[Path, Path], name: str, content: bytes | None, words: str, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert run_verify(*checkpoint_and_model, "--text", str(tmp_path / name)) == 2
        assert_one_line_error(capsys, words)

    def test_a_single_token_is_refused(
        self, checkpoint_and_model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "text.txt"
        file.write_text(self.TEXT, "utf-8")
        code = run_verify(*checkpoint_and_model, "--text", str(file), "--max-tokens", "1")
        assert code == 2
        assert_one_line_error(capsys, f"{file}: expected a text of 2 tokens or more")

    def test_model_without_tokenizer_is_refused(
        self, roots: dict[int, Path], models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "text.txt").write_text("春风")
        code = run_verify(roots[2], models["float32"], "--text", str(tmp_path / "text.txt"))
        assert code == 2
        assert_one_line_error(capsys, "convert with --tokenizer, or verify without --text")

    def test_options_that_do_not_fit_together_are_refused(
        self, roots: dict[int, Path], models: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run_verify(roots[2], models["float32"], "--max-tokens", "5") == 2
        assert_one_line_error(capsys, "--max-tokens: expected --text")
        for options in (["--text", "a", "--max-tokens", "0"], ["--text", "a", "--max-tokens", "x"],
                        ["--text", "a", "--prompts", "b"]):  # fmt: skip
            with pytest.raises(SystemExit) as exit_:
                run_verify(roots[2], models["float32"], *options)
            assert exit_.value.code == 2
            assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("dtype", "tokens"),
    [
        pytest.param("int8", 8_000, marks=pytest.mark.int8),
        ("int8-avx2", 8_000),
        ("bfloat16", 2_000),
        pytest.param("int8", 40_000, marks=[pytest.mark.slow, pytest.mark.int8]),
        pytest.param("int8-avx2", 40_000, marks=pytest.mark.slow),
        pytest.param("bfloat16", 40_000, marks=pytest.mark.slow),
    ],
)
def test_demo_keeps_its_perplexity(
    dtype: str, tokens: int, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the poems that it never saw. The source's perplexity is what the training script measured with PyTorch."""
    write_held_out(shared("corpora/song_ci.jsonl"), file := tmp_path / "held-out.jsonl")
    model = tmp_path / "model"
    arguments = ["--checkpoint", str(demo), "--tokenizer", str(demo / "tokenizer"), "--heads", "4", "--quiet"]
    assert main(["pytorch-to-tf", *arguments, "--output", str(model), "--dtype", dtype]) == 0
    options = ["--heads", "4", "--text", str(file), "--max-tokens", str(tokens), "--json"]
    assert main(["verify", str(demo), str(model), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    found = report["perplexity"]
    assert abs(found["change"]) < 0.005
    assert found["allowed"] == 0.005
    if tokens == 40_000:
        figures = json.loads((demo / "training.json").read_text())
        assert len(report["prompts"]) == figures["held_out_poems"] == 297
        assert found["source"] == pytest.approx(figures["held_out_perplexity_per_token"], rel=0.001)


def test_windows_overlap_by_one_token() -> None:
    assert cut_windows([1, 2, 3, 4, 5, 6, 7], 3) == [[1, 2, 3], [3, 4, 5], [5, 6, 7]]
    assert cut_windows([1, 2, 3, 4], 3) == [[1, 2, 3], [3, 4]]
    assert cut_windows([1], 3) == [[1]]
    assert cut_windows([], 3) == []
