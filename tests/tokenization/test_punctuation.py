"""Chinese punctuation for readers: of whole texts, and of texts that come in parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tokenization import ChinesePunctuation, CPMTokenizer, chinese_punctuation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一曲新词酒一杯,去年天气旧亭台。\n", "一曲新词酒一杯，去年天气旧亭台。\n"),
        ("谁?我!看:春;秋.", "谁？我！看：春；秋。"),
        ("他说(真的),走了", "他说(真的)，走了"),
        ("春,,秋", "春，，秋"),
        ("共3,000人, hello, world. 12:30", "共3,000人， hello, world. 12:30"),
        ("你好.com 等...再说", "你好.com 等...再说"),
        ("a,b!c?", "a,b!c?"),
        ("春\n,秋", "春\n,秋"),
        ("", ""),
    ],
)
def test_marks_after_chinese_characters_become_chinese(text: str, expected: str) -> None:
    assert chinese_punctuation(text) == expected


def test_the_comma_that_cpm_made_ascii_comes_back() -> None:
    tokenizer = CPMTokenizer(ROOT / "demo" / "song-ci" / "tokenizer")
    text = "一曲新词，酒一杯，去年天气旧亭台。"
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert "，" not in decoded
    assert chinese_punctuation(decoded) == text


@given(parts=st.lists(st.text("春秋a1,.:!\n) ", max_size=4)))
def test_parts_give_the_text_of_the_whole(parts: list[str]) -> None:
    marks = ChinesePunctuation()
    assert "".join([marks.push(part) for part in parts]) + marks.finish() == chinese_punctuation("".join(parts))


@given(before=st.text("春a,.\n", max_size=4), text=st.text("秋b,!", max_size=5))
def test_a_continuation_begins_after_its_prompt(before: str, text: str) -> None:
    marks = ChinesePunctuation(before)
    assert marks.push(text) + marks.finish() == chinese_punctuation(before + text)[len(before) :]
