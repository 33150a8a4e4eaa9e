"""The presets against the rules of CPM-1-Text-Generation-Unlimit's two scripts."""

from __future__ import annotations

from typing import Any

import pytest

from inference.presets import PRESETS
from tests.helpers.text_models import TextModel, scripted
from tokenization import TokenizerError

LYRIC, NOVEL = PRESETS["lyric"], PRESETS["novel"]


@pytest.mark.parametrize("prompt", ["一曲\n新词", "一曲<eod>新词<eod>", "\n一曲 \n\n 新词\n", "<eod>一曲<eod>\n新词"])
def test_lyric_prompts(cpm: TextModel, prompt: str) -> None:
    """Each line is encoded for itself, and each is followed by the end of a document."""
    encode, end = cpm.tokenizer.encode, cpm.tokenizer.eos_token_id
    assert LYRIC.prompt(cpm.tokenizer, prompt) == [*encode("一曲"), end, *encode("新词"), end]


def test_novel_prompts(cpm: TextModel) -> None:
    """One piece, with its line feeds; what was typed as the end of a document is no text."""
    encode = cpm.tokenizer.encode
    assert NOVEL.prompt(cpm.tokenizer, "一曲\n新词") == encode("一曲\n新词")
    assert NOVEL.prompt(cpm.tokenizer, "一曲<eod>新词") == [*encode("一曲"), *encode("新词")]


def test_other_tokenizers(bert: TextModel, bpe: TextModel) -> None:
    assert LYRIC.prompt(bert.tokenizer, "一曲\n新词") == [2, *bert.tokenizer.encode("一曲"), 3,
                                                      *bert.tokenizer.encode("新词"), 3]  # fmt: skip
    end = bpe.tokenizer.eos_token_id
    assert LYRIC.prompt(bpe.tokenizer, "a\nb") == [*bpe.tokenizer.encode("a"), end, *bpe.tokenizer.encode("b"), end]
    assert LYRIC.text(bpe.tokenizer, "a<|endoftext|>b") == "a\nb"
    assert NOVEL.prompt(bpe.tokenizer, "") == [end]
    assert LYRIC.prompt(bert.tokenizer, "") == [2]


@pytest.mark.parametrize("prompt", ["", "\n\n", "<eod>", " \t"])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_nothing_to_start_from(cpm: TextModel, preset: Any, prompt: str) -> None:
    with pytest.raises(TokenizerError, match="the prompt has no tokens"):
        preset.prompt(cpm.tokenizer, prompt)


def test_options(cpm: TextModel) -> None:
    """The whole distribution, on past every end of a document, prompt and continuation counted together."""
    lyric, novel = (cpm.generator.resolve(**preset.options(cpm.tokenizer)) for preset in (LYRIC, NOVEL))
    for config, length in ((lyric, 1500), (novel, 2048)):
        assert config.max_length == length
        assert config.values["eos_token_id"] == ()
        off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
        assert {name: config.values[name] for name in off} == off
    assert lyric.values["window_line_token_id"] == cpm.tokenizer.eos_token_id
    assert novel.values["window_line_token_id"] == -1


def test_text_as_it_is_shown(cpm: TextModel) -> None:
    end = cpm.tokenizer.eos_token_id
    tokens = [*cpm.tokenizer.encode("去年天气"), end, *cpm.tokenizer.encode("旧亭台"), end]
    generator = scripted(cpm.tokenizer, tokens)
    (result,) = generator.generate([LYRIC.prompt(cpm.tokenizer, "一曲")], eos_token_id=())
    assert result.text == "去年天气<eod>旧亭台<eod>"
    assert LYRIC.text(cpm.tokenizer, result.text) == "去年天气\n旧亭台\n"
    assert NOVEL.text(cpm.tokenizer, result.text) == result.text


@pytest.mark.parametrize("name", PRESETS)
def test_a_text_longer_than_the_positions(cpm: TextModel, name: str) -> None:
    preset = PRESETS[name]
    ids = preset.prompt(cpm.tokenizer, "一曲新词\n酒一杯")
    options = {**preset.options(cpm.tokenizer), "max_length": 150, "seed": 2}
    (result,) = cpm.generator.generate([ids], **options)
    assert len(ids) + len(result.tokens) == 150
    assert "".join(cpm.generator.stream(ids, **options)) == result.text
