"""CPM's tokenizer: the ids and texts that CPM's own code gave (written down from running it)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from tests.conftest import ROOT
from tokenization import CPMTokenizer, TokenizerError

# Text -> ids, as printed by CPM-1-Generate's tokenizer with jieba 0.42.1 and sentencepiece 0.2.3.
KNOWN = {
    "今天天气不错": [837, 259, 497, 788],
    "Hello World": [25624, 8, 10, 15157],
    "a  b": [1147, 8, 10, 8, 10, 1955],
    "\n": [8, 3],
    "\n\n": [8, 3, 8, 3],
    "a\nb": [1147, 8, 3, 1955],
    "\r\n": [8, 3],
    "你好<eod>": [6756, 8, 2100, 8, 993, 9347, 8, 989],
    "👍": [8, 0],
    "": [],
    "杭研大厦": [14494, 3686, 6619],  # in no dictionary: jieba's hidden Markov model finds the word 杭研
}
VANISHING = ["\t", "\u3000", "\u00a0", "\u200b", "\ufeff", "\u2028"]
NORMALISED = {
    "，": ",",
    "？": "?",
    "１２Ａ": "12A",
    "……": "......",
    "①": "1",
    "㎡": "m2",
    "。“”《》、—·": "。“”《》、—·",
}


@pytest.fixture(scope="module")
def tokenizer(cpm_vocabulary: Path) -> CPMTokenizer:
    return CPMTokenizer(cpm_vocabulary)


def older_variant(source: Path, target: Path) -> Path:
    """The older of CPM's two .model files, made from the newer one: pieces 3 and 7 are control symbols there."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(source.read_bytes())
    for index, piece in ((3, "<cls>"), (7, "<eod>")):
        proto.pieces[index].piece = piece
        proto.pieces[index].score = 0.0
        proto.pieces[index].type = sentencepiece_model_pb2.ModelProto.SentencePiece.CONTROL
    target.write_bytes(proto.SerializeToString())
    return target


@pytest.mark.parametrize(("text", "ids"), KNOWN.items(), ids=map(repr, KNOWN))
def test_published_ids_are_found(tokenizer: CPMTokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids


@pytest.mark.parametrize(
    "text", ["今天天气不错", "Hello World", "a  b", "一行\n两行\n\n", "默写英文：\n狗dog\n猫cat\n鸟"]
)
def test_plain_text_comes_back(tokenizer: CPMTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("：", ":")


@pytest.mark.parametrize("text", VANISHING, ids=map(repr, VANISHING))
def test_white_space_but_spaces_and_line_feeds_vanishes(tokenizer: CPMTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(f"好{text}的")) == "好的"


@pytest.mark.parametrize(("text", "result"), NORMALISED.items())
def test_full_width_characters_become_ascii(tokenizer: CPMTokenizer, text: str, result: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == result


def test_special_ids_are_those_of_cpm(tokenizer: CPMTokenizer) -> None:
    assert (tokenizer.eod_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.vocab_size) == (7, 7, 5, 30000)
    assert tokenizer.encode("天", append_eod=True)[-1] == 7
    assert tokenizer.decode([16, 7, 259]) == "我<eod>天"
    assert tokenizer.decode([1, 2, 4, 5, 6, 8]) == ""


def test_ids_may_be_numpy(tokenizer: CPMTokenizer) -> None:
    assert tokenizer.decode(np.array([837, 259], np.int64)) == "今天天"[:2] + tokenizer.decode([259])


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["<", "eod", ">", "<eod>", "＜ｅｏｄ＞", " ", "天", "\n"])).map("".join)
)
def test_text_never_becomes_the_end_of_a_document(tokenizer: CPMTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.eod_id not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_both_variants_of_the_model_file_give_the_same_ids(
    tokenizer: CPMTokenizer, cpm_vocabulary: Path, tmp_path: Path
) -> None:
    old = CPMTokenizer(older_variant(cpm_vocabulary / "chinese_vocab.model", tmp_path / "chinese_vocab.model"))
    for text in [*KNOWN, *VANISHING, "一行\n两行 有空格"]:
        assert old.encode(text) == tokenizer.encode(text)
        assert old.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_saved_files_are_the_originals(tokenizer: CPMTokenizer, cpm_vocabulary: Path, tmp_path: Path) -> None:
    saved = tokenizer.save(tmp_path)
    assert {file.name for file in saved} == {"chinese_vocab.model", "vocab.json"}
    for file in saved:
        assert file.read_bytes() == (cpm_vocabulary / file.name).read_bytes()
    assert CPMTokenizer(tmp_path).encode("今天天气不错") == [837, 259, 497, 788]


@pytest.mark.parametrize("ids", [[30000], [-1]])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: CPMTokenizer, ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match=r"outside the vocabulary \(0 to 29999\)"):
        tokenizer.decode(ids)


def test_half_a_surrogate_pair_is_refused(tokenizer: CPMTokenizer) -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        tokenizer.encode("天\ud83d")


def test_a_folder_that_is_no_tokenizer_is_one_line(cpm_vocabulary: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="found none"):
        CPMTokenizer(tmp_path)
    (tmp_path / "chinese_vocab.model").write_bytes(b"no model")
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        CPMTokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="No such file"):
        CPMTokenizer(tmp_path / "absent.model")
    (tmp_path / "chinese_vocab.model").write_bytes((cpm_vocabulary / "chinese_vocab.model").read_bytes())
    for content, words in (("[1]", "JSON object"), ("{", "JSON object"), (json.dumps({"a": 0}), "different vocab")):
        (tmp_path / "vocab.json").write_text(content)
        with pytest.raises(TokenizerError, match=words):
            CPMTokenizer(tmp_path)


def test_it_is_silent_and_needs_no_temporary_folder(cpm_vocabulary: Path, tmp_path: Path) -> None:
    """jieba would print, and fail where the temp folder cannot be written; its cache there must not be trusted."""
    code = (
        "from tokenization import CPMTokenizer\n"
        f"assert CPMTokenizer({str(cpm_vocabulary)!r}).encode('今天天气不错') == [837, 259, 497, 788]"
    )
    absent = str(tmp_path / "absent")
    environment = {**os.environ, "TMPDIR": absent, "TEMP": absent, "TMP": absent, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    poisoned = tmp_path / "temp"
    poisoned.mkdir()
    (poisoned / "jieba.cache").write_bytes(b"not marshal")
    result = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "TMPDIR": str(poisoned)}, capture_output=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert [file.name for file in poisoned.iterdir()] == ["jieba.cache"]


def test_words_added_to_jieba_elsewhere_do_not_change_the_ids(tokenizer: CPMTokenizer) -> None:
    import jieba

    before = tokenizer.encode("天气不错不错")
    jieba.add_word("气不错不", freq=10**9)
    assert tokenizer.encode("天气不错不错") == before
