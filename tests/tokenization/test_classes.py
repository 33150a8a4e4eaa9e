"""Classes that ``tokenizer_config.json`` names: those with other ids than ours are never used silently."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from tests.helpers.transformers_tokenizers import bert, bpe
from tokenization import TokenizerError, load_tokenizer

TEXTS = ("hello world", "今天天气 12", "é今12", "He  llo\n天", "12 34")
OTHERS = {
    "vocab.txt": ("JiebaTokenizer", "RoFormerTokenizer", "CpmAntTokenizer", "BertJapaneseTokenizer", "EsmTokenizer",
                  "HerbertTokenizer", "MPNetTokenizer", "XLNetTokenizer", "AlbertTokenizerFast"),
    "merges.txt": ("Qwen2Tokenizer", "GPTNeoXTokenizerFast", "CLIPTokenizer", "MyTokenizer", "BPETokenizer"),
}  # fmt: skip
SAME = {
    "vocab.txt": ("BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "DistilBertTokenizer", "LayoutLMTokenizer"),
    "merges.txt": ("GPT2Tokenizer", "GPT2TokenizerFast", "RobertaTokenizer", "BartTokenizer", "CodeGenTokenizer"),
}
MAKERS = {"vocab.txt": bert, "merges.txt": bpe}


def write(folder: Path, file: str, **config: object) -> Path:
    MAKERS[file](folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in SAME for name in SAME[file]])
def test_a_class_that_is_read_has_the_ids_that_transformers_gives(file: str, name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write(tmp_path / "own", file, tokenizer_class=name)
    ours = load_tokenizer(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoTokenizer.from_pretrained(folder)
    assert ours.notes == ()
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in OTHERS for name in OTHERS[file]])
def test_a_class_with_other_ids_is_refused_by_its_name(file: str, name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "own", file, tokenizer_class=name)
    for path in (folder, folder / file):
        with pytest.raises(TokenizerError, match=f"of the class {name}.*tokenizer.json") as error:
            load_tokenizer(path)
        assert len(str(error.value).replace(str(tmp_path), "")) < 300
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("own", [["tokenization_my.MyTokenizer", None], "my.MyTokenizer", [None, "my.MyTokenizer"]])
def test_somebodys_own_class_is_refused_without_running_it(own: object, tmp_path: Path) -> None:
    folder = write(tmp_path / "own", "vocab.txt", auto_map={"AutoTokenizer": own})
    with pytest.raises(TokenizerError, match="of the class MyTokenizer"):
        load_tokenizer(folder)


def test_config_json_names_the_class_where_the_tokenizers_own_file_does_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "own", "vocab.txt", do_lower_case=False)
    (folder / "config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(TokenizerError, match="of the class BertJapaneseTokenizer"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert load_tokenizer(folder).notes == ()


def test_a_class_that_has_no_such_file_is_wrong_and_a_note_says_so(tmp_path: Path) -> None:
    (note,) = load_tokenizer(write(tmp_path / "own", "vocab.txt", tokenizer_class="GPT2Tokenizer")).notes
    assert note.endswith(
        "vocab.txt: read as BERT does, though tokenizer_config.json says GPT2Tokenizer, which has other files"
    )


def test_a_tokenizer_json_is_read_whatever_its_class_is(tmp_path: Path) -> None:
    theirs = bert(tmp_path / "own")
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer_config.json").write_text('{"tokenizer_class": "RoFormerTokenizer"}')
    ours = load_tokenizer(tmp_path / "saved")
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
