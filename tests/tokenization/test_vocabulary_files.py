"""``vocab.txt`` and files of other names as people have them, against BertTokenizer of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.library_tokenizers import LIBRARY_TOKENIZERS
from tests.helpers.small_vocabularies import write_tokenizer
from tests.helpers.transformers_tokenizers import bert, bpe
from tokenization import (
    BertTokenizer,
    ByteBPETokenizer,
    LibraryTokenizer,
    Tokenizer,
    TokenizerError,
    decode_stream,
    load_tokenizer,
)

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"庭院深几许杨柳堆烟帘幕无重数", "rain", "##y", "##bow"]
TEXTS = ["庭院深深深几许", "杨柳堆烟，帘幕无重数。", "Rainy rainbow 庭 院", "[SEP]庭[MASK]", "雨横风狂", ""]


def changed(**lines: str) -> list[str]:
    """``PIECES`` with other lines: ``_9="x"`` is line 10."""
    pieces = [*PIECES]
    for place, line in lines.items():
        pieces[int(place[1:])] = line
    return pieces


LAYOUTS: dict[str, bytes] = {
    "as BERT has it": "\n".join([*PIECES, ""]).encode(),
    "no line feed at the end": "\n".join(PIECES).encode(),
    "lines of Windows": "\r\n".join([*PIECES, ""]).encode(),
    "a byte order mark": "\n".join([*PIECES, ""]).encode("utf-8-sig"),
    "blank lines inside": "\n".join([*changed(_6="", _7="", _12=""), ""]).encode(),
    "blank lines of Windows": "\r\n".join([*changed(_6="", _12=""), ""]).encode(),
    "blank lines at the end": "\n".join([*PIECES, "", "", "", ""]).encode(),
    "a repeated piece": "\n".join([*changed(_9="庭", _15="院"), ""]).encode(),
    "repeated and blank": "\n".join([*changed(_9="庭", _10="", _11=""), ""]).encode(),
    "white space behind pieces": "\n".join([*changed(_5="庭 ", _6="院\t"), ""]).encode(),
    "a piece that is white space": "\n".join([*changed(_9="\u3000", _10="\u2028"), ""]).encode(),
    "brackets of nobody": "\n".join([*changed(_9="[unused1]", _10="[", _11="]"), ""]).encode(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_are_lines_as_transformers_counts_them(layout: str, tmp_path: Path) -> None:
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_bytes(LAYOUTS[layout])
    ours = load_tokenizer(tmp_path)
    clean = LAYOUTS[layout].removeprefix(b"\xef\xbb\xbf")  # which transformers takes for a part of the first piece
    (tmp_path / "vocab.txt").write_bytes(clean)
    theirs = BertTokenizerFast.from_pretrained(tmp_path)
    assert type(ours) is BertTokenizer
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True), text
        named = theirs.encode(text, add_special_tokens=False)
        start = [] if named and named[0] in theirs.all_special_ids and text.startswith("[") else [2]
        assert ours.encode_prompt(text) == [*start, *named], text
    ids = list(range(ours.vocab_size))
    assert ours.vocab_size == len(PIECES)
    assert "".join(decode_stream(ours, ids)) == ours.decode(ids)
    lines = clean.decode().replace("\r\n", "\n").split("\n")[: len(PIECES)]
    assert ours.blank_ids == {index for index, line in enumerate(lines) if line == ""}
    assert all(ours.decode([index]) == "" for index in ours.blank_ids)


STYLES: dict[str, tuple[list[str], dict[str, Any], tuple[str | None, str, str, str | None]]] = {
    # pieces that replace BERT's, tokenizer_config.json -> end, padding, unknown, beginning
    "<pad> <unk> <s> </s>": (["<pad>", "<unk>", "<s>", "</s>"], {}, ("</s>", "<pad>", "<unk>", "<s>")),
    "<pad> <unk> <bos> <eos>": (["<pad>", "<unk>", "<bos>", "<eos>"], {}, ("<eos>", "<pad>", "<unk>", "<bos>")),
    "[BOS] and [EOS]": (["[PAD]", "[UNK]", "[BOS]", "[EOS]"], {}, ("[EOS]", "[PAD]", "[UNK]", "[BOS]")),
    "declared": (
        ["_p", "_u", "_b", "_e"],
        {"pad_token": "_p", "unk_token": "_u", "cls_token": "_b", "sep_token": "_e", "eos_token": "_e"},
        ("_e", "_p", "_u", "_b"),
    ),
    "an end beside BERT's": (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<end>"],
        {"eos_token": "<end>"},
        ("<end>", "[PAD]", "[UNK]", "[CLS]"),
    ),
    "no end, no beginning": (["[PAD]", "[UNK]"], {}, (None, "[PAD]", "[UNK]", None)),
}


@pytest.mark.parametrize("style", STYLES)
def test_pieces_of_other_names_have_their_parts(style: str, tmp_path: Path) -> None:
    special, config, (end, pad, unknown, begin) = STYLES[style]
    pieces = [*special, *PIECES[5:]]
    (tmp_path / "vocab.txt").write_text("\n".join([*pieces, ""]), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    ours = load_tokenizer(tmp_path)
    at = pieces.index
    assert ours.eos_token_id == (None if end is None else at(end))
    assert (ours.pad_token_id, ours.unknown_token_id) == (at(pad), at(unknown))
    start = [] if begin is None else [at(begin)]
    assert list(ours.start_token_ids) == start
    assert ours.encode_prompt("庭院雨") == [*start, at("庭"), at("院"), at(unknown)]
    for piece in filter(None, (end, pad, unknown, begin)):
        assert at(piece) in ours.encode_prompt(f"庭{piece}院")
        assert piece.startswith("_") or at(piece) not in ours.encode(f"庭{piece}院") or piece == unknown
    if end is None:
        with pytest.raises(TokenizerError, match="no end of a text"):
            ours.encode("庭", append_eod=True)
        with pytest.raises(TokenizerError, match="no tokens"):
            ours.encode_prompt("")
    else:
        assert ours.encode("庭", append_eod=True) == [at("庭"), at(end)]


def test_words_of_chinese_are_not_cut_into_characters_silently(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "庭院", "深深", "几许", "杨柳", "庭", "院"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), "utf-8")
    with pytest.raises(TokenizerError, match=r"4 of 10 pieces are Chinese words.*give token ids"):
        load_tokenizer(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"tokenize_chinese_chars": false}')  # then a run of Chinese is a word
    assert load_tokenizer(tmp_path).encode("庭院 深深") == [4, 5]
    few = [*words, *(chr(0x4E00 + index) for index in range(40))]
    (tmp_path / "vocab.txt").write_text("\n".join(few), "utf-8")
    config.unlink()
    assert load_tokenizer(tmp_path).encode("庭院") == [8, 9]


def gpt2_under_other_names(folder: Path) -> tuple[str, type[Tokenizer]]:
    bpe(folder)
    (folder / "vocab.json").rename(folder / "bpe_vocab.json")
    (folder / "merges.txt").rename(folder / "bpe_merges.txt")
    return "bpe_vocab.json", ByteBPETokenizer


def gpt2_json_under_another_name(folder: Path) -> tuple[str, type[Tokenizer]]:
    theirs = bpe(folder)
    for file in list(folder.iterdir()):
        file.unlink()
    theirs.backend_tokenizer.save(str(folder / "my_tokenizer.json"))
    return "my_tokenizer.json", ByteBPETokenizer


def bert_under_another_name(folder: Path) -> tuple[str, type[Tokenizer]]:
    bert(folder)
    (folder / "vocab.txt").rename(folder / "vocab_small.txt")
    (folder / "readme.txt").write_text("a readme\n")
    return "vocab_small.txt", BertTokenizer


def library_as_vocabulary(folder: Path) -> tuple[str, type[Tokenizer]]:
    folder.mkdir()
    LIBRARY_TOKENIZERS["Unigram"]().save(str(folder / "char_vocab.json"))
    return "char_vocab.json", LibraryTokenizer


def openai(folder: Path) -> tuple[str, type[Tokenizer]]:
    write_tokenizer("bpe", folder)
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    return "vocab.bpe", ByteBPETokenizer


@pytest.mark.parametrize(
    "make",
    [
        gpt2_under_other_names,
        gpt2_json_under_another_name,
        bert_under_another_name,
        library_as_vocabulary,
        openai,
    ],
    ids=lambda make: make.__name__,
)
def test_a_tokenizer_is_found_under_other_names_and_by_its_file(
    make: Callable[[Path], tuple[str, type[Tokenizer]]], tmp_path: Path
) -> None:
    name, kind = make(tmp_path / "own")
    found, named = load_tokenizer(tmp_path / "own"), load_tokenizer(tmp_path / "own" / name)
    assert type(found) is type(named) is kind
    text = "hello world 今天 春花"
    assert found.encode(text) == named.encode(text)
    (tmp_path / "copy").mkdir()
    for file in found.save(tmp_path / "copy"):
        assert file.is_file()
    assert load_tokenizer(tmp_path / "copy").encode(text) == found.encode(text)


def test_of_several_the_one_of_transformers_is_taken(tmp_path: Path) -> None:
    """Added pieces that are in ``tokenizer.json`` only are there; the older files are left when it is damaged."""
    theirs = bert(tmp_path / "own")
    theirs.add_tokens(["<line>"])
    theirs.backend_tokenizer.save(str(tmp_path / "own" / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "own")
    assert ours.vocab_size == len(theirs)
    assert ours.encode("今<line>天") == theirs.encode("今<line>天", add_special_tokens=False)
    (tmp_path / "own" / "tokenizer.json").write_text("{")
    older = load_tokenizer(tmp_path / "own")
    assert older.vocab_size == len(theirs) - 1
    assert [note.split(": ")[-1] for note in older.notes] == ["vocab.txt was taken instead"]
    shutil.copy(write_tokenizer("bpe", tmp_path / "bpe") / "merges.txt", tmp_path / "own" / "merges.txt")
    assert type(load_tokenizer(tmp_path / "own")) is ByteBPETokenizer


ADDED_BEYOND: dict[str, Callable[[Path], Any]] = {"bert": bert, "gpt2": bpe}


@pytest.mark.parametrize("form", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json", "library"])
@pytest.mark.parametrize("kind", ADDED_BEYOND)
def test_added_pieces_without_rows_are_left_out(kind: str, form: str, tmp_path: Path) -> None:
    """People add ``[PAD]`` to a tokenizer and do not make the model larger."""
    theirs = ADDED_BEYOND[kind](tmp_path / "own")
    size = len(theirs)
    theirs.add_special_tokens({"additional_special_tokens": ["<row>", "<no row>"]})
    if form in ("tokenizer.json", "library"):
        if form == "library":  # another kind of tokenizer
            from tokenizers import normalizers

            own = [theirs.backend_tokenizer.normalizer] if theirs.backend_tokenizer.normalizer else []
            theirs.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *own])
        theirs.backend_tokenizer.save(str(tmp_path / "own" / "tokenizer.json"))
    elif form == "added_tokens.json":
        (tmp_path / "own" / form).write_text(json.dumps({"<row>": size, "<no row>": size + 1}))
    else:
        decoder = {index: {"content": name} for index, name in ((size, "<row>"), (size + 1, "<no row>"))}
        (tmp_path / "own" / form).write_text(json.dumps({"added_tokens_decoder": decoder}))
    whole = load_tokenizer(tmp_path / "own")
    assert (whole.vocab_size, whole.notes) == (size + 2, ())
    assert type(whole) is (
        LibraryTokenizer if form == "library" else BertTokenizer if kind == "bert" else ByteBPETokenizer
    )
    for rows, left in ((size, ["<row>", "<no row>"]), (size + 1, ["<no row>"]), (size + 2, []), (size + 9, [])):
        ours = load_tokenizer(tmp_path / "own", vocab_size=rows)
        assert ours.vocab_size == size + 2 - len(left)
        ids = ours.encode_prompt("hello<row>hello<no row>hello")
        assert max(ids) < rows
        assert (size in ids, size + 1 in ids) == (rows > size, rows > size + 1)
        assert [note.split(": ")[1] for note in ours.notes] == [f"left out {' '.join(left)}"] * bool(left)
