"""Special pieces in prompts, and the pieces that begin a model's texts, end them and end their lines.

The oracles are transformers' tokenizer for the ids, and what GPT2-Chinese's ``generate.py`` makes of pieces for texts.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers

from exports.generation_config import OptionError, PieceOptions
from inference.model_tokenizer import ModelTokenizer
from inference.request import RequestReader
from tests.helpers.library_tokenizers import LIBRARY_TOKENIZERS
from tests.helpers.small_vocabularies import write_tokenizer
from tests.helpers.text_models import scripted
from tf_model.config import GPT2Config
from tokenization import Tokenizer, TokenizerError, load_tokenizer

PAD, UNK, CLS, SEP, MASK = range(5)
GPT2_CHINESE: dict[str, Any] = {"start_token_ids": [MASK], "eos_token_id": CLS, "line_token_id": SEP}
"""An article is ``[MASK]`` text ``[CLS]``, and its lines end with ``[SEP]`` (its train.py)."""
UER: dict[str, Any] = {"start_token_ids": [CLS], "eos_token_id": SEP}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer("bert", tmp_path_factory.mktemp("bert") / "tokenizer")


@pytest.fixture(scope="module")
def bert(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.BertTokenizerFast(str(folder / "vocab.txt"))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer("bpe", tmp_path_factory.mktemp("bpe") / "tokenizer"))


@pytest.fixture(scope="module")
def cpm(demo: Path) -> Tokenizer:
    return load_tokenizer(demo / "tokenizer")


def reader(tokenizer: Tokenizer, **defaults: Any) -> RequestReader:
    config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=8, n_layer=1, n_head=1)
    return RequestReader(config, tokenizer, defaults)


def encode(requests: RequestReader, prompt: Any, **options: Any) -> list[int]:
    return list(requests.encode(prompt, requests.resolve(**options)).ids)


PROMPTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "UER": (UER, "一曲新词", "[CLS]一曲新词"),
    "UER, typed as its README has it": (UER, "[CLS]一曲新词", "[CLS]一曲新词"),
    "UER, an end within": (UER, "一曲[SEP]新词", "[CLS]一曲[SEP]新词"),
    "an article": (GPT2_CHINESE, "一曲新词", "[MASK]一曲新词"),
    "an article as its README has it": (GPT2_CHINESE, "[MASK]一曲新词", "[MASK]一曲新词"),
    "a new article after one": (GPT2_CHINESE, "酒[CLS][MASK]一曲", "[MASK]酒[CLS][MASK]一曲"),
    "lines": (GPT2_CHINESE, "一曲\nhello world\n\n酒一杯", "[MASK]一曲[SEP]hello world[SEP][SEP]酒一杯"),
    "lines of Windows": (GPT2_CHINESE, "一曲\r\n酒\r\n", "[MASK]一曲[SEP]酒[SEP]"),
    "a line feed first": (GPT2_CHINESE, "\n一曲", "[MASK][SEP]一曲"),
    "line pieces as they are": (GPT2_CHINESE, "一曲[SEP]酒", "[MASK]一曲[SEP]酒"),
    "an empty prompt": (GPT2_CHINESE, "", "[MASK]"),
    "unknown and padding begin nothing": (GPT2_CHINESE, "[UNK]酒", "[MASK][UNK]酒"),
    "two pieces first": ({"start_token_ids": [CLS, MASK]}, "酒", "[CLS][MASK]酒"),
    "nothing first": ({"start_token_ids": [-1]}, "酒[SEP]一", "酒[SEP]一"),
    "nothing first, stored as an empty list": ({"start_token_ids": []}, "酒", "酒"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_has_the_ids_that_transformers_gives_to_the_pieces(name: str, bert: Tokenizer, theirs: Any) -> None:
    options, prompt, pieces = PROMPTS[name]
    expected = theirs(pieces, add_special_tokens=False).input_ids
    assert encode(reader(bert, **options), prompt) == expected
    assert encode(reader(bert), prompt, **options) == expected  # of the model by default, or given for one text


@pytest.mark.parametrize("options", [{}, UER, GPT2_CHINESE], ids=["tokenizer", "UER", "GPT2-Chinese"])
@pytest.mark.parametrize("prompt", ["[CLS]一曲", "[MASK]酒[SEP]", "一[UNK]"])
def test_special_pieces_can_be_text(options: dict[str, Any], prompt: str, bert: Tokenizer, theirs: Any) -> None:
    start = options.get("start_token_ids", [CLS])
    text = theirs(prompt, add_special_tokens=False, split_special_tokens=True).input_ids
    requests = reader(bert, **options)
    assert encode(requests, prompt, special_pieces=False) == [*start, *text]
    assert encode(reader(bert, **options, special_pieces=False), prompt) == [*start, *text]
    assert encode(requests, prompt, special_pieces=True) == encode(requests, prompt) != [*start, *text]


def test_the_beginning_of_english_texts_is_an_option(bpe: Tokenizer) -> None:
    end = bpe.eos_token_id
    requests = reader(bpe, start_token_ids=[end], eos_token_id=end)
    for prompt in ("hello\nhello", "<|endoftext|>hello\nhello"):
        assert encode(requests, prompt) == [end, *bpe.encode("hello\nhello")]
    assert encode(requests, "") == encode(reader(bpe), "") == [end]
    assert encode(reader(bpe), "hello") == bpe.encode("hello")


def test_a_line_piece_of_another_vocabulary(bpe: Tokenizer, cpm: Tokenizer) -> None:
    """The vocabulary's own line feed is nothing new; any other piece takes its place."""
    end = bpe.eos_token_id
    for lines in ("hello\n今", "hello\r\n今"):
        assert encode(reader(bpe), lines, line_token_id=end) == [*bpe.encode("hello"), end, *bpe.encode("今")]
    assert encode(reader(cpm), "一曲\n酒", line_token_id=4) == [*cpm.encode("一曲"), 4, *cpm.encode("酒")]
    for tokenizer in (bpe, cpm):
        own = tokenizer.line_token_id
        assert encode(reader(tokenizer), "一曲\n酒", line_token_id=own) == tokenizer.encode("一曲\n酒")


def test_the_end_of_a_document_is_text_for_cpm_unless_it_is_asked_for(cpm: Tokenizer) -> None:
    requests = reader(cpm, eos_token_id=7)
    a, b = cpm.encode("一曲"), cpm.encode("新词")
    assert encode(requests, "一曲<sep>新词") == [*a, 4, *b]
    assert 7 not in encode(requests, "一曲<eod>新词")
    assert encode(requests, "一曲<eod>新词", special_pieces=True) == [*a, 7, *b]
    assert encode(requests, "一曲<eod>新词", preset="lyric") == [*a, 7, *b, 7]
    for prompt in ("一曲<eod>新词", "一曲<sep>新词"):
        assert encode(requests, prompt, special_pieces=False) == cpm.encode(prompt)
    text = [*cpm.encode("一曲<eod>新词"), 7]
    assert encode(requests, "一曲<eod>新词", preset="lyric", special_pieces=False) == text


NOTES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "text without being asked": ("一曲<eod>", {}, "<eod> is text for this model: give --special-pieces"),
    "asked for": ("一曲<eod>", {"special_pieces": True}, None),
    "not wanted": ("一曲<eod>", {"special_pieces": False}, None),
    "read anyway": ("一曲<sep>新", {}, None),
    "the end of a line": ("一曲<eod>新", {"preset": "lyric"}, None),
    "the end of a document": ("一曲<eod>新", {"preset": "novel"}, None),
    "no piece": ("一曲<end>", {}, None),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_piece_that_is_read_as_text_is_a_note(name: str, cpm: Tokenizer) -> None:
    prompt, options, note = NOTES[name]
    requests = reader(cpm, eos_token_id=7)
    config = requests.resolve(**options)
    found = [line for line in requests.notes(requests.encode(prompt, config), config) if "vocabulary" not in line]
    assert len(found) == (note is not None)
    assert all(note in line and "\n" not in line and len(line) < 300 for line in found if note)


def test_the_parts_between_pieces_are_searched_for_what_the_vocabulary_lacks(bert: Tokenizer) -> None:
    requests = reader(bert)
    config = requests.resolve()
    assert requests.notes(requests.encode("[CLS]一曲[UNK]", config), config) == []
    (note,) = requests.notes(requests.encode("[CLS]龍[SEP]鳳", config), config)
    assert note.endswith("does not have 龍 鳳")


def gpt2_chinese_text(pieces: Sequence[str]) -> str:
    """Show pieces as GPT2-Chinese's generate.py does: its ``is_word``, three replacements, one join."""

    def is_word(piece: str) -> bool:
        return all(letter in string.ascii_lowercase for letter in piece)

    shown = {"[MASK]": "", "[CLS]": "\n\n", "[SEP]": "\n"}
    spaced = [
        f"{piece} " if is_word(piece) and is_word(after) else piece
        for piece, after in zip(pieces, [*pieces[1:], "[SEP]"], strict=True)
    ]
    return "".join(shown.get(piece, piece) for piece in spaced).replace("##", "")


ARTICLES = {
    "one line": ["一", "曲", "新", "词"],
    "lines": ["一", "曲", "[SEP]", "新", "词", "[SEP]", "[SEP]", "酒"],
    "words": ["hello", "world", "[SEP]", "good", "day", "##ing", "一", "hello", "[SEP]", "world"],
    "a line first": ["[SEP]", "hello", "world"],
    "a line last": ["hello", "[SEP]"],
    "another article": ["酒", "[CLS]", "[MASK]", "一", "[SEP]", "曲", "[CLS]", "[MASK]", "hello", "world"],
}


@pytest.mark.parametrize("name", ARTICLES)
@pytest.mark.parametrize("preset", [None, "novel"])
def test_texts_are_shown_as_gpt2_chinese_shows_them(name: str, preset: Any, bert: Tokenizer, theirs: Any) -> None:
    pieces = ARTICLES[name]
    expected = gpt2_chinese_text(pieces)
    if preset is None:  # the end of an article ends the text
        expected = expected.split("\n\n")[0] if "[CLS]" in pieces else expected
    tokens = theirs.convert_tokens_to_ids(pieces)
    generator = scripted(bert, tokens)
    options = {**GPT2_CHINESE, "preset": preset, "max_new_tokens": len(tokens)}
    if preset:
        del options["eos_token_id"]
        generator.defaults["eos_token_id"] = CLS
    (result,) = generator.generate("[MASK]酒", **options)
    assert result.text == "".join(generator.stream("[MASK]酒", **options)) == expected
    assert result.full_text == f"[MASK]酒{expected}"  # as it was typed
    assert result.finish_reason == ("eos" if preset is None and "[CLS]" in pieces else "length")
    plain = [piece for piece in pieces if piece != "[CLS]"]
    decoder = ModelTokenizer(bert, PieceOptions(line_token_id=SEP))
    assert decoder.decode(theirs.convert_tokens_to_ids(plain)) == gpt2_chinese_text(plain)


@pytest.mark.parametrize("stop", ["\n", "[SEP]", "曲\n", "曲[SEP]新"])
def test_a_stop_string_may_have_line_feeds_or_line_pieces(stop: str, bert: Tokenizer, theirs: Any) -> None:
    tokens = theirs.convert_tokens_to_ids(["一", "曲", "[SEP]", "新", "词"])
    generator = scripted(bert, tokens)
    options = {**GPT2_CHINESE, "truncate": stop, "max_new_tokens": 5}
    (result,) = generator.generate("酒", **options)
    expected = "一曲\n新词".split(stop.replace("[SEP]", "\n"))[0]
    assert result.text == "".join(generator.stream("酒", **options)) == expected
    assert result.finish_reason == "truncate"


def test_bytes_of_a_character_do_not_wait_beyond_the_end_of_a_line(bpe: Tokenizer) -> None:
    half, end = bpe.encode("今")[:2], bpe.eos_token_id
    decoder = ModelTokenizer(bpe, PieceOptions(line_token_id=end))
    assert decoder.decode([*half, end, *bpe.encode("今")]) == "\ufffd\n今"


def test_windows_and_lyrics_keep_lines_that_the_models_own_piece_ends(bert: Tokenizer) -> None:
    requests = reader(bert, **GPT2_CHINESE)
    assert requests.resolve(window="line").values["window_line_token_id"] == SEP
    assert requests.resolve(preset="lyric").values["window_line_token_id"] == SEP
    assert requests.resolve(preset="novel").values["window_line_token_id"] == -1
    a, b = bert.encode("一曲"), bert.encode("新词")
    assert encode(requests, "一曲\n\n新词", preset="lyric") == [MASK, *a, SEP, *b, SEP]
    assert encode(requests, "[MASK]一曲\n新词[CLS]", preset="lyric") == [MASK, *a, SEP, *b, CLS, SEP]
    assert encode(requests, "一曲\n新词", preset="novel") == [MASK, *a, SEP, *b]


ENDS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "the model's": ({"eos_token_id": SEP}, {}, (SEP,)),
    "not that of a line": ({"eos_token_id": SEP}, {"line_token_id": SEP}, ()),
    "one of several": ({"eos_token_id": [SEP, CLS]}, {"line_token_id": SEP}, (CLS,)),
    "that of a line, asked for": (
        {"eos_token_id": CLS, "line_token_id": SEP},
        {"eos_token_id": SEP},
        (SEP,),
    ),
    "no line any more": ({"eos_token_id": SEP, "line_token_id": SEP}, {"line_token_id": -1}, (SEP,)),
    "none": ({}, {}, ()),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_line_is_not_that_of_the_text(name: str, bert: Tokenizer) -> None:
    defaults, options, ends = ENDS[name]
    requests = reader(bert, **defaults)
    config = requests.resolve(**options)
    assert config.values["eos_token_id"] == ends
    assert [note.split(":")[0] for note in requests.general_notes(config)] == (
        [] if ends else ["the model names no end of a text"]
    )
    assert requests.general_notes(requests.resolve(**{**options, "eos_token_id": -1})) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start_token_ids": "[MASK]"}, "start_token_ids is '.MASK.': expected a whole number"),
        ({"start_token_ids": [4, 500]}, r"start_token_ids: 500 is outside the vocabulary \(0 to 75\)"),
        ({"start_token_ids": [-2]}, "start_token_ids is -2: expected"),
        ({"line_token_id": 76}, r"line_token_id: 76 is outside the vocabulary \(0 to 75\)"),
        ({"line_token_id": [3]}, "line_token_id is .3.: expected a whole number"),
        ({"line_token_id": -2}, "line_token_id is -2: expected"),
        ({"special_pieces": "yes"}, "special_pieces is 'yes': expected True or False"),
        ({"special_pieces": 1}, "special_pieces is 1: expected True or False"),
        ({"start_tokens": [3]}, "unknown option 'start_tokens': did you mean 'start_token_ids'"),
    ],
)
def test_a_piece_that_cannot_be_is_refused_in_one_line(options: Any, words: str, bert: Tokenizer) -> None:
    with pytest.raises(OptionError, match=words) as error:
        reader(bert).resolve(**options)
    assert "\n" not in str(error.value)


def test_a_prompt_that_nothing_stands_in_front_of_needs_tokens(bert: Tokenizer, bpe: Tokenizer) -> None:
    for tokenizer in (bert, bpe):
        for prompt in ("", []):
            with pytest.raises(TokenizerError, match="the prompt has no tokens, and start_token_ids has none"):
                encode(reader(tokenizer), prompt, start_token_ids=-1)


@pytest.mark.parametrize("kind", LIBRARY_TOKENIZERS)
def test_lines_and_beginnings_of_any_vocabulary_are_those_of_its_library(kind: str, tmp_path: Path) -> None:
    """Each line by itself, as the library encodes and decodes it; with an end of a text, or without one."""
    backend = LIBRARY_TOKENIZERS[kind]()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    first, second = (backend.encode(text, add_special_tokens=False).ids for text in ("春花", "hello 秋月"))
    start, line = 5, max({*range(backend.get_vocab_size())} - {*first, *second})
    requests = reader(tokenizer, line_token_id=line, start_token_ids=[start, start])
    assert encode(requests, "春花\nhello 秋月\n") == [start, start, *first, line, *second, line]
    tokens = [line, *first, line, line, *second]
    expected = f"\n{tokenizer.decode(first)}\n\n{tokenizer.decode(second)}"
    generator = scripted(tokenizer, tokens)
    options: dict[str, Any] = {"line_token_id": line, "max_new_tokens": len(tokens), "eos_token_id": -1}
    (result,) = generator.generate("春", **options)
    assert result.text == "".join(generator.stream("春", **options)) == expected


def test_a_vocabulary_without_an_end_can_be_generated_with(bert: Tokenizer, theirs: Any) -> None:
    tokenizer: Any = copy.copy(bert)
    tokenizer.eos_token_id = None
    tokens = theirs.convert_tokens_to_ids(["一", "[SEP]", "曲"])
    generator = scripted(tokenizer, tokens)
    for preset in (None, "novel"):
        (result,) = generator.generate("酒", preset=preset, max_new_tokens=3)
        assert (result.text, result.finish_reason) == ("一[SEP]曲", "length")
    with pytest.raises(OptionError, match="preset lyric: the model has nothing that ends a line: give line_token_id"):
        generator.generate("酒", preset="lyric")
    (result,) = generator.generate("酒", preset="lyric", line_token_id=SEP, max_new_tokens=3)
    assert result.text == "一\n曲"
