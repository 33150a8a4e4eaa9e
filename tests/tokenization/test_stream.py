"""Text as its tokens come: together it is what ``decode`` gives, and no part of it is half a character."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import shared
from tests.helpers.tokenizer_texts import varied_texts
from tokenization import (
    BertTokenizer,
    ByteBPETokenizer,
    CPMTokenizer,
    Tokenizer,
    TokenizerError,
    decode_stream,
)
from tokenization.streaming import GrowingText

KINDS: dict[str, tuple[str, Callable[[Path], Tokenizer]]] = {
    "cpm": ("vocab/cpm", CPMTokenizer),
    "bert": ("vocab/bert-zh", BertTokenizer),
    "gpt2": ("vocab/gpt2", ByteBPETokenizer),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder, load = KINDS[request.param]
    return load(shared(folder))


@pytest.fixture(scope="module")
def gpt2() -> ByteBPETokenizer:
    return ByteBPETokenizer(shared("vocab/gpt2"))


@given(st.data())
def test_random_ids_stream_as_they_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.finish() == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 255) | st.sampled_from([20015, 232, 50256, 12859, 11737]), max_size=20))
def test_random_bytes_stream_as_they_decode(gpt2: ByteBPETokenizer, ids: list[int]) -> None:
    """Ids 0 to 255 are the bytes: most sequences are no UTF-8, in every way in which bytes can be none."""
    assert "".join(decode_stream(gpt2, ids)) == gpt2.decode(ids)


def test_real_text_streams_as_it_decodes(tokenizer: Tokenizer) -> None:
    for text in varied_texts()[:: 40 if isinstance(tokenizer, CPMTokenizer) else 4]:
        ids = tokenizer.encode(text, append_eod=True)
        parts = list(decode_stream(tokenizer, ids))
        assert "".join(parts) == tokenizer.decode(ids), text
        assert all(parts)
        if "\ufffd" not in text:
            assert not any("\ufffd" in part for part in parts), text


def test_a_part_is_given_as_soon_as_it_is_certain(gpt2: ByteBPETokenizer) -> None:
    """After each token: the whole characters of the bytes so far, none missing and none too many."""
    for text in varied_texts()[::10]:
        ids = gpt2.encode(text)
        decoder, given_so_far = gpt2.stream_decoder(), ""
        for n, token_id in enumerate(ids, 1):
            given_so_far += decoder.push(token_id)
            assert given_so_far == gpt2.bytes_of(ids[:n]).decode("utf-8", "ignore")
        assert decoder.finish() == ""


def test_a_character_of_several_tokens_comes_whole(gpt2: ByteBPETokenizer) -> None:
    decoder = gpt2.stream_decoder()
    assert [decoder.push(i) for i in gpt2.encode("今")] == ["", "今"]
    assert decoder.push(20015) == ""
    assert decoder.finish() == "\ufffd"


def test_the_text_of_a_word_is_given_at_once(tokenizer: Tokenizer) -> None:
    """Each token's text at once, but for the bytes of GPT-2."""
    ids = tokenizer.encode("天气good day")
    decoder = tokenizer.stream_decoder()
    text = ""
    for n, token_id in enumerate(ids, 1):
        text += decoder.push(token_id)
        assert text == tokenizer.decode(ids[:n]).rstrip("\ufffd")
    assert text == "天气good day"


def test_ids_may_be_numpy(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("今天 Hello"), np.int64)
    assert "".join(decode_stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_ids_outside_the_vocabulary_leave_the_stream_as_it_was(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    first, *rest = tokenizer.encode("今天")
    text = decoder.push(first)
    for wrong in (tokenizer.vocab_size, -1):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            decoder.push(wrong)
    text += "".join(map(decoder.push, rest))
    assert text + decoder.finish() == "今天"


def test_two_streams_do_not_disturb_each_other(tokenizer: Tokenizer) -> None:
    texts = ["今天天气不错", "good day"]
    decoders = [tokenizer.stream_decoder() for _ in texts]
    results = ["", ""]
    todo = [(row, i) for row, text in enumerate(texts) for i in tokenizer.encode(text)]
    random.Random(0).shuffle(order := [row for row, _ in todo])
    rows = [iter([i for r, i in todo if r == row]) for row in range(2)]
    for row in order:
        results[row] += decoders[row].push(next(rows[row]))
    assert [result + decoder.finish() for result, decoder in zip(results, decoders, strict=True)] == texts


class TestGrowingText:
    """CPM's decoder, with texts that SentencePiece does not give for CPM's vocabulary."""

    @staticmethod
    def parts(texts: list[str]) -> list[str]:
        """What is given when the text of the first n tokens is ``texts[n]``."""
        stream = GrowingText(lambda ids: texts[len(ids)])
        return [*(stream.push(0) for _ in texts[1:]), stream.finish()]

    def test_growing(self) -> None:
        assert self.parts(["", "a", "ab", "ab", "abcd"]) == ["a", "b", "", "cd", ""]

    def test_half_a_character_is_held_back(self) -> None:
        assert self.parts(["", "a\ufffd", "a\ufffd\ufffd", "a今"]) == ["a", "", "今", ""]
        assert self.parts(["", "a\ufffd"]) == ["a", "\ufffd"]
        assert self.parts(["", "\ufffd", "\ufffdb"]) == ["", "\ufffdb", ""]

    def test_text_that_changes_for_a_while(self) -> None:
        assert self.parts(["", "ab", "ac", "abd"]) == ["ab", "", "d", ""]

    def test_text_that_changes_for_good(self) -> None:
        assert self.parts(["", "ab", "acd", "acde"]) == ["ab", "", "", "cde"]
        assert self.parts(["", "ab", "a"]) == ["ab", "", ""]
