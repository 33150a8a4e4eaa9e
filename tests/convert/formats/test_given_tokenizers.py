"""Tokenizers that are named outright, and what of a checkpoint's files stays true with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from convert import open_checkpoint, to_checkpoint
from convert.formats.tokenizer_files import notes_for_huggingface, tokenizer_for, tokens_for
from tests.helpers.huggingface import random_model
from tests.helpers.transformers_tokenizers import WORDS, bert
from tokenization import load_tokenizer

PIECES = {"eos_token_id": 4, "start_token_ids": [2, 6], "line_token_id": 9}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    random_model(vocab_size=len(WORDS), n_positions=8, n_embd=8, n_layer=1, n_head=2).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps(PIECES))
    return folder


def copied(folder: Path) -> Path:
    return Path(shutil.copy(folder / "vocab.txt", folder.parent / "copy.txt"))


def as_json(folder: Path) -> Path:
    bert(folder.parent / "theirs").save_pretrained(folder.parent / "saved")
    return folder.parent / "saved"


GIVEN = {
    "its folder": lambda folder: folder,
    "its file": lambda folder: folder / "vocab.txt",
    "its folder by another way": lambda folder: folder.parent / "own" / ".." / "own",
    "a copy": copied,
    "the same in another form": as_json,
}


@pytest.mark.parametrize("case", GIVEN)
def test_a_given_tokenizer_that_is_the_own_one_keeps_the_pieces_of_the_checkpoint(case: str, folder: Path) -> None:
    given, checkpoint = GIVEN[case](folder), open_checkpoint(folder)
    tokenizer, _ = tokenizer_for(given, checkpoint)
    tokens = tokens_for(given, tokenizer, checkpoint)
    assert {"eos_token_id": tokens.eos_token_id, **tokens.defaults} == PIECES
    assert tokens == tokens_for(None, tokenizer_for(None, checkpoint)[0], checkpoint)


def test_another_vocabulary_has_other_pieces(folder: Path) -> None:
    given = folder.parent / "other.txt"
    given.write_text("\n".join([*WORDS[:9], "地", *WORDS[10:]]), "utf-8")
    checkpoint = open_checkpoint(folder)
    tokens = tokens_for(given, tokenizer_for(given, checkpoint)[0], checkpoint)
    assert (tokens.eos_token_id, dict(tokens.defaults)) == (3, {})


def test_the_separator_stays_special_where_another_piece_ends_texts(folder: Path) -> None:
    from transformers import AutoTokenizer

    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "[MASK]", "tokenizer_class": "BertTokenizer"})
    )
    to_checkpoint(folder, folder.parent / "out", format="huggingface")
    theirs = AutoTokenizer.from_pretrained(folder.parent / "out")
    assert (theirs.sep_token, theirs.eos_token, theirs.cls_token) == ("[SEP]", "[MASK]", "[CLS]")
    assert theirs.encode("今[SEP]天", add_special_tokens=False) == [9, 3, 10]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"treat_whitespace_as_suffix": True}, "white space behind words"),
        ({"user_defined_symbols": ["\n"]}, "a piece of white space"),
        ({"user_defined_symbols": ["<line>"]}, None),
        ({}, None),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "white space behind words"),
    ],
)
def test_a_sentencepiece_model_that_transformers_reads_otherwise_has_a_note(
    options: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    import sentencepiece

    (tmp_path / "corpus").write_text("\n".join("庭院 深深 几许 rain" + "烟柳"[n % 2] for n in range(100)), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus"), model_prefix=str(tmp_path / "own"), vocab_size=30, minloglevel=2,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    notes = notes_for_huggingface(load_tokenizer(tmp_path / "own.model"))
    assert [words in note for note in notes if words] == [True] * bool(words)
    assert bool(notes) is bool(words)
