"""Pieces that were added to a vocabulary and have a part: the end of a text, padding, what begins one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from tests.helpers.transformers_tokenizers import bert, bpe
from tests.tokenization.test_byte_bpe import END
from tokenization import load_tokenizer

DECLARED: dict[str, dict[str, str]] = {
    "an end": {"eos_token": "[EOS]"},
    "an end and a beginning": {"eos_token": "<|完|>", "bos_token": "<|始|>"},
    "padding": {"pad_token": "<pad>"},
    "a start": {"cls_token": "[起]"},
    "an end in place of the usual one": {"sep_token": "[END]", "eos_token": "[END]"},
    "an end that is a piece already": {"eos_token": "[MASK]"},
}


def as_transformers_4(tokenizer: Any, folder: Path, vocabulary: Path) -> None:
    """Write the files that transformers 4 saved, without the library's."""
    (folder / "tokenizer.json").unlink()
    shutil.copy(vocabulary, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    added = {str(i): {"content": t.content, "special": t.special} for i, t in tokenizer.added_tokens_decoder.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": added}))


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("case", DECLARED)
def test_a_declared_piece_of_bert_has_its_part_though_it_was_added(case: str, form: str, tmp_path: Path) -> None:
    theirs = bert(tmp_path / "own")
    theirs.add_special_tokens(DECLARED[case])
    theirs.save_pretrained(tmp_path / "saved")
    if form == "vocab.txt":
        as_transformers_4(theirs, tmp_path / "saved", tmp_path / "own" / "vocab.txt")
    ours = load_tokenizer(tmp_path / "saved")
    assert ours.eos_token_id == (theirs.eos_token_id if theirs.eos_token_id is not None else theirs.sep_token_id)
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.start_token_ids == (theirs.cls_token_id,)
    assert ours.encode("今天", append_eod=True)[-1] == ours.eos_token_id
    for piece in DECLARED[case].values():
        assert ours.encode_prompt(f"今{piece}")[-1] == theirs.convert_tokens_to_ids(piece)


def test_a_declared_piece_of_a_byte_vocabulary_has_its_part(tmp_path: Path) -> None:
    theirs = bpe(tmp_path / "own")
    theirs.add_special_tokens({"eos_token": "[EOS]", "pad_token": "[空]"})
    theirs.save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved")
    assert (ours.eos_token_id, ours.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)


NAMES = ("<unk>", "<pad>", "<s>", "</s>", "<mask>", "[SEP]")
PROMPTS = ("春<s>花", "<mask>春", "春</s>", "[SEP]春花<unk>", "<pad>春")


def write_bpe(folder: Path, added: list[str]) -> Any:
    """A BPE of characters in which the pieces of ``NAMES`` are there, some of them ``added``."""
    pieces = [*NAMES, *"春花秋月sepunkmadSEP<>[]/"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Backend(BPE(vocabulary, [], unk_token="<unk>"))
    backend.add_special_tokens(added)
    backend.save(str(folder / "tokenizer.json"))
    return backend


@pytest.mark.parametrize("added", [[], ["<s>"], ["</s>", "<unk>"], ["[SEP]"], list(NAMES)], ids=len)
def test_pieces_of_a_tokenizer_json_are_special_in_prompts_only_if_it_says_so(added: list[str], tmp_path: Path) -> None:
    backend = write_bpe(tmp_path, added)
    ours = load_tokenizer(tmp_path)
    assert set(ours.special_pieces) == set(added)
    for prompt in PROMPTS:
        assert ours.encode_prompt(prompt) == backend.encode(prompt).ids
    assert (ours.eos_token_id, ours.pad_token_id) == (3, 1)
    assert ours.decode([6, 1, 1]) == "春"


def test_pieces_of_a_byte_vocabulary_that_declares_some_are_special_only_if_declared(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs = bpe(tmp_path / "own")
    vocabulary = {**theirs.get_vocab(), "<mask>": len(theirs), "[BOS]": len(theirs) + 1}
    (tmp_path / "own" / "vocab.json").write_text(json.dumps(vocabulary))
    assert {"<mask>", "[BOS]", END} == {*load_tokenizer(tmp_path / "own").special_pieces}
    (tmp_path / "own" / "tokenizer_config.json").write_text(
        '{"bos_token": "[BOS]", "tokenizer_class": "GPT2Tokenizer"}'
    )
    ours, theirs = load_tokenizer(tmp_path / "own"), AutoTokenizer.from_pretrained(tmp_path / "own")
    for prompt in ("hello<mask>", "[BOS]hello", f"<mask>{END}"):
        assert ours.encode_prompt(prompt) == theirs.encode(prompt, add_special_tokens=False)
