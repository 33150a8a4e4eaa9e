"""BERT's WordPiece against transformers' two implementations of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import shared
from tests.helpers.tokenizer_texts import SPECIAL, varied_texts
from tokenization import BertTokenizer, TokenizerError

SMALL = ["[PAD]", "[UNK]", "[SEP]", "[CLS]", "天", "气", "good", "day", "##s", ",", "[", "]", "sep"]


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    return shared("vocab/bert-zh/google_zh_vocab.txt")


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> BertTokenizer:
    return BertTokenizer(vocabulary)


@pytest.fixture(scope="module")
def transformers_encode(vocabulary: Path) -> Callable[[str], list[int]]:
    """``BertTokenizer`` of transformers (before transformers 5 only the fast one), told to leave typed pieces alone."""
    from transformers import BertTokenizerFast as Original

    original = Original(str(vocabulary))
    return lambda text: original.encode(text, add_special_tokens=False, split_special_tokens=True)


@pytest.fixture(scope="module")
def original_encode(vocabulary: Path) -> Callable[[str], list[int]]:
    """Google's code as transformers has it, in Python: it shares nothing with ours."""
    try:
        from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy as Original
    except ImportError:  # before transformers 5
        from transformers import BertTokenizer as Original

    original = Original(str(vocabulary))
    return lambda text: original.encode(text, add_special_tokens=False)


@pytest.fixture
def small(tmp_path: Path) -> BertTokenizer:
    return BertTokenizer(write(tmp_path / "vocab.txt", SMALL))


def write(path: Path, pieces: list[str]) -> Path:
    path.write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    return path


def test_agrees_with_transformers(
    tokenizer: BertTokenizer,
    transformers_encode: Callable[[str], list[int]],
    original_encode: Callable[[str], list[int]],
) -> None:
    texts = varied_texts()
    assert len(set(texts)) >= 2000
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == transformers_encode(text), text
        assert ids == original_encode(text), text


@given(st.text(max_size=40))
@example("ΑΣ 𫠠𫠡 \ud7a3\u0300")
def test_agrees_with_transformers_on_any_characters(
    tokenizer: BertTokenizer, transformers_encode: Callable[[str], list[int]], text: str
) -> None:
    assert tokenizer.encode(text) == transformers_encode(text)


def test_every_character_is_encoded_as_transformers_does(
    tokenizer: BertTokenizer, transformers_encode: Callable[[str], list[int]]
) -> None:
    for start in range(0x20, 0x30000, 16):
        if not 0xD800 <= start < 0xE000:
            text = "".join(f"a{chr(i)}b {chr(i)}" for i in range(start, start + 16))
            assert tokenizer.encode(text) == transformers_encode(text), hex(start)


def test_known_differences_from_the_python_code(
    tokenizer: BertTokenizer, original_encode: Callable[[str], list[int]], vocabulary: Path
) -> None:
    pieces = vocabulary.read_text("utf-8").split("\n")
    assert [pieces[i] for i in tokenizer.encode("ΑΣ")] == ["α", "##σ"] != ["α", "##ς"]
    assert "ΑΣ".lower() == "ας"  # which is what UER's code cuts into pieces
    assert [pieces[i] for i in tokenizer.encode("a\U0002b820a")] == ["[UNK]"]
    assert [pieces[i] for i in original_encode("a\U0002b820a")] == ["a", "[UNK]", "a"]


def test_ids_are_looked_up(tokenizer: BertTokenizer, small: BertTokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.pad_token_id, tokenizer.eos_token_id) == (21128, 0, 102)
    assert tokenizer.start_token_ids == (101,)
    assert (small.vocab_size, small.pad_token_id, small.eos_token_id, small.start_token_ids) == (13, 0, 2, (3,))
    assert small.encode("天气 Good days？", append_eod=True) == [4, 5, 6, 7, 8, 1, 2]
    assert small.encode_prompt("天") == [3, 4]
    assert small.encode_prompt("") == [3]


@given(
    st.lists(st.sampled_from([*SPECIAL, "[", "SEP", "]", "[sep]", "[ SEP ]", "##", " ", "天", "word"])).map("".join)
    | st.text(max_size=20)
)
def test_text_never_becomes_a_special_id(tokenizer: BertTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not {0, 101, 102, 103} & set(ids)
    assert tokenizer.encode_prompt(text, special_pieces=False) == [101, *ids]
    assert tokenizer.encode(text, append_eod=True) == [*ids, 102]


def test_typed_special_pieces_are_what_transformers_makes_of_them_when_told_to(
    tokenizer: BertTokenizer,
    transformers_encode: Callable[[str], list[int]],
    original_encode: Callable[[str], list[int]],
    small: BertTokenizer,
) -> None:
    for special in SPECIAL:
        text = f"天{special} a{special}b"
        assert tokenizer.encode(text) == transformers_encode(text)
    assert 102 in original_encode("[SEP]")
    assert small.encode("[SEP]") == [10, 12, 11]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("今天 天气\n不错。", "今天天气不错。"),
        ("Hello World", "hello world"),
        ("我 爱 Python 3 和 GPT-2", "我爱python 3和gpt-2"),
        ("unaffable words", "unaffable words"),
        ("3.14, 100,000 km", "3.14,100,000 km"),
        ("2021年11月", "2021年11月"),
        ("25 ℃，25℃", "25 ℃，25℃"),
        ("Привет мир", "привет мир"),
        ("ありかとう あり", "ありかとう あり"),
        ("ÀÉ", "ae"),
        ("“好”", "[UNK]好[UNK]"),
        ("a 𠀀 b", "a[UNK]b"),
        ("", ""),
    ],
)
def test_text_is_joined_without_spaces_between_chinese(tokenizer: BertTokenizer, text: str, result: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == result


def test_special_pieces_are_shown_or_dropped(small: BertTokenizer) -> None:
    assert small.decode([3, 4, 5, 2, 0, 0]) == "天气[SEP]"
    assert small.decode([6, 0, 3, 7, 8]) == "good days"
    assert small.decode([8, 8, 6, 1, 6]) == "ss good[UNK]good"
    assert small.decode(np.array([4, 7], np.int64)) == "天day"


def test_decoded_text_is_the_same_ids_again(tokenizer: BertTokenizer, vocabulary: Path) -> None:
    """Spaces are where they have to be; and pieces are complete and in order, by transformers' own joining."""
    pieces = vocabulary.read_text("utf-8").split("\n")
    checked = 0
    for text in varied_texts():
        ids = tokenizer.encode(text)
        decoded = tokenizer.decode(ids)
        assert decoded.replace(" ", "") == " ".join(pieces[i] for i in ids).replace(" ##", "").replace(" ", ""), text
        if 100 not in ids and "##" not in text:
            assert tokenizer.encode(decoded) == ids, text
            checked += 1
    assert checked > 1000


def test_a_tokenizer_config_sets_case_and_accents(tmp_path: Path) -> None:
    file = write(tmp_path / "vocab.txt", [*SMALL, "Good", "é", "天气"])
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"do_lower_case": false, "strip_accents": null, "model_max_length": 1024}')
    tokenizer = BertTokenizer(tmp_path)
    assert tokenizer.encode("Good é天气") == [13, 14, 4, 5]
    (tmp_path / "saved").mkdir()
    assert [copy.name for copy in tokenizer.save(tmp_path / "saved")] == ["vocab.txt", "tokenizer_config.json"]
    assert BertTokenizer(tmp_path / "saved").encode("Good") == [13]
    config.write_text('{"strip_accents": false, "tokenize_chinese_chars": false}')
    assert BertTokenizer(file).encode("Good é天气 é 天气") == [6, 1, 14, 15]
    for content, message in (
        ("[1]", "not a JSON object"),
        ("{", "not a JSON object"),
        ('{"do_lower_case": "no"}', "do_lower_case: expected true or false, found 'no'"),
        ('{"do_lower_case": null}', "do_lower_case: expected true or false, found 'None'"),
    ):
        config.write_text(content)
        with pytest.raises(TokenizerError, match=message):
            BertTokenizer(tmp_path)


def test_saved_files_are_the_originals(tokenizer: BertTokenizer, vocabulary: Path, tmp_path: Path) -> None:
    (saved,) = tokenizer.save(tmp_path)
    assert saved.name == "google_zh_vocab.txt"
    assert saved.read_bytes() == vocabulary.read_bytes()
    text = "今天 Hello"
    assert BertTokenizer(tmp_path).encode(text) == BertTokenizer(saved).encode(text) == tokenizer.encode(text)


def test_only_line_feeds_end_a_piece(tmp_path: Path) -> None:
    """Those of Windows, none at the end of the file, and U+2028, which is a piece of Google's vocabulary."""
    pieces = [*SMALL[:4], "\u2028", "天"]
    (tmp_path / "a.txt").write_bytes("\r\n".join(pieces).encode())
    assert BertTokenizer(tmp_path).encode("天") == [5]
    assert BertTokenizer(tmp_path).vocab_size == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n\xff\n", "not UTF-8: byte 12 is 0xff"),
        (b"[PAD]\n[CLS]\n[SEP]\n", r"none of its 3 pieces is \[UNK\] or <unk>"),
        (b"", r"none of its 0 pieces is \[UNK\]"),
        (b"\n\n\n", r"none of its 0 pieces is \[UNK\]"),
        ("\n".join(["[UNK]", *"天气", "天气", "今天", "不错"]).encode(), "3 of 6 pieces are Chinese words"),
    ],
)
def test_a_broken_vocabulary_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as error:
        BertTokenizer(tmp_path)
    assert "\n" not in str(error.value)
    assert "vocab.txt" in str(error.value)


def test_a_folder_that_is_no_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="found none"):
        BertTokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"absent\.txt: cannot be read: No such file"):
        BertTokenizer(tmp_path / "absent.txt")
    write(tmp_path / "a.txt", SMALL)
    write(tmp_path / "b.txt", SMALL)
    with pytest.raises(TokenizerError, match=r"found a\.txt, b\.txt"):
        BertTokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text(json.dumps(SMALL))
    with pytest.raises(TokenizerError, match="not a vocabulary of BERT"):
        BertTokenizer(tmp_path)


@pytest.mark.parametrize("ids", [[13], [-1]])
def test_ids_outside_the_vocabulary_are_refused(small: BertTokenizer, ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match=r"outside the vocabulary \(0 to 12\)"):
        small.decode(ids)


def test_half_a_surrogate_pair_is_refused(small: BertTokenizer) -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        small.encode("天\ud83d")
