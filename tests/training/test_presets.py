"""Presets: how files become documents, and documents token ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.errors import UserError
from tests.helpers.small_vocabularies import write_tokenizer
from tokenization import Tokenizer, load_tokenizer
from training.texts.documents import Document
from training.texts.presets import PASSAGE_CHARACTERS, PRESETS, default_preset, find_preset, preset_notes

SONG = "一曲新词\n\n酒一杯"
EOD, LINE = 7, [8, 3]
"""Of CPM's vocabulary: the end of a text, and a line feed."""


@pytest.fixture(scope="module")
def cpm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer("cpm", tmp_path_factory.mktemp("cpm")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer("bert", tmp_path_factory.mktemp("bert") / "bert"))


def ids(preset: str, tokenizer: Tokenizer, text: str, prefix: str = "") -> list[int]:
    return list(find_preset(preset).encode(tokenizer, Document(text, prefix)).ids)


def test_lyric_ends_each_line_with_the_end_of_text_and_has_no_line_feeds(cpm: Tokenizer) -> None:
    first, second = cpm.encode("一曲新词"), cpm.encode("酒一杯")
    assert ids("lyric", cpm, " 一曲新词 \n\n酒一杯\n") == [*first, EOD, *second, EOD]


def test_poem_keeps_line_feeds_and_ends_once(cpm: Tokenizer) -> None:
    expected = [*cpm.encode("一曲新词"), *LINE, *cpm.encode("酒一杯"), *LINE, EOD]
    assert ids("poem", cpm, "一曲新词\n酒一杯") == ids("poem", cpm, "一曲新词\n酒一杯\n") == expected


def test_novel_has_no_end_of_text(cpm: Tokenizer) -> None:
    assert ids("novel", cpm, "一曲新词") == cpm.encode("一曲新词")


def test_plain_is_the_text_as_it_is_and_an_end(cpm: Tokenizer) -> None:
    assert ids("plain", cpm, SONG) == cpm.encode(SONG, append_eod=True)


def test_lyric_and_poem_begin_a_document_after_each_blank_line() -> None:
    text = "\n一\n二\n \t\n\n三\n\n"
    for name in ("lyric", "poem"):
        assert find_preset(name).split(text) == [(2, "一\n二"), (6, "三")]


def test_plain_is_one_document_a_file() -> None:
    assert find_preset("plain").split("一\n\n二\n") == [(1, "一\n\n二\n")]


def test_novel_joins_the_lines_of_paragraphs_and_keeps_paragraphs_apart() -> None:
    assert find_preset("novel").split("第一章\n\n天色\n已晚。\n\nIt was\ndark,\nand cold.\n") == [
        (1, "第一章\n天色已晚。\nIt was dark, and cold.")
    ]


def test_a_novel_without_blank_lines_has_a_paragraph_a_line() -> None:
    assert find_preset("novel").split("天色\n已晚。\n") == [(1, "天色\n已晚。")]


def test_a_long_novel_is_cut_between_paragraphs_and_loses_nothing() -> None:
    paragraphs = [f"{number}" * 700 for number in range(100, 160)]
    passages = find_preset("novel").split("\n\n".join(paragraphs))
    assert "\n".join(text for _, text in passages) == "\n".join(paragraphs)
    assert len(passages) == 6
    assert all(PASSAGE_CHARACTERS <= len(text) < PASSAGE_CHARACTERS + 2200 for _, text in passages[:-1])
    assert [line for line, _ in passages] == [1 + 20 * number for number in range(6)]


def test_a_prefix_stands_before_the_text_and_is_not_predicted(cpm: Tokenizer) -> None:
    encoded = find_preset("poem").encode(cpm, Document("酒一杯", "浣溪沙\n"))
    prefix = cpm.encode("浣溪沙\n")
    assert list(encoded.ids[: len(prefix)]) == prefix
    assert encoded.unpredicted == len(prefix)


def test_a_prefix_is_predicted_where_all_is(cpm: Tokenizer) -> None:
    preset = find_preset("poem")
    encoded = preset.encode(cpm, Document("酒一杯", "浣溪沙\n"), predict_prefix=True)
    assert encoded.ids == preset.encode(cpm, Document("酒一杯", "浣溪沙\n")).ids
    assert encoded.unpredicted == 0


def test_a_prefix_and_a_text_are_the_ids_of_both_together(cpm: Tokenizer) -> None:
    """Generation is given the prefix alone, and goes on as in training."""
    assert ids("plain", cpm, "一曲新词酒一杯\n", "浣溪沙\n") == cpm.encode("浣溪沙\n一曲新词酒一杯\n", append_eod=True)


def test_a_prefix_of_a_lyric_ends_as_its_lines_do(cpm: Tokenizer) -> None:
    expected = [*cpm.encode("民谣"), EOD, *cpm.encode("酒一杯"), EOD]
    assert ids("lyric", cpm, "酒一杯", "民谣\n") == expected


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("prefix", "first"), [("浣溪沙\n", "一曲"), ("浣溪沙\n晏殊\n", "一曲"), ("", "一曲"), ("浣溪沙\n", "")]
)
def test_a_prompt_is_the_beginning_of_a_document(preset: str, prefix: str, first: str, cpm: Tokenizer) -> None:
    document = ids(preset, cpm, "一曲\n酒一杯", prefix)
    prompt = find_preset(preset).encode_prompt(cpm, prefix + first)
    assert document[: len(prompt)] == prompt
    assert len(prompt) > 1


def test_what_a_model_was_trained_to_see_before_a_text_is_there_once(bert: Tokenizer) -> None:
    cls, sep = bert.special_pieces["[CLS]"], bert.special_pieces["[SEP]"]
    line = bert.encode("今天")
    encoded = find_preset("lyric").encode(bert, Document("今天\n今天"))
    assert list(encoded.ids) == [cls, *line, sep, *line, sep]
    assert encoded.unpredicted == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_special_pieces_in_a_text_are_text(preset: str, cpm: Tokenizer, bert: Tokenizer) -> None:
    assert ids(preset, cpm, "一<eod>二<sep>").count(EOD) == find_preset(preset).ends
    assert ids(preset, bert, "今[SEP]天").count(bert.special_pieces["[SEP]"]) == find_preset(preset).ends


def test_a_vocabulary_without_an_end_gets_none_and_a_note_says_so(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n今\n天\n", "utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert ids("lyric", tokenizer, "今天\n今") == [2, 3, 2]
    (note,) = preset_notes(find_preset("lyric"), tokenizer, [])
    assert "no end of text" in note
    assert preset_notes(find_preset("novel"), tokenizer, []) == []


def test_lines_that_a_vocabulary_cannot_have_are_said(bert: Tokenizer, cpm: Tokenizer) -> None:
    poem = [Document("今天\n今天")]
    (note,) = preset_notes(find_preset("poem"), bert, poem)
    assert "no line feed" in note
    assert preset_notes(find_preset("plain"), bert, [Document("今天", "明\n")])
    assert preset_notes(find_preset("lyric"), bert, poem) == []
    assert preset_notes(find_preset("poem"), bert, [Document("今天\n")]) == []
    assert preset_notes(find_preset("poem"), cpm, poem) == []


@pytest.mark.parametrize(
    ("names", "preset"),
    [(["a.txt"], "poem"), (["a.jsonl"], "plain"), (["a.jsonl", "b.txt"], "poem"), (["a.JSON"], "plain")],
)
def test_the_preset_follows_from_the_files(names: list[str], preset: str) -> None:
    assert default_preset([Path(name) for name in names]).name == preset


def test_a_preset_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="--preset lyrics: expected lyric, poem, novel, plain"):
        find_preset("lyrics")
