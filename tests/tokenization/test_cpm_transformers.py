"""CPM's vocabulary as transformers' ``CpmTokenizer`` reads it, against that class."""

from __future__ import annotations

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.formats.tokenizer_files import save_for_huggingface
from tests.conftest import shared
from tests.tokenization.test_cpm import older_variant
from tokenization import CPMTokenizer, CpmTransformersTokenizer, TokenizerError, decode_stream, load_tokenizer

TEXTS = [
    "今天天气不错",
    "默写英文：\n狗dog\n猫cat\n鸟",
    "  a  b \t c\u3000d ",
    "1,234, 5 和 2021,12,",
    "``好'' é ① １２Ａ Ｈello",
    "☃ 𠮷",
    "标题 正文",
    "",
]
PROMPTS = ["标题<sep>正文", "<s>今天</s>", "今天 <mask> 天气", "今天<eod>", "<pad><unk>今天", "1,<sep>2,", "<sep>"]


@pytest.fixture(params=["demo", "newer", "older"])
def folder(request: pytest.FixtureRequest, demo: Path, tmp_path: Path) -> Path:
    """A folder of the hub: the model under its other name, and the class in tokenizer_config.json."""
    source = next((demo / "tokenizer").glob("*.model"))
    if request.param != "demo":
        source = shared("vocab/cpm/chinese_vocab.model")
    own = tmp_path / "hub"
    own.mkdir()
    if request.param != "older":
        (own / "spiece.model").write_bytes(source.read_bytes())
    else:
        older_variant(source, own / "spiece.model")
    (own / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CpmTokenizer"}))
    return own


@pytest.fixture
def class_of_transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``CpmTokenizer``; rjieba, which it imports and does not call, need not be there."""
    stub = types.ModuleType("rjieba")
    stub.__spec__ = ModuleSpec("rjieba", None)
    monkeypatch.setitem(sys.modules, "rjieba", stub)
    from transformers import CpmTokenizer

    return CpmTokenizer


@pytest.fixture
def theirs(folder: Path, class_of_transformers: Any) -> Any:
    return class_of_transformers(str(folder / "spiece.model"))


def test_ids_are_those_of_the_class(folder: Path, theirs: Any) -> None:
    ours = load_tokenizer(folder)
    assert type(ours) is CpmTransformersTokenizer
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids) == theirs.decode(ids).replace("<unk>", "\u2047"), text
    for prompt in PROMPTS:
        ids = ours.encode_prompt(prompt)
        assert ids == theirs.encode(prompt, add_special_tokens=False), prompt
        assert "".join(decode_stream(ours, ids)) == ours.decode(ids)
    assert ours.encode("今天\n天气 不错") != CPMTokenizer(folder / "spiece.model").encode("今天\n天气 不错")


def test_ids_of_any_text_are_those_of_the_class(folder: Path, theirs: Any) -> None:
    ours = load_tokenizer(folder)

    @given(st.text(alphabet=[*"今天气不错，,。1234567890 \n\tabé①`'☃（）", "\u3000", "\u0301"], max_size=30))
    def check(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)

    check()


def test_text_never_becomes_a_special_id(folder: Path) -> None:
    ours = load_tokenizer(folder)
    for text in ("<eod>", "今<sep>天<eod>", "<s></s><mask><pad>"):
        assert not {1, 2, 4, 5, 6, 7} & set(ours.encode(text))
        assert ours.encode_prompt(text, special_pieces=False) == ours.encode(text)
    assert ours.encode("今天", append_eod=True)[-1] == ours.eos_token_id == 7
    assert ours.decode([*ours.encode("今天"), 7, 5, 5]) == "今天<eod>"
    with pytest.raises(TokenizerError, match="no tokens"):
        ours.encode_prompt(" ")


def test_both_ways_of_reading_have_a_name_and_a_note(folder: Path) -> None:
    (note,) = load_tokenizer(folder).notes
    assert "as tokenizer_config.json says; --tokenizer-kind cpm reads it" in note
    assert type(load_tokenizer(folder, "cpm")) is CPMTokenizer
    assert type(load_tokenizer(folder, "cpm-transformers")) is CpmTransformersTokenizer
    assert (
        load_tokenizer(folder, "cpm").notes == load_tokenizer(folder / "spiece.model", "cpm-transformers").notes == ()
    )
    (folder / "tokenizer_config.json").unlink()
    own = load_tokenizer(folder)
    assert type(own) is CPMTokenizer
    assert "--tokenizer-kind cpm-transformers reads it" in own.notes[0]
    with pytest.raises(TokenizerError, match="'jieba': expected cpm or cpm-transformers"):
        load_tokenizer(folder, "jieba")
    (folder / "spiece.model").unlink()
    with pytest.raises(TokenizerError, match="expected one SentencePiece model of CPM"):
        load_tokenizer(folder, "cpm")


@pytest.mark.parametrize("kind", ["cpm", "cpm-transformers"])
def test_a_copy_is_read_as_its_original(kind: str, folder: Path, tmp_path: Path) -> None:
    """As in the assets of a SavedModel, and in a folder for transformers."""
    ours = load_tokenizer(folder, kind)
    (copy := tmp_path / "assets").mkdir()
    (hub := tmp_path / "other hub").mkdir()
    ours.save(copy)
    save_for_huggingface(ours, hub)
    for place in (copy, hub):
        again = load_tokenizer(place)
        assert type(again) is type(ours)
        assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert json.loads((hub / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "CpmTokenizer" if kind == "cpm-transformers" else "PreTrainedTokenizerFast"
    )


def test_pieces_that_the_class_adds_are_there_where_the_model_has_rows_for_them(folder: Path, theirs: Any) -> None:
    path = folder / "spiece.model"
    size = load_tokenizer(path, "cpm").vocab_size
    for rows in (size, size + 1, size + 2, size + 720):
        ours = CpmTransformersTokenizer(path, vocab_size=rows)
        assert ours.vocab_size == min(rows, len(theirs))
        for piece in ("<cls>", "<eop>"):
            index = theirs.convert_tokens_to_ids(piece)
            assert ours.special_pieces.get(piece) == (index if index < rows else None)


def test_a_comma_after_a_digit_is_a_piece_of_its_own(tmp_path: Path, class_of_transformers: Any) -> None:
    """CPM's list has no piece with both; somebody's own may have."""
    import sentencepiece

    (tmp_path / "corpus").write_text("\n".join("12,345, 天气不错 12 , ab" + "今天"[n % 2] for n in range(200)), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus"), model_prefix=str(tmp_path / "spiece"), vocab_size=60, minloglevel=2,
        hard_vocab_limit=False, user_defined_symbols=["\u2582", "\u2583", "<eod>", "12,", "\u25815,"],
        control_symbols=["<sep>", "<pad>", "<mask>"],
    )  # fmt: skip
    ours = load_tokenizer(tmp_path / "spiece.model", "cpm-transformers")
    theirs = class_of_transformers(str(tmp_path / "spiece.model"))
    for text in ("12,", "天12,气", "a 12, 5, 12,12", "5,", "12,345,"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert ours.encode("天12,")[-1] != ours.pieces.index("12,")


def test_an_end_that_is_typed_in_a_text_stays_its_letters(cpm_vocabulary: Path) -> None:
    ours = CpmTransformersTokenizer(cpm_vocabulary / "chinese_vocab.model")
    ids = ours.encode("今天<eod>")
    assert ours.unknown_token_id not in ids
    assert ours.decode(ids) == "今天<eod>"


ADDED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a piece": ({}, {"<题>": False}),
    "a special piece": ({}, {"<题>": True}),
    "two, and an end": ({"eos_token": "<完>"}, {"<题>": False, "<完>": True}),
    "an end that the class has": ({"eos_token": "<eop>"}, {}),
    "padding": ({"pad_token": "<空>"}, {"<空>": True}),
}


@pytest.mark.parametrize("case", ADDED)
def test_added_pieces_and_a_declared_end_are_used_as_in_the_class(
    case: str, folder: Path, theirs: Any, class_of_transformers: Any, tmp_path: Path
) -> None:
    parts, added = ADDED[case]
    first = len(theirs)
    config = {"tokenizer_class": "CpmTokenizer", **parts, "added_tokens_decoder": {
        **{str(i): {"content": t.content, "special": True} for i, t in theirs.added_tokens_decoder.items()},
        **{str(first + n): {"content": piece, "special": added[piece]} for n, piece in enumerate(added)},
    }}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(folder, vocab_size=first + 9)
    assert ours.vocab_size == first + len(added)
    for n, piece in enumerate(added):
        assert ours.encode_prompt(f"今天{piece}天气") == [*ours.encode("今天"), first + n, *ours.encode("天气")]
        assert ((first + n) in ours.encode(f"今{piece}")) is (not added[piece])
        assert ours.decode([first + n]) == piece
    if "pad_token" in parts:
        assert ours.pad_token_id == first
    if "eos_token" in parts:
        assert ours.eos_token_id == ours.special_pieces[parts["eos_token"]]
    (hub := tmp_path / "copy").mkdir()
    save_for_huggingface(ours, hub)
    again = load_tokenizer(hub, vocab_size=first + 9)
    assert (again.vocab_size, again.eos_token_id) == (ours.vocab_size, ours.eos_token_id)


def test_the_end_that_the_class_always_names_is_not_taken_and_a_note_says_so(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CpmTokenizer", "eos_token": "</s>"}')
    ours = load_tokenizer(folder)
    assert ours.eos_token_id == 7
    assert "<eod> is taken; --end-piece '</s>' takes the other" in ours.notes[-1]


def test_an_added_piece_with_the_id_of_another_is_refused(folder: Path) -> None:
    for values in ({"<题>": 3}, {"<题>": 900000}, {"<eod>": 31000}):
        (folder / "added_tokens.json").write_text(json.dumps(values))
        with pytest.raises(TokenizerError, match="belongs to another vocabulary"):
            load_tokenizer(folder)
