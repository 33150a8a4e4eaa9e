"""SentencePiece models of anybody's, against the sentencepiece library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from convert.formats.tokenizer_files import save_for_huggingface, save_for_openai, save_for_uer
from tokenization import CPMTokenizer, SentencePieceTokenizer, TokenizerError, decode_stream, load_tokenizer

LETTERS = "落霞与孤鹜齐飞秋水共长天一色"
CORPUS = [LETTERS, LETTERS[::-1], *(LETTERS[n % 14 :] + " red fish 12 blue fish," for n in range(300))]
TEXTS = ["落霞与孤鹜齐飞", "秋水 共  长天\n一色 red fish", "</s>霞<line>天<pad>", "☃ 𠮷 fish", "１２ Ｆish", ""]
MODELS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "vocab_size": 60},
    "unigram": {"model_type": "unigram", "vocab_size": 60},
    "characters": {"model_type": "char", "vocab_size": 60},
    "words": {"model_type": "word", "vocab_size": 20},
    "byte fallback": {"model_type": "bpe", "vocab_size": 320, "byte_fallback": True, "character_coverage": 0.98},
    "padding and own pieces": {
        "model_type": "unigram", "vocab_size": 64, "pad_id": 3, "user_defined_symbols": ["<line>"],
        "control_symbols": ["<title>"],
    },
    "no beginning, no end": {"model_type": "bpe", "vocab_size": 60, "bos_id": -1, "eos_id": -1},
    "as it stands": {
        "model_type": "bpe", "vocab_size": 64, "normalization_rule_name": "identity", "add_dummy_prefix": False,
        "remove_extra_whitespaces": False, "user_defined_symbols": ["\n"],
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spm")
    (folder / "corpus").write_text("\n".join(CORPUS), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus"),
        model_prefix=str(folder / "spiece"),
        minloglevel=2,
        **{"hard_vocab_limit": False, **MODELS[request.param]},
    )
    (folder / "spiece.vocab").unlink()
    return folder / "spiece.model"


def test_ids_are_those_of_sentencepiece(model: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for ours in (load_tokenizer(model), load_tokenizer(model.parent)):
        assert type(ours) is SentencePieceTokenizer
        assert ours.vocab_size == library.get_piece_size()
        assert ours.eos_token_id == (library.eos_id() if library.eos_id() >= 0 else None)
        assert ours.unknown_token_id == library.unk_id()
        for text in TEXTS:
            assert ours.encode(text) == library.encode(text)
            assert ours.decode(library.encode(text)) == library.decode(library.encode(text))

    @given(st.text(alphabet=[*LETTERS, " ", "\n", "r", "☃", "１", "<", "/", "s", ">"], max_size=20))
    def check(text: str) -> None:
        assert ours.encode(text) == library.encode(text)
        assert "".join(decode_stream(ours, library.encode(text))) == library.decode(library.encode(text))

    check()


def test_control_pieces_are_read_in_prompts_only(model: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ours = load_tokenizer(model)
    controls = {library.id_to_piece(i): i for i in range(ours.vocab_size) if library.is_control(i)}
    assert ours.special_pieces == controls
    for piece, index in controls.items():
        prompt = f"落霞{piece}秋水"
        assert ours.encode_prompt(prompt) == [*library.encode("落霞"), index, *library.encode("秋水")]
        assert ours.encode_prompt(prompt, special_pieces=False) == ours.encode(prompt) == library.encode(prompt)
        assert index not in ours.encode(prompt)


def test_random_ids_stream_as_they_decode(model: Path) -> None:
    ours = load_tokenizer(model)

    @given(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    def check(ids: list[int]) -> None:
        assert "".join(decode_stream(ours, ids)) == ours.decode(ids)

    check()


def test_an_end_stays_visible_and_padding_does_not(model: Path) -> None:
    ours = load_tokenizer(model)
    ids = ours.encode("落霞")
    if ours.eos_token_id is None:
        with pytest.raises(TokenizerError, match="no end of a text"):
            ours.encode("落霞", append_eod=True)
        return
    assert ours.decode(ours.encode("落霞", append_eod=True)) == f"{ours.decode(ids)}</s>"
    if ours.pad_token_id != ours.eos_token_id:
        assert ours.decode([*ids, ours.pad_token_id]) == ours.decode(ids)


def test_saved_files_load_in_each_program(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = load_tokenizer(model)
    for save in (save_for_huggingface, save_for_openai, save_for_uer):
        (folder := tmp_path / save.__name__).mkdir()
        save(ours, folder)
        again = load_tokenizer(folder)
        assert type(again) is SentencePieceTokenizer
        assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
        assert (again.eos_token_id, again.pad_token_id) == (ours.eos_token_id, ours.pad_token_id)
    if "\u2581red" in ours.pieces and ours.eos_token_id is not None and "\n" not in ours.pieces:  # not of words
        theirs = AutoTokenizer.from_pretrained(tmp_path / "save_for_huggingface")
        assert theirs.encode(TEXTS[0], add_special_tokens=False) == ours.encode(TEXTS[0])
        assert theirs.eos_token_id == ours.eos_token_id


def test_added_pieces_and_what_is_declared_count(tmp_path: Path, model: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    size = load_tokenizer(model).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<诗>": size, "<完>": size + 1}))
    config = {"eos_token": "<完>", "additional_special_tokens": ["<诗>"], "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    ours = load_tokenizer(tmp_path)
    assert (ours.vocab_size, ours.eos_token_id) == (size + 2, size + 1)
    plain = load_tokenizer(model)
    assert ours.encode_prompt("<诗>落霞") == [size, *plain.encode("落霞")]
    assert ours.encode("<诗>落霞") == plain.encode("<诗>落霞")
    assert ours.decode([*plain.encode("落霞"), size + 1]) == f"{plain.decode(plain.encode('落霞'))}<完>"
    (tmp_path / "copy").mkdir()
    assert len(ours.save(tmp_path / "copy")) == 3
    assert load_tokenizer(tmp_path / "copy").encode_prompt("<诗>落霞") == ours.encode_prompt("<诗>落霞")


@pytest.mark.parametrize("name", ["XLMRobertaTokenizer", "CamembertTokenizerFast", "MBartTokenizer"])
def test_classes_that_shift_the_ids_are_refused_by_name(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(TokenizerError, match=f"ids are shifted by {name}: save the tokenizer by transformers 5"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    assert type(load_tokenizer(tmp_path)) is SentencePieceTokenizer


def test_cpms_model_is_known_by_its_pieces(demo: Path, tmp_path: Path) -> None:
    source = next((demo / "tokenizer").glob("*.model"))
    for name in ("spiece.model", "encoder.model"):
        (tmp_path / name).write_bytes(source.read_bytes())
        assert type(load_tokenizer(tmp_path)) is type(load_tokenizer(tmp_path / name)) is CPMTokenizer
        (tmp_path / name).unlink()


@pytest.mark.parametrize("content", [b"", b"\n", b"no model", b"\x00" * 100, b"\n" + b"\xff" * 9 + b"\x01"])
def test_what_is_no_model_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    for path in (tmp_path, tmp_path / "spiece.model"):
        with pytest.raises(TokenizerError, match="not a SentencePiece model") as error:
            load_tokenizer(path)
        assert "\n" not in str(error.value)
