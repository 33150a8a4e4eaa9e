"""``tokenizer.json`` as transformers writes it, against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from convert.formats.tokenizer_files import save_for_huggingface, save_for_openai, save_for_uer
from tests.helpers.transformers_tokenizers import MERGES, bert, bpe
from tokenization import BertTokenizer, ByteBPETokenizer, CPMTokenizer, TokenizerError, load_tokenizer

TEXTS = [
    "",
    "Hello hello world",
    "今天12 hello é e\u0301",
    "hello\n\n  hello",
    "[SEP] <|endoftext|>",
]


MAKERS: dict[str, Callable[[Path], Any]] = {
    "bpe": bpe,
    "bpe, a space in front": lambda folder: bpe(folder, add_prefix_space=True),
    "bert": bert,
    "bert, capital letters": lambda folder: bert(folder, do_lower_case=False),
    "bert, accents": lambda folder: bert(folder, strip_accents=False, tokenize_chinese_chars=False),
}


def alone(theirs: Any, folder: Path) -> Path:
    """What transformers 5 saves; version 4 wrote the vocabulary's own files, too."""
    theirs.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("kind", MAKERS)
def test_ids_and_texts_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = MAKERS[kind](tmp_path / "own")
    ours = load_tokenizer(alone(theirs, tmp_path / "saved"))
    same = load_tokenizer(tmp_path / "own") if "," not in kind else None
    assert ours.vocab_size == len(theirs)
    assert ours.eos_token_id == (theirs.eos_token_id if kind.startswith("bpe") else theirs.sep_token_id)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        if same is not None:
            assert (same.encode(text), same.decode(ids)) == (ids, ours.decode(ids))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_saved_tokenizer_loads_in_each_program(kind: str, tmp_path: Path) -> None:
    theirs = MAKERS[kind](tmp_path / "own")
    ours = load_tokenizer(alone(theirs, tmp_path / "saved"))
    for name, save in (("hf", save_for_huggingface), ("openai", save_for_openai), ("uer", save_for_uer)):
        (tmp_path / name).mkdir()
        assert all(file.is_file() for file in save(ours, tmp_path / name))
        again = load_tokenizer(tmp_path / name)
        if (name, kind) != ("openai", "bpe, a space in front"):  # which OpenAI's files cannot say
            assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in TEXTS:
        assert auto.encode(text, add_special_tokens=False, split_special_tokens=True) == ours.encode(text)
    wanted = {"openai": ("encoder.json", "vocab.bpe")} if kind.startswith("bpe") else {"uer": ("vocab.txt",)}
    assert all((tmp_path / folder / name).is_file() for folder, names in wanted.items() for name in names)


def test_merges_alone_get_their_vocabulary(tmp_path: Path) -> None:
    """OpenAI's vocabulary follows from the merges; other programs want the file."""
    bpe(tmp_path / "own")
    (tmp_path / "own" / "vocab.json").unlink()
    ours = ByteBPETokenizer(tmp_path / "own")
    for name, save in (("hf", save_for_huggingface), ("openai", save_for_openai)):
        (tmp_path / name).mkdir()
        save(ours, tmp_path / name)
        assert ByteBPETokenizer(tmp_path / name).encode("hello world") == ours.encode("hello world")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert auto.encode("hello world") == ours.encode("hello world")


def test_older_merges_are_strings(tmp_path: Path) -> None:
    folder = alone(bpe(tmp_path / "own"), tmp_path / "saved")
    expected = load_tokenizer(folder).encode("hello world")
    change(folder, lambda values: values["model"].update(merges=MERGES))
    assert load_tokenizer(folder).encode("hello world") == expected


def test_tokenizer_json_goes_before_a_text(tmp_path: Path) -> None:
    """The only ``.txt`` of a folder is a vocabulary of BERT, but not where there is a better file."""
    folder = alone(bpe(tmp_path / "own"), tmp_path / "saved")
    (folder / "LICENSE.txt").write_text("MIT\n")
    assert isinstance(load_tokenizer(folder), ByteBPETokenizer)
    folder = alone(bert(tmp_path / "words"), tmp_path / "saved words")
    assert isinstance(load_tokenizer(folder / "tokenizer.json"), BertTokenizer)


@pytest.mark.parametrize("kind", ["bpe", "bert"])
def test_added_tokens_are_part_of_the_vocabulary(kind: str, tmp_path: Path) -> None:
    """Beside the files that transformers 4 wrote, and inside of the one of version 5."""
    theirs = MAKERS[kind](tmp_path / "own")
    theirs.add_tokens(["[VERSE]", "<line>"])
    alone(theirs, tmp_path / "saved")
    size = load_tokenizer(tmp_path / "own").vocab_size
    (tmp_path / "own" / "added_tokens.json").write_text(json.dumps({"[VERSE]": size, "<line>": size + 1}))
    (tmp_path / "copy").mkdir()
    for folder in (tmp_path / "own", tmp_path / "saved"):
        ours = load_tokenizer(folder)
        assert ours.vocab_size == len(theirs) == size + 2
        assert ours.decode([size, size + 1]).replace(" ", "") == "[VERSE]<line>"
        assert ours.encode("[VERSE]hello") == load_tokenizer(tmp_path / "own").encode("[VERSE]hello")
        ours.save(tmp_path / "copy")
        assert load_tokenizer(tmp_path / "copy").vocab_size == size + 2
    (tmp_path / "own" / "added_tokens.json").write_text(json.dumps({"[VERSE]": 3}))
    with pytest.raises(TokenizerError, match=r"added_tokens\.json"):
        load_tokenizer(tmp_path / "own")


def test_a_config_adds_what_it_says(tmp_path: Path) -> None:
    """Of a folder of transformers 4: a space in front, and what only transformers knows, which is kept."""
    theirs = bpe(tmp_path / "own", add_prefix_space=True)
    config = {"add_prefix_space": True, "model_max_length": 77, "pad_token": "!", "tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path / "own")
    assert [ours.encode(text) for text in TEXTS] == [
        theirs.encode(text, add_special_tokens=False, split_special_tokens=True) for text in TEXTS
    ]
    (tmp_path / "hf").mkdir()
    save_for_huggingface(ours, tmp_path / "hf")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (auto.encode("hello"), auto.model_max_length, auto.pad_token) == (ours.encode("hello"), 77, "!")
    (tmp_path / "own" / "tokenizer_config.json").write_text('{"add_prefix_space": 1}')
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: add_prefix_space: expected true or false"):
        load_tokenizer(tmp_path / "own")


def test_transformers_loads_cpms_pieces(demo: Path, tmp_path: Path) -> None:
    """Ids become CPM's text; a text that is not pieces is an error, not other ids than CPM's."""
    ours = CPMTokenizer(demo / "tokenizer")
    assert len(save_for_huggingface(ours, tmp_path)) == len(list(tmp_path.iterdir()))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = ours.encode("浣溪沙\n一曲新词酒一杯, 去年天气旧亭台。\n夕阳西下")
    assert auto.decode(ids) == ours.decode(ids)
    assert auto.encode(" ".join(auto.convert_ids_to_tokens(ids)), add_special_tokens=False) == ids
    assert (auto.eos_token_id, auto.pad_token_id, len(auto)) == (7, 5, ours.vocab_size)
    assert auto.convert_ids_to_tokens(list(range(ours.vocab_size))) == ours.pieces
    with pytest.raises(Exception, match="WordLevel error"):
        auto.encode("一曲新词酒一杯")
    assert isinstance(load_tokenizer(tmp_path), CPMTokenizer)


def change(folder: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    how(values)
    (folder / "tokenizer.json").write_text(json.dumps(values), "utf-8")


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "a type of model that is not its own": ("bpe", lambda v: v["model"].update(type="Unigram"), ""),
    "no model": ("bpe", lambda v: v.pop("model"), "Model missing"),
    "model is a list": ("bpe", lambda v: v.update(model=[1]), ""),
    "unknown splitting": ("bpe", lambda v: v.update(pre_tokenizer={"type": "Thulac"}), ""),
    "id is text": ("bpe", lambda v: v["model"]["vocab"].update(he="0"), ""),
    "added is none": ("bpe", lambda v: v["added_tokens"].append({}), ""),
    "no merges": ("bpe", lambda v: v["model"].pop("merges"), ""),
    "merge of three": ("bpe", lambda v: v["model"]["merges"].append(["a", "b", "c"]), ""),
    "merge of nothing known": ("bpe", lambda v: v["model"]["merges"].append(["a", "b"]), "`ab` out of vocabulary"),
    "no pieces": ("bpe", lambda v: (v["model"].update(vocab={}, merges=[]), v.update(added_tokens=[])), "pieces"),
    "lowercase is text": ("bert", lambda v: v["normalizer"].update(lowercase="yes"), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_line(case: str, tmp_path: Path) -> None:
    kind, how, words = BROKEN[case]
    folder = alone(MAKERS[kind](tmp_path / "own"), tmp_path / "saved")
    change(folder, how)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder)
    assert words in str(caught.value)
    assert str(folder / "tokenizer.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
