"""The presets against the rules of CPM-1-Text-Generation-Unlimit's two scripts."""

from __future__ import annotations

from typing import Any

import pytest

from exports.generation_config import OptionError
from inference.model_tokenizer import ModelTokenizer
from inference.presets import PRESETS, WINDOWS, Preset
from tests.helpers.text_models import TextModel, scripted
from tokenization import TokenizerError

LYRIC, NOVEL = PRESETS["lyric"], PRESETS["novel"]


def encoded(preset: Preset, model: TextModel, prompt: str) -> list[int]:
    return preset.encode(ModelTokenizer(model.tokenizer), prompt)


@pytest.mark.parametrize("prompt", ["一曲\n新词", "一曲<eod>新词<eod>", "\n一曲 \n\n 新词\n", "<eod>一曲<eod>\n新词"])
def test_each_line_of_a_lyric_ends(cpm: TextModel, prompt: str) -> None:
    """Each line is encoded for itself, and each is followed by the end of a document."""
    encode, end = cpm.tokenizer.encode, cpm.tokenizer.eos_token_id
    assert encoded(LYRIC, cpm, prompt) == [*encode("一曲"), end, *encode("新词"), end]


def test_a_novel_is_one_piece(cpm: TextModel) -> None:
    """One piece, with its line feeds; what was typed as the end of a document is no text."""
    encode = cpm.tokenizer.encode
    assert encoded(NOVEL, cpm, "一曲\n新词") == encode("一曲\n新词")
    assert encoded(NOVEL, cpm, "一曲<eod>新词") == [*encode("一曲"), *encode("新词")]


def test_lines_end_with_the_end_of_text_of_any_tokenizer(bert: TextModel, bpe: TextModel) -> None:
    assert encoded(LYRIC, bert, "一曲\n新词") == [2, *bert.tokenizer.encode("一曲"), 3,
                                                      *bert.tokenizer.encode("新词"), 3]  # fmt: skip
    end = bpe.tokenizer.eos_token_id
    assert encoded(LYRIC, bpe, "a\nb") == [*bpe.tokenizer.encode("a"), end, *bpe.tokenizer.encode("b"), end]
    assert encoded(NOVEL, bpe, "") == [end]
    assert encoded(LYRIC, bert, "") == [2]


@pytest.mark.parametrize("prompt", ["", "\n\n", "<eod>", " \t"])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_prompt_without_tokens_is_refused(cpm: TextModel, preset: Any, prompt: str) -> None:
    with pytest.raises(TokenizerError, match="the prompt has no tokens"):
        encoded(preset, cpm, prompt)


def test_presets_sample_from_the_whole_distribution(cpm: TextModel) -> None:
    """The whole distribution, on past every end of a document, prompt and continuation counted together."""
    lyric, novel = (cpm.generator.resolve(**preset.options(ModelTokenizer(cpm.tokenizer))) for preset in (LYRIC, NOVEL))
    for config, length in ((lyric, 1500), (novel, 2048)):
        assert config.max_length == length
        assert config.values["eos_token_id"] == ()
        off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
        assert {name: config.values[name] for name in off} == off
    assert lyric.values["window_line_token_id"] == cpm.tokenizer.eos_token_id
    assert novel.values["window_line_token_id"] == -1


@pytest.mark.parametrize(("preset", "expected"), [("lyric", "去年天气\n旧亭台\n"), ("novel", "去年天气\n\n旧亭台\n\n")])
def test_the_end_of_a_document_is_shown_as_the_end_of_a_line(cpm: TextModel, preset: str, expected: str) -> None:
    end = cpm.tokenizer.eos_token_id
    tokens = [*cpm.tokenizer.encode("去年天气"), end, *cpm.tokenizer.encode("旧亭台"), end]
    generator = scripted(cpm.tokenizer, tokens)
    options: dict[str, Any] = {"preset": preset, "max_new_tokens": len(tokens)}
    (result,) = generator.generate("一曲", **options)
    assert result.text == expected
    assert "".join(generator.stream("一曲", **options)) == expected
    assert result.tokens == tuple(tokens)
    assert result.full_text == ("一曲\n" if preset == "lyric" else "一曲") + expected
    for stop in ("<eod>", "\n"):
        (cut,) = generator.generate("一曲", **options, truncate=stop)
        assert cut.text == "".join(generator.stream("一曲", **options, truncate=stop)) == "去年天气"


def test_a_novel_has_one_empty_line_between_documents(cpm: TextModel) -> None:
    end, line = cpm.tokenizer.eos_token_id, cpm.tokenizer.encode("\n")[-1]
    tokens = [*cpm.tokenizer.encode("去年"), line, end, *cpm.tokenizer.encode("旧亭"), end, *cpm.tokenizer.encode("台")]
    (result,) = scripted(cpm.tokenizer, tokens).generate("一曲", preset="novel", max_new_tokens=len(tokens))
    assert result.text == "去年\n\n旧亭\n\n台"


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("window", [None, *WINDOWS])
def test_presets_and_windows_are_options(cpm: TextModel, preset: str | None, window: str | None) -> None:
    """As those of ``Preset.options`` and ``window_line_token_id`` by themselves."""
    base = PRESETS[preset].options(ModelTokenizer(cpm.tokenizer)) if preset else {}
    line = {"line": cpm.tokenizer.line_token_id, "tokens": -1}.get(window or "", base.get("window_line_token_id", -1))
    if preset == "lyric" and window == "line":
        line = cpm.tokenizer.eos_token_id
    expected = cpm.generator.resolve(**{**base, "window_line_token_id": line})
    found = cpm.generator.resolve(preset=preset, window=window)
    assert (found.values, found.max_length) == (expected.values, expected.max_length)
    assert cpm.generator.resolve(preset=preset, window=window, max_new_tokens=5).max_length is None
    given = cpm.generator.resolve(preset=preset, window=window, top_k=3, window_line_token_id=9)
    assert (given.values["top_k"], given.values["window_line_token_id"]) == (3, 9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "poem"}, "preset is 'poem': expected lyric or novel"),
        ({"preset": 5}, "preset is '5': expected lyric or novel"),
        ({"window": "page"}, "window is 'page': expected line or tokens"),
    ],
)
def test_unknown_presets_and_windows_are_refused(cpm: TextModel, options: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        cpm.generator.generate("一曲", **options)


def test_a_window_of_lines_needs_a_tokenizer_with_lines(bert: TextModel) -> None:
    with pytest.raises(OptionError, match="no end of line: give window_line_token_id"):
        bert.generator.resolve(window="line")
    assert bert.generator.resolve(window="line", window_line_token_id=9).values["window_line_token_id"] == 9


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_streams_what_it_generates_beyond_the_positions(cpm: TextModel, name: str) -> None:
    preset = PRESETS[name]
    ids = encoded(preset, cpm, "一曲新词\n酒一杯")
    options = {**preset.options(ModelTokenizer(cpm.tokenizer)), "max_length": 150, "seed": 2}
    (result,) = cpm.generator.generate([ids], **options)
    assert len(ids) + len(result.tokens) == 150
    assert "".join(cpm.generator.stream(ids, **options)) == result.text
