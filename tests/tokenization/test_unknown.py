"""What of a text a vocabulary does not have."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import ROOT
from tests.helpers.small_vocabularies import write_tokenizer
from tokenization import BertTokenizer, ByteBPETokenizer, CPMTokenizer


def test_unknown_characters_are_named_once_in_their_order() -> None:
    tokenizer = CPMTokenizer(ROOT / "demo" / "song-ci" / "tokenizer")
    assert tokenizer.unknown_parts("春x 风☃，春\n☃☂x") == ["x", "☃", "☂"]
    assert tokenizer.unknown_parts("浣溪沙，\n") == []
    assert tokenizer.unknown_parts("") == []


def test_a_character_known_at_the_beginning_of_a_word_only_is_named_elsewhere() -> None:
    tokenizer = CPMTokenizer(ROOT / "demo" / "song-ci" / "tokenizer")
    texts = [json.loads(line) for line in (ROOT / "demo" / "held-out.jsonl").read_text("utf-8").splitlines()]
    assert any(tokenizer.unknown_parts(text) for text in texts)
    for text in texts:
        assert bool(tokenizer.unknown_parts(text)) == (tokenizer.unknown_token_id in tokenizer.encode(text))


def test_words_that_become_unk_are_named(tmp_path: Path) -> None:
    tokenizer = BertTokenizer(write_tokenizer("bert", tmp_path / "bert"))
    assert tokenizer.unknown_parts("今☃天 Hello wörld 7x,秋秋") == ["☃", "7x", "秋"]
    assert tokenizer.unknown_parts("今天 Hello") == []


def test_a_vocabulary_of_bytes_knows_everything(tmp_path: Path) -> None:
    assert ByteBPETokenizer(write_tokenizer("bpe", tmp_path / "bpe")).unknown_parts("☃ё") == []
