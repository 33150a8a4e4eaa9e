"""Tokenizers of the ``tokenizers`` library: its ids, whatever kind the file is of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from tests.helpers.library_tokenizers import CHARACTERS, LIBRARY_TOKENIZERS
from tokenization import LibraryTokenizer, Tokenizer, TokenizerError, decode_stream, load_tokenizer

TEXTS = [
    "春花秋月何时了",
    "小楼昨夜又东风，hello world!",
    " 春花  秋月\n何时 123 ☃",
    "<s>春花</s>[SEP]<eos> x<|im_end|> <line>y",
    "abc ab cab hellos",
    "",
]
PARTS = {  # end of a text, padding, unknown, what begins a prompt
    "WordLevel of characters": ("[SEP]", "[PAD]", "[UNK]", ()),
    "WordLevel of words": ("<eos>", "<eos>", "<unk>", ()),
    "Unigram": ("</s>", "</s>", "<unk>", ()),
    "BPE with byte fallback": ("</s>", "</s>", "<unk>", ("<s>",)),
    "BPE of bytes, digits apart": ("<|endoftext|>", "<|endoftext|>", None, ()),
    "BPE with ends of words": (None, None, "<unk>", ()),
    "WordPiece of other marks": ("</s>", "<pad>", "<unk>", ("<s>",)),
}
kinds = pytest.mark.parametrize("kind", LIBRARY_TOKENIZERS)


def load(kind: str, folder: Path, name: str = "tokenizer.json") -> tuple[Tokenizer, Backend]:
    folder.mkdir(exist_ok=True)
    made = LIBRARY_TOKENIZERS[kind]()
    made.save(str(folder / name))
    return load_tokenizer(folder), made


def plain(backend: Backend, text: str) -> list[int]:
    backend.encode_special_tokens = True
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return ids


@kinds
def test_ids_are_those_of_the_library(kind: str, tmp_path: Path) -> None:
    ours, library = load(kind, tmp_path)
    assert type(ours) is LibraryTokenizer
    assert ours.vocab_size == library.get_vocab_size()
    for text in TEXTS:
        assert ours.encode(text) == plain(library, text)
        named = library.encode(text, add_special_tokens=False).ids
        if named or ours.eos_token_id is not None:
            front = list(ours.start_token_ids)
            assert ours.encode_prompt(text) in (named, [*front, *named], [ours.eos_token_id])
    for text in TEXTS[:-1]:
        ids = ours.encode(text)
        assert ours.decode(ids).replace(" ", "") == library.decode(ids, skip_special_tokens=False).replace(" ", "")


@kinds
def test_pieces_with_a_part_are_found(kind: str, tmp_path: Path) -> None:
    ours, library = load(kind, tmp_path)
    end, pad, unknown, start = (
        [library.token_to_id(piece) for piece in part]
        if isinstance(part, tuple)
        else part and library.token_to_id(part)
        for part in PARTS[kind]
    )
    assert (ours.eos_token_id, ours.unknown_token_id, list(ours.start_token_ids)) == (end, unknown, start)
    assert ours.pad_token_id == (pad or 0)
    text = ours.encode("春花")
    assert ours.encode_prompt("春花") == [*start, *text]
    if end is None:
        with pytest.raises(TokenizerError, match="has no end of a text"):
            ours.encode("春花", append_eod=True)
        with pytest.raises(TokenizerError, match="none to start from"):
            ours.encode_prompt("")
    else:
        assert ours.encode("春花", append_eod=True) == [*text, end]
        assert ours.decode([*start, *text, end]).endswith(str(PARTS[kind][0]))


@kinds
def test_random_ids_stream_as_they_decode(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    ours, library = load(kind, tmp_path_factory.mktemp("library"))

    @given(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    def check(ids: list[int]) -> None:
        assert "".join(decode_stream(ours, ids)) == ours.decode(ids)

    @given(st.text(alphabet=[*CHARACTERS, " ", "\n", "☃", "<", "s", ">", "𠮷"], max_size=20))
    def check_text(text: str) -> None:
        ids = ours.encode(text)
        assert ids == plain(library, text)
        assert "".join(decode_stream(ours, ids)) == ours.decode(ids)

    check()
    check_text()


@kinds
@pytest.mark.parametrize("name", ["tokenizer.json", "my_tokenizer.json", "vocab.json"])
def test_a_saved_tokenizer_loads_under_its_usual_name(kind: str, name: str, tmp_path: Path) -> None:
    ours, _ = load(kind, tmp_path / "own", name)
    assert load_tokenizer(tmp_path / "own" / name).encode(TEXTS[1]) == ours.encode(TEXTS[1])
    (tmp_path / "copy").mkdir()
    assert [file.name for file in ours.save(tmp_path / "copy")] == ["tokenizer.json"]
    again = load_tokenizer(tmp_path / "copy")
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert (again.eos_token_id, again.pad_token_id) == (ours.eos_token_id, ours.pad_token_id)


def test_chinese_is_joined_without_spaces_where_the_library_knows_no_words(tmp_path: Path) -> None:
    for kind, text, decoded in (
        ("WordLevel of characters", "春花秋月，小楼。", "春花秋月，小楼。"),
        ("WordLevel of words", "春花 秋月 何时 了", "春花秋月何时了"),
        ("WordLevel of words", "hello world 春花", "hello world春花"),
        ("WordPiece of other marks", "春花 hellos hello", "春花hellos hello"),
    ):
        ours, _ = load(kind, tmp_path / kind)
        assert ours.decode(ours.encode(text)) == decoded


def test_what_tokenizer_config_names_goes_before_the_usual_names(tmp_path: Path) -> None:
    load("BPE of bytes, digits apart", tmp_path)
    config: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "!", "bos_token": "<|endoftext|>"}
    for extra, start in ((config, False), ({**config, "add_bos_token": True}, True)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(extra))
        ours = load_tokenizer(tmp_path)
        end, begin = ours.special_pieces["<|im_end|>"], ours.special_pieces["<|endoftext|>"]
        assert ours.eos_token_id == end
        assert ours.pad_token_id == ours.encode("!")[0] or ours.decode([ours.pad_token_id]) == ""
        assert ours.start_token_ids == ((begin,) if start else ())


def test_merges_are_not_left_out_by_chance(tmp_path: Path) -> None:
    load("BPE of bytes, digits apart", tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    values["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    ours = load_tokenizer(tmp_path)
    assert {tuple(ours.encode("hello hello hello")) for _ in range(20)} == {tuple(ours.encode("hello hello hello"))}


def test_what_a_file_says_of_lengths_is_no_part_of_encoding(tmp_path: Path) -> None:
    made = LIBRARY_TOKENIZERS["WordLevel of characters"]()
    made.enable_truncation(3)
    made.enable_padding(length=8)
    made.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path).encode("春花秋月何时了")) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["model"].update(vocab={}), "a vocabulary without pieces"),
        (lambda v: v["model"].pop("vocab"), "not a file of the tokenizers library"),
        (lambda v: v.update(pre_tokenizer={"type": "Jieba"}), "not a file of the tokenizers library"),
        (lambda v: v.update(decoder=3), "not a file of the tokenizers library"),
        (lambda v: v.update(added_tokens=[{"id": 1}]), "not a file of the tokenizers library"),
    ],
)
def test_what_the_library_does_not_load_is_one_line(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    made = Backend(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    values = json.loads(made.to_str())
    change(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(TokenizerError, match=message) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def damaged_merges(values: dict[str, Any]) -> None:
    values["model"]["continuing_subword_prefix"] = "no piece begins with it"


def template_of_nothing(values: dict[str, Any]) -> None:
    values["post_processor"]["special_tokens"] = {}


def huge_id(values: dict[str, Any]) -> None:
    values["model"]["vocab"]["huge"] = 2**31


CONTRADICTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "merges that cannot be": ("BPE with byte fallback", damaged_merges, "not a file of the tokenizers library"),
    "a template of pieces that are not named": ("BPE with byte fallback", template_of_nothing, ""),
    "an id of two thousand million": ("WordLevel of characters", huge_id, "an id of 2147483648"),
    "an unknown piece that is none": ("WordLevel of words", lambda v: v["model"].update(unk_token="<x>"), ""),
    "an unknown id that is none": ("Unigram", lambda v: v["model"].update(unk_id=4000), "UnkIdNotIn"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_file_that_contradicts_itself_is_one_line_or_works(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rust panics for some of them, and would print its own traceback."""
    kind, change, message = CONTRADICTIONS[case]
    values = json.loads(LIBRARY_TOKENIZERS[kind]().to_str())
    change(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    if message:
        with pytest.raises(TokenizerError, match=message) as error:
            load_tokenizer(tmp_path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300 + len(str(tmp_path))
    else:
        assert load_tokenizer(tmp_path).encode("春花") is not None
    assert capfd.readouterr() == ("", "")
