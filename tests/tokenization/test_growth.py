"""Files that would make any text fill the memory are refused before the library sees a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

from tests.helpers.library_tokenizers import LIBRARY_TOKENIZERS
from tokenization import TokenizerError, load_tokenizer

Change = Callable[[Any], None]


def normalizer(*steps: Any) -> Change:
    return lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Sequence(list(steps)))


def decoder(*steps: Any) -> Change:
    return lambda tokenizer: setattr(tokenizer, "decoder", decoders.Sequence(list(steps)))


def bytes_again(tokenizer: Any) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel() for _ in range(40)])


def templates(tokenizer: Any) -> None:
    template = processors.TemplateProcessing(single="$A $A $A $A", special_tokens=[])
    tokenizer.post_processor = processors.Sequence([template] * 20)


BOMBS: dict[str, Change] = {
    "a letter twice, again and again": normalizer(*[normalizers.Replace("a", "aa")] * 40),
    "two that feed each other": normalizer(*[normalizers.Replace("a", "bb"), normalizers.Replace("b", "aa")] * 20),
    "a pattern": normalizer(*[normalizers.Replace(Regex("."), "xy")] * 40),
    "a pattern that takes nothing": normalizer(*[normalizers.Replace(Regex("(?=a)"), "a")] * 40),
    "an empty pattern": normalizer(*[normalizers.Replace(Regex(""), "a")] * 40),
    "a pattern that may be empty": normalizer(*[normalizers.Replace(Regex("x*"), "a")] * 40),
    "bytes of bytes": normalizer(*[normalizers.ByteLevel()] * 40),
    "bytes of bytes while splitting": bytes_again,
    "decoding": decoder(*[decoders.Replace("a", "aa")] * 40),
    "within each other": normalizer(*[normalizers.Sequence([normalizers.Replace("a", "aaa")] * 4)] * 10),
    "a text many times": templates,
}
HARMLESS: dict[str, Change] = {
    "spaces": normalizer(*[normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\s+"), " ")] * 20),
    "names of many characters": normalizer(*[normalizers.Replace(chr(0x2460 + n), f"<{n}>") for n in range(60)]),
    "quotation marks": normalizer(*[normalizers.Replace(mark, '"') for mark in "“”„‟«»‘’"], normalizers.NFKC()),
    "spaces shown and hidden": decoder(decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)),
    "bytes": normalizer(normalizers.NFC(), normalizers.ByteLevel()),
}


def write(folder: Path, change: Change) -> None:
    tokenizer = LIBRARY_TOKENIZERS["WordLevel of characters"]()
    change(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("case", BOMBS)
def test_a_file_that_makes_a_text_grow_without_end_is_refused(case: str, tmp_path: Path) -> None:
    write(tmp_path, BOMBS[case])
    with pytest.raises(TokenizerError, match="characters of one character") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", HARMLESS)
def test_many_steps_that_do_not_make_a_text_grow_are_used(case: str, tmp_path: Path) -> None:
    write(tmp_path, HARMLESS[case])
    load_tokenizer(tmp_path)


def test_a_file_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"normalizer": ' + '{"a": ' * 20000 + "1" + "}" * 20001)
    with pytest.raises(TokenizerError, match="not a file of the tokenizers library"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "merges.txt", "tokenizer_config.json"])
def test_a_text_that_is_larger_than_any_vocabulary_is_not_read(name: str, tmp_path: Path) -> None:
    if name == "tokenizer_config.json":
        (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    with (tmp_path / name).open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(TokenizerError, match="not a file of a tokenizer: more than 200 MB"):
        load_tokenizer(tmp_path)
