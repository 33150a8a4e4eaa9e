"""Which tokenizer goes with a checkpoint: an own one never stops a conversion, a given one has to be right."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert import open_checkpoint, to_checkpoint
from convert.checkpoint import Checkpoint
from convert.formats.tokenizer_files import tokenizer_for, tokens_for
from tests.helpers.huggingface import random_model
from tests.helpers.library_tokenizers import LIBRARY_TOKENIZERS
from tests.helpers.small_vocabularies import write_tokenizer
from tests.helpers.transformers_tokenizers import bert
from tokenization import TokenizerError, load_tokenizer

ROWS = 300


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    random_model(vocab_size=ROWS, n_positions=8, n_embd=8, n_layer=1, n_head=2).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    shutil.copytree(weights, own := tmp_path / "own")
    return own


def words_of_chinese(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "人生", "自古", "谁无", "丹心", "人", "生"]
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")


def too_many(folder: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(chr(0x4E00 + index) for index in range(ROWS))]
    (folder / "vocab.txt").write_text("\n".join(pieces), "utf-8")


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "words of Chinese": (words_of_chinese, "Chinese words"),
    "more pieces than rows": (too_many, "304 pieces, but the model has 300: not its tokenizer"),
    "a damaged tokenizer.json": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json: not a file of"),
    "an unknown kind": (
        lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "Jieba"}, "added_tokens": []}'),
        "tokenizer.json: not a file of",
    ),
    "a model that is none": (lambda f: (f / "spiece.model").write_bytes(b"\nx"), "not a SentencePiece model"),
    "no unknown piece": (lambda f: (f / "vocab.txt").write_text("a\nb\n"), r"none of its 2 pieces is [UNK] or <unk>"),
    "merges without their pieces": (
        lambda f: [(f / "merges.txt").write_text("a b\n"), (f / "vocab.json").write_text("{}")],
        "not a byte-level vocabulary",
    ),
    "bytes that are no text": (lambda f: (f / "vocab.txt").write_bytes(b"[UNK]\n\xff\n"), "not UTF-8"),
    "a class of somebody's own": (
        lambda f: [write_bert(f), (f / "tokenizer_config.json").write_text('{"tokenizer_class": "JiebaTokenizer"}')],
        "of the class JiebaTokenizer",
    ),
    "a file that grows without end": (
        lambda f: (f / "tokenizer.json").write_text(json.dumps(growing()), "utf-8"),
        "characters of one character",
    ),
    "a damaged declaration": (
        lambda f: [write_bert(f), (f / "tokenizer_config.json").write_text("[]")],
        "not a JSON object",
    ),
}


def growing() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(LIBRARY_TOKENIZERS["WordLevel of characters"]().to_str())
    step = {"type": "Replace", "pattern": {"String": "生"}, "content": "生生"}
    return {**values, "normalizer": {"type": "Sequence", "normalizers": [step] * 45}}


def write_bert(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"人生自古"]), "utf-8")


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_own_tokenizer_that_cannot_be_used_is_a_note_and_a_given_one_an_error(case: str, folder: Path) -> None:
    break_it, words = UNUSABLE[case]
    break_it(folder)
    checkpoint = open_checkpoint(folder)
    tokenizer, notes = tokenizer_for(None, checkpoint)
    assert tokenizer is None
    (note,) = notes
    assert words in note
    assert note.endswith(": converted without it, for token ids only; --tokenizer PATH gives another")
    assert "\n" not in note
    with pytest.raises(TokenizerError) as error:
        tokenizer_for(folder, checkpoint)
    assert words in str(error.value)


def test_weights_are_written_without_a_tokenizer_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    words_of_chinese(folder)
    result = to_checkpoint(folder, tmp_path / "out", format="huggingface")
    assert sum("Chinese words" in note for note in result.notes) == 1
    GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "vocab.txt").exists()
    with pytest.raises(TokenizerError, match="Chinese words"):
        to_checkpoint(folder, tmp_path / "again", format="huggingface", tokenizer=folder)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", LIBRARY_TOKENIZERS)
def test_tokenizers_of_the_library_go_with_the_weights(kind: str, folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    LIBRARY_TOKENIZERS[kind]().save(str(folder / "tokenizer.json"))
    result = to_checkpoint(folder, tmp_path / "out", format="huggingface")
    assert not any("converted without it" in note for note in result.notes)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("春花秋月何时了", " 小楼\n昨夜 hello world, ab", "abc"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        assert load_tokenizer(tmp_path / "out").encode(text) == ours.encode(text)
    names = {"eos_token_id": ours.eos_token_id, "unk_token_id": ours.unknown_token_id}
    assert {name: getattr(theirs, name) for name in names} == names


def test_of_two_tokenizers_a_note_says_which_was_taken(folder: Path) -> None:
    bert(folder / "words")
    write_bert(folder)
    made = LIBRARY_TOKENIZERS["WordLevel of characters"]()
    made.save(str(folder / "tokenizer.json"))
    checkpoint = open_checkpoint(folder)
    tokenizer, (note,) = tokenizer_for(None, checkpoint)
    assert tokenizer is not None
    assert tokenizer.vocab_size == made.get_vocab_size()
    assert note.endswith(
        f"tokenizer.json was taken, as transformers does; --tokenizer {folder}/vocab.txt takes the other"
    )
    assert tokenizer_for(folder / "vocab.txt", checkpoint)[1] == ()


def test_two_forms_of_one_tokenizer_are_no_news(folder: Path) -> None:
    theirs = bert(folder / "own")
    theirs.save_pretrained(folder)
    shutil.copy(folder / "own" / "vocab.txt", folder / "vocab.txt")
    assert (folder / "tokenizer.json").is_file()
    assert tokenizer_for(None, open_checkpoint(folder))[1] == ()


def with_end(checkpoint: Checkpoint, end: int | None) -> Checkpoint:
    assert checkpoint.tokens is not None
    checkpoint.tokens = dataclasses.replace(checkpoint.tokens, eos_token_id=end)  # type: ignore[misc]
    return checkpoint


def test_an_end_of_a_text_that_is_no_piece_is_not_taken(folder: Path) -> None:
    """transformers writes 50256 into config.json whatever the vocabulary is; some models have that many rows."""
    write_bert(folder)
    checkpoint = with_end(open_checkpoint(folder), 50256)
    tokenizer, notes = tokenizer_for(None, checkpoint)
    assert tokens_for(None, tokenizer, checkpoint).eos_token_id == 3
    assert [note for note in notes if "50256, is no piece" in note]
    for end in (7, 200):  # a training may have added one
        named = with_end(open_checkpoint(folder), end)
        tokenizer, notes = tokenizer_for(None, named)
        assert (tokens_for(None, tokenizer, named).eos_token_id, notes) == (end, ())


def test_a_vocabulary_without_an_end_is_said_to_have_none(folder: Path, tmp_path: Path) -> None:
    bare = open_checkpoint(folder)
    for place in (tmp_path, folder):
        LIBRARY_TOKENIZERS["BPE with ends of words"]().save(str(place / "tokenizer.json"))
    checkpoint = open_checkpoint(folder)
    for given in (None, folder, tmp_path / "tokenizer.json"):
        assert tokenizer_for(given, checkpoint)[1] == ()  # config.json names one
    for given, source in ((tmp_path / "tokenizer.json", bare), (None, with_end(open_checkpoint(folder), None))):
        tokenizer, (note,) = tokenizer_for(given, source)
        assert note.endswith("the vocabulary has no end of a text: texts end at their length only")
        assert tokens_for(given, tokenizer, source).eos_token_id is None


def test_a_file_may_be_given(folder: Path, tmp_path: Path) -> None:
    files = write_tokenizer("bpe", tmp_path / "bpe")
    for file in sorted(files.iterdir()):
        tokenizer, notes = tokenizer_for(file, open_checkpoint(folder))
        assert tokenizer is not None
        assert (tokenizer.decode(tokenizer.encode("hello 今")), notes) == ("hello 今", ())
    (files / "config.json").write_text(json.dumps({}))
    with pytest.raises(TokenizerError):
        tokenizer_for(files / "config.json", open_checkpoint(folder))


@pytest.mark.parametrize("kind", ["cpm", "cpm-transformers"])
def test_the_kind_of_cpms_tokenizer_is_kept_in_what_is_written(kind: str, demo: Path, tmp_path: Path) -> None:
    source = next((demo / "tokenizer").glob("*.model"))
    size = load_tokenizer(source).vocab_size
    folder = tmp_path / "hub"
    random_model(vocab_size=size, n_positions=8, n_embd=8, n_layer=1, n_head=2).save_pretrained(folder)
    shutil.copy(source, folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CpmTokenizer"}')
    text = "一曲 新词\n酒一杯"
    expected = load_tokenizer(folder, kind).encode(text)
    result = to_checkpoint(folder, tmp_path / "out", format="huggingface", tokenizer_kind=kind)
    assert load_tokenizer(tmp_path / "out").encode(text) == expected
    assert not [note for note in result.notes if "--tokenizer-kind" in note]
    by_default = to_checkpoint(folder, tmp_path / "default", format="huggingface")
    assert sum("--tokenizer-kind cpm reads it" in note for note in by_default.notes) == 1


def test_a_kind_that_is_asked_for_has_to_be_there(folder: Path) -> None:
    with pytest.raises(TokenizerError, match="there is no tokenizer next to the weights"):
        tokenizer_for(None, open_checkpoint(folder), "cpm")
    write_bert(folder)
    with pytest.raises(TokenizerError, match="expected one SentencePiece model of CPM"):
        tokenizer_for(None, open_checkpoint(folder), "cpm")
