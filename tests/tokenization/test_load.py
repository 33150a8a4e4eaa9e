"""Which tokenizer a folder holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from tests.conftest import shared
from tokenization import (
    BertTokenizer,
    ByteBPETokenizer,
    CPMTokenizer,
    Tokenizer,
    TokenizerError,
    has_tokenizer_files,
    load_tokenizer,
)

FILES = {
    CPMTokenizer: "vocab/cpm/chinese_vocab.model",
    BertTokenizer: "vocab/bert-zh/google_zh_vocab.txt",
    ByteBPETokenizer: "vocab/gpt2/merges.txt",
}
kinds = pytest.mark.parametrize("kind", FILES, ids=lambda kind: str(kind.__name__))


@kinds
def test_a_tokenizer_loads_from_its_folder_or_file(kind: type[Tokenizer], tmp_path: Path) -> None:
    file = shared(FILES[kind])
    for path in (file, file.parent, str(file.parent)):
        assert type(load_tokenizer(path)) is kind
    tokenizer = load_tokenizer(file)
    # As in the assets of a SavedModel: beside files that are no tokenizer's.
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text("{}")
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is kind
    assert again.encode("今天天气不错 Hello") == tokenizer.encode("今天天气不错 Hello")


@kinds
def test_all_tokenizers_have_one_interface(kind: type[Tokenizer]) -> None:
    tokenizer = load_tokenizer(shared(FILES[kind]))
    ids = tokenizer.encode("今天天气不错")
    assert tokenizer.encode("今天天气不错", append_eod=True) == [*ids, tokenizer.eos_token_id]
    assert tokenizer.encode_prompt("今天天气不错") == [*tokenizer.start_token_ids, *ids]
    assert tokenizer.decode(ids) == "今天天气不错"
    assert 0 <= tokenizer.pad_token_id < tokenizer.vocab_size
    for text in ("[SEP]", "[PAD]", "<eod>", "<pad>", "<|endoftext|>"):
        special = {tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer.start_token_ids}
        assert not special & set(tokenizer.encode(text))


def test_a_prompt_of_nothing_starts_where_the_model_can() -> None:
    cpm = load_tokenizer(shared("vocab/cpm"))
    for text in ("", "\t", "\u3000"):
        with pytest.raises(TokenizerError, match="prompt has no tokens"):
            cpm.encode_prompt(text)
    for kind in (BertTokenizer, ByteBPETokenizer):
        assert len(load_tokenizer(shared(FILES[kind])).encode_prompt("")) == 1


def test_the_published_folder_of_cpm_loads(tmp_path: Path) -> None:
    """It has an empty merges.txt beside vocab.json: GPT-2's files by their names."""
    shutil.copytree(shared("vocab/cpm"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "merges.txt").touch()
    assert isinstance(load_tokenizer(tmp_path), CPMTokenizer)
    (tmp_path / "chinese_vocab.model").unlink()
    with pytest.raises(TokenizerError, match=r"merges\.txt: expected merges, found none.*\*\.model"):
        load_tokenizer(tmp_path)


def test_vocab_txt_goes_before_another_text(tmp_path: Path) -> None:
    shutil.copy(shared(FILES[BertTokenizer]), tmp_path / "vocab.txt")
    (tmp_path / "readme.txt").touch()
    assert isinstance(load_tokenizer(tmp_path), BertTokenizer)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    wanted = r"expected \*\.model \(CPM, SentencePiece\), tokenizer\.json .*, merges\.txt .*, vocab\.txt \(BERT\)"
    with pytest.raises(TokenizerError, match=f"{wanted}, found none"):
        load_tokenizer(tmp_path)
    (tmp_path / "folder.model").mkdir()
    for name in "abcdef":
        (tmp_path / f"{name}.json").touch()
    with pytest.raises(TokenizerError, match=f"{wanted}, found a.json, b.json, c.json, d.json, e.json, ...$"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"absent: no tokenizer: no such file or folder$"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("vocab.txt", b"", True),
        ("tokenizer.json", b"", True),
        ("spiece.model", b"", True),
        ("mine.model", b"\n\x01", True),
        ("weights.model", b"\x80\x02", False),
        ("vocab_small.txt", b"", True),
        ("bpe_merges.txt", b"", True),
        ("my_tokenizer.json", b'{"model": {}, "added_tokens": []}', True),
        ("vocab.json", b"{}", False),
        ("tokenizer_config.json", b"{}", False),
        ("added_tokens.json", b"{}", False),
        ("requirements.txt", b"torch\n", False),
        ("README.txt", b"[UNK]\n", False),
        ("config.json", b"{}", False),
    ],
)
def test_names_say_whether_a_folder_has_a_tokenizer(name: str, content: bytes, found: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert has_tokenizer_files(tmp_path) is found
    assert not has_tokenizer_files(tmp_path / "absent")


def test_words_that_a_tokenizer_json_never_makes_are_a_note(tmp_path: Path) -> None:
    """The library decides what the file means; a list of pieces alone would be refused."""
    pieces = {"[PAD]": 0, "[UNK]": 1, "人生": 2, "自古": 3, "人": 4}
    backend = Backend(WordPiece(pieces, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("人生") == backend.encode("人生").ids == [4, 1]
    assert "2 of 5 pieces are Chinese words" in tokenizer.notes[0]
