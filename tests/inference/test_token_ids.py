"""A SavedModel without a tokenizer: token ids in, tokens out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import inference
from inference.cli import main
from inference.token_ids import TokenIds
from tests.helpers.assertions import assert_one_line_error
from tests.helpers.text_models import TextModel
from tokenization import TokenizerError, decode_stream

PROMPTS = [[6, 9, 11, 5], [12], [9, 9, 7]]


@pytest.fixture(scope="module")
def ids_only(bert: TextModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ids-only") / "model"
    shutil.copytree(bert.folder, folder)
    for file in (folder / "assets").iterdir():
        if file.name not in ("config.json", "generation_config.json"):
            file.unlink()
    return folder


def greedy(model: TextModel, ids: list[int], number: int) -> list[int]:
    with torch.inference_mode():
        output = model.oracle.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=number, pad_token_id=0, eos_token_id=None
        )
    return output[0, len(ids) :].tolist()


OPTIONS = {"temperature": 0, "max_new_tokens": 8, "eos_token_id": -1}


@pytest.mark.slow
def test_python_goes_on_with_token_ids_as_transformers_does(bert: TextModel, ids_only: Path) -> None:
    generator = inference.load(ids_only)
    for result, prompt in zip(generator.generate(PROMPTS, **OPTIONS), PROMPTS, strict=True):
        expected = greedy(bert, prompt, 8)
        assert list(result.tokens) == expected
        assert str(result) == " ".join(map(str, [*prompt, *expected]))
        assert "".join(generator.stream(prompt, **OPTIONS)) == result.text == "".join(f" {i}" for i in expected)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_the_command_goes_on_with_token_ids_as_transformers_does(
    bert: TextModel, ids_only: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"ids{suffix}"
    file.write_text(json.dumps(PROMPTS) if suffix == ".json" else "\n".join(map(json.dumps, PROMPTS)))
    options = ["--temperature", "0", "--max-new-tokens", "8", "--eos-token-id", "-1"]
    assert main(["generate", str(ids_only), "--prompts", str(file), "--json", "--quiet", *options]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in records] == PROMPTS
    assert [record["tokens"] for record in records] == [greedy(bert, prompt, 8) for prompt in PROMPTS]


def test_the_end_of_a_text_is_that_of_the_configuration(ids_only: Path, tmp_path: Path) -> None:
    shutil.copytree(ids_only / "assets", tmp_path / "assets")
    (tmp_path / "saved_model.pb").touch()
    file = tmp_path / "assets/config.json"
    config = {**json.loads(file.read_text()), "eos_token_id": [4, 2], "pad_token_id": 3}
    file.write_text(json.dumps(config))
    from exports.saved_model_folder import SavedModelFolder
    from inference.request import RequestReader

    tokenizer = RequestReader.read(SavedModelFolder(tmp_path)).tokenizer
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (4, 3)


def test_tokens_stream_as_they_are_decoded() -> None:
    tokenizer = TokenIds(Path("model"), 300, {})
    assert "".join(decode_stream(tokenizer, [7, 0, 299])) == tokenizer.decode([7, 0, 299]) == "7 0 299"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, 0)
    with pytest.raises(TokenizerError, match="300 is outside the vocabulary"):
        tokenizer.decode([300])


@pytest.mark.parametrize("words", ["generate 今天", "generate", "ask 谁？", "chat", "score --text text.txt"])
def test_a_text_is_refused_in_one_line_that_says_what_to_do(
    ids_only: Path, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("今天天气不错")
    monkeypatch.chdir(tmp_path)
    command, *others = words.split()
    assert main([command, str(ids_only), *others]) == 2
    assert_one_line_error(capsys, str(ids_only), "has no tokenizer", "--tokenizer", "ids.json")


def test_python_refuses_a_text_in_one_line(ids_only: Path) -> None:
    generator = inference.load(ids_only)
    for call in (generator.generate, generator.score, generator.perplexity):
        with pytest.raises(TokenizerError, match="has no tokenizer: convert the checkpoint again"):
            call("今天")


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("ids.json", "[[4, 5], [4, 99999]]", "ids.json, element 2"),
        ("ids.jsonl", "[4, 5]\n\n[4, 99999]\n", "ids.jsonl, line 3"),
        ("ids.json", '[\n {"prompt": [4, 99999]}\n]', "ids.json, element 1"),
    ],
)
def test_an_id_outside_the_vocabulary_is_named_with_its_file(
    ids_only: Path, name: str, content: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["generate", str(ids_only), "--prompts", str(tmp_path / name)]) == 2
    assert_one_line_error(capsys, f"error: {tmp_path}/{place}: token id 99999 is outside the vocabulary")


def test_a_text_file_of_prompts_that_is_json_is_noted(
    bert: TextModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--json", "--max-new-tokens", "1"]
    for content, is_json in {
        '["hello", "world"]': True,
        "[1, 2]\n[3]": True,
        "[CLS]hello": False,
        "hello": False,
    }.items():
        (tmp_path / "a.txt").write_text(content)
        assert main(["generate", str(bert.folder), "--prompts", str(tmp_path / "a.txt"), *options]) == 0
        assert ("a.txt is JSON, and each line of it" in capsys.readouterr().err) == is_json
