"""What begins and ends a model's texts and lines: from an option to ``generation_config.json``, and on from there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import inference
from convert import to_checkpoint, to_savedmodel
from convert.__main__ import main
from convert.formats.registry import open_checkpoint
from convert.formats.savedmodel import _tokens
from convert.formats.text_pieces import with_pieces
from exports.assets import GENERATION_DEFAULTS, write_assets
from exports.saved_model_folder import SavedModelFolder
from inference.request import RequestReader
from support.errors import ConvertError
from tests.helpers.huggingface import model_of
from tests.helpers.in_memory import InMemory
from tests.helpers.library_tokenizers import word_level_of_words
from tests.helpers.small_vocabularies import write_tokenizer
from tf_model.config import GPT2Config
from tokenization import Tokenizer, load_tokenizer
from tokenization.special_tokens import SpecialTokens

CONFIG = GPT2Config(vocab_size=80, n_positions=32, n_embd=24, n_layer=2, n_head=4)
TOKENS = SpecialTokens(3, 0, defaults={"top_k": 8, "eos_token_id": [3, 2]})
GPT2_CHINESE = {"start_piece": "[MASK]", "end_piece": "[CLS]", "line_piece": "[SEP]"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer("bert", tmp_path_factory.mktemp("bert") / "tokenizer")


@pytest.fixture(scope="module")
def bert(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(bert: Tokenizer, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    bpe = load_tokenizer(write_tokenizer("bpe", tmp_path_factory.mktemp("bpe") / "tokenizer"))
    words = tmp_path_factory.mktemp("words") / "tokenizer.json"
    word_level_of_words().save(str(words))
    return {"bert": bert, "bpe": bpe, "cpm": load_tokenizer(demo / "tokenizer"), "library": load_tokenizer(words)}


FOUND: dict[str, tuple[dict[str, str], tuple[int | None, dict[str, Any]]]] = {
    "nothing": ({}, (3, {"eos_token_id": [3, 2]})),
    "GPT2-Chinese": (GPT2_CHINESE, (2, {"start_token_ids": [4], "line_token_id": 3})),
    "by numbers": (
        {"start_piece": "4", "end_piece": "2", "line_piece": "3"},
        (2, {"start_token_ids": [4], "line_token_id": 3}),
    ),
    "several in front": (
        {"start_piece": "[CLS],[MASK],5"},
        (3, {"start_token_ids": [2, 4, 5], "eos_token_id": [3, 2]}),
    ),
    "a comma in front": ({"start_piece": ","}, (3, {"start_token_ids": [10], "eos_token_id": [3, 2]})),
    "a word": ({"start_piece": "hello,good"}, (3, {"start_token_ids": [5, 7], "eos_token_id": [3, 2]})),
    "no start": ({"start_piece": "none"}, (3, {"start_token_ids": [], "eos_token_id": [3, 2]})),
    "no end": ({"end_piece": "none"}, (None, {})),
    "lines without an end": ({"line_piece": "[SEP]", "end_piece": "none"}, (None, {"line_token_id": 3})),
    "beyond the tokenizer": ({"end_piece": "79"}, (79, {})),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_piece_or_number_is_its_token(name: str, bert: Tokenizer) -> None:
    options, (end, defaults) = FOUND[name]
    found = with_pieces(TOKENS, options, bert, CONFIG.vocab_size)
    assert (found.eos_token_id, found.pad_token_id) == (end, 0)
    assert found.defaults == {"top_k": 8, **defaults}
    start = defaults.get("start_token_ids")
    assert found.bos_token_id == (start[0] if start else None)


@pytest.mark.parametrize(
    ("kind", "piece", "token"),
    [
        ("bpe", "<|endoftext|>", 261),
        ("bpe", "hello", 259),
        ("cpm", "<eod>", 7),
        ("cpm", "\u2583", 3),
        ("cpm", "<s>", 1),
        ("library", "hello", 6),
        ("library", "<line>", 8),
    ],
)
def test_pieces_of_every_kind_of_vocabulary(
    kind: str, piece: str, token: int, tokenizers: dict[str, Tokenizer]
) -> None:
    found = with_pieces(SpecialTokens(None, 0), {"line_piece": piece}, tokenizers[kind], 30000)
    assert found.defaults == {"line_token_id": token}


REFUSED: dict[str, tuple[dict[str, Any], bool, str]] = {
    "no such piece": (
        {"start_piece": "[BOS]"},
        True,
        "--start-piece '.BOS.': the vocabulary does not have '.BOS.'",
    ),
    "no such piece among several": (
        {"start_piece": "[CLS],x!"},
        True,
        "does not have 'x!': expected one of its",
    ),
    "several ends": ({"end_piece": "[CLS],[SEP]"}, True, "--end-piece .*does not have"),
    "no tokenizer": ({"line_piece": "[SEP]"}, False, "--line-piece '.SEP.': there is no tokenizer"),
    "an id outside": (
        {"end_piece": "80"},
        False,
        r"--end-piece '80': .*80 is outside the vocabulary \(0 to 79\)",
    ),
    "an id below": ({"start_piece": "3,-1"}, False, "token id -1 is outside the vocabulary"),
    "a huge id": ({"line_piece": "9" * 5000}, False, "outside the vocabulary"),
    "an empty name": ({"end_piece": ""}, True, "--end-piece '': the vocabulary does not have ''"),
    "a number from Python": ({"end_piece": 3}, True, "--end-piece 3: expected text"),
    "lines that end the text": (
        {"line_piece": "[SEP]"},
        True,
        "--line-piece is token 3, which ends a text too: give",
    ),
    "one of several ends": ({"line_piece": "2"}, False, "--line-piece is token 2, which ends a text too"),
    "both the same": ({"line_piece": "5", "end_piece": "5"}, True, "--line-piece is token 5, which ends a text too"),
    "a long name": ({"start_piece": "一" * 999}, True, "--start-piece '一"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_piece_that_cannot_be_is_one_line_and_nothing_is_written(name: str, folder: Path, tmp_path: Path) -> None:
    options, has_tokenizer, words = REFUSED[name]
    model = InMemory(CONFIG)
    model.tokens = TOKENS  # type: ignore[assignment]
    tokenizer = folder if has_tokenizer else None
    given = TOKENS if not has_tokenizer else dataclasses.replace(TOKENS, eos_token_id=3)
    with pytest.raises(ConvertError, match=words) as error:
        with_pieces(given, options, load_tokenizer(folder) if has_tokenizer else None, CONFIG.vocab_size)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    for write in (
        lambda: to_savedmodel(model, tmp_path / "out", tokenizer=tokenizer, options=options),
        lambda: to_checkpoint(model, tmp_path / "out", format="huggingface", tokenizer=tokenizer, options=options),
    ):
        with pytest.raises(ConvertError, match=words):
            write()
    assert not (tmp_path / "out").exists()


def test_a_hugging_face_folder_keeps_them_and_hands_them_on(folder: Path, tmp_path: Path) -> None:
    words = ["--start-piece", "[MASK]", "--end-piece", "[CLS]", "--line-piece", "[SEP]", "--quiet"]
    to_checkpoint(InMemory(CONFIG), tmp_path / "plain", format="huggingface", tokenizer=folder)
    arguments = ["--checkpoint", str(tmp_path / "plain"), "--output", str(tmp_path / "theirs")]
    assert main(["to-huggingface", *arguments, *words]) == 0
    values = json.loads((tmp_path / "theirs" / "generation_config.json").read_text())
    expected = {"bos_token_id": 4, "eos_token_id": 2, "pad_token_id": 0, "start_token_ids": [4], "line_token_id": 3}
    assert values == expected
    known = transformers.GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert (known.bos_token_id, known.eos_token_id) == (4, 2)
    transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    to_checkpoint(checkpoint, tmp_path / "again", format="huggingface")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == expected
    to_checkpoint(checkpoint, tmp_path / "same", format="huggingface", tokenizer=folder)  # the same vocabulary
    assert json.loads((tmp_path / "same" / "generation_config.json").read_text()) == expected
    pieces = (folder / "vocab.txt").read_text("utf-8").splitlines()
    (tmp_path / "another.txt").write_text("\n".join([*pieces[:-2], pieces[-1], pieces[-2]]), "utf-8")
    another = tmp_path / "another.txt"
    to_checkpoint(checkpoint, tmp_path / "other", format="huggingface", tokenizer=another)
    assert "line_token_id" not in json.loads((tmp_path / "other" / "generation_config.json").read_text())


@pytest.mark.parametrize("defaults", [{}, {"top_k": 5}], ids=["ours", "its own"])
@pytest.mark.parametrize("pieces", [{}, {"line_token_id": 3}, {"start_token_ids": [], "special_pieces": True}])
def test_a_savedmodel_keeps_them_beside_the_defaults(
    defaults: dict[str, Any], pieces: dict[str, Any], bert: Tokenizer, tmp_path: Path
) -> None:
    tokens = SpecialTokens(2, 0, 2, {**defaults, **pieces})
    write_assets(tmp_path / "assets", CONFIG, "float32", tokens, bert)
    values = json.loads((tmp_path / "assets" / "generation_config.json").read_text())
    ids = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    assert values == {**ids, **(defaults or GENERATION_DEFAULTS), **pieces}
    assert _tokens(tmp_path / "assets", {}, CONFIG.vocab_size) == (tokens, ())


def test_a_savedmodel_of_gpt2_chinese_begins_and_ends_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    """Greedy text, from a prompt of two lines, as transformers continues the ids of [MASK] line [SEP] line."""
    model = InMemory(CONFIG)
    to_savedmodel(model, tmp_path / "tf", tokenizer=folder, options=GPT2_CHINESE)
    card = (tmp_path / "tf" / "assets.extra" / "README.md").read_text()
    assert "Texts end at token 2 unless" in card
    assert "A text begins with the tokens [4], which are part of `input_ids`. A line ends with token 3." in card
    generator = inference.load(tmp_path / "tf")
    theirs = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    ids = theirs("[MASK]一曲[SEP]hello world", add_special_tokens=False).input_ids
    oracle = model_of(model)
    expected: list[int] = []
    while len(expected) < 9 and 2 not in expected:
        with torch.inference_mode():
            logits = oracle(torch.tensor([[*ids, *expected]])).logits[0, -1, : generator.config.vocab_size]
        expected.append(int(logits.argmax()))
    (result,) = generator.generate("一曲\nhello world", temperature=0, max_new_tokens=9)
    assert list(result.tokens) == expected
    (score,) = generator.score("一曲\nhello world")
    assert score.tokens == tuple(ids[1:])
    with torch.inference_mode():
        logits = oracle(torch.tensor([ids])).logits[0, :, : generator.config.vocab_size]
    known = torch.log_softmax(logits.double(), -1).numpy()
    np.testing.assert_allclose(score.logprobs, [known[i, token] for i, token in enumerate(ids[1:])], atol=1e-3)
    requests = RequestReader.read(SavedModelFolder(tmp_path / "tf"))
    assert requests.encode("一曲\nhello world", requests.resolve()).ids == tuple(ids)
