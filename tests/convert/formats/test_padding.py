"""convert/formats/padding.py: rows that pad a vocabulary are left out of checkpoints of every format."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.checkpoint import Checkpoint, CheckpointAdapter, CheckpointInfo
from convert.conversion import to_checkpoint
from convert.formats.padding import (
    padding_note,
    rows_without_text,
    tokens_within,
    trim_to_tokenizer,
    trim_vocabulary,
    unused_rows_note,
)
from convert.formats.registry import CheckpointSpec, open_checkpoint
from support.errors import CheckpointError
from tests.helpers.huggingface import random_model
from tests.helpers.in_memory import InMemory
from tests.helpers.small_vocabularies import write_tokenizer
from tf_model.config import GPT2Config
from tokenization import load_tokenizer
from tokenization.special_tokens import NO_TOKENS, SpecialTokens

ROWS = 112
CONFIG = GPT2Config(vocab_size=ROWS, n_positions=20, n_embd=24, n_layer=2, n_head=4)
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)
MODEL = InMemory(CONFIG)


def with_rows(rows: int, **info: Any) -> Checkpoint:
    """A model of so many rows that nobody reads."""
    small = InMemory(dataclasses.replace(CONFIG, vocab_size=8))
    config = dataclasses.replace(CONFIG, vocab_size=rows)
    return CheckpointAdapter(small, config=config, info=CheckpointInfo("training", **info))


def assert_is_beginning_of(found: Checkpoint, whole: InMemory, rows: int) -> None:
    assert found.config == dataclasses.replace(whole.config, vocab_size=rows)
    for name, shape in found.config.tensor_shapes().items():
        for buffer in (None, np.empty(ROWS * 24 * 4, np.uint8), np.empty(rows * 24 * 4, np.uint8)):
            value = found.read(name, np.dtype(np.float32), None if value_too_large(shape, buffer) else buffer)
            assert value.shape == shape
            assert value.flags.c_contiguous
            assert np.array_equal(value, whole.weights[name][: shape[0]]), name


def value_too_large(shape: tuple[int, ...], buffer: np.ndarray | None) -> bool:
    return buffer is not None and int(np.prod(shape)) * 4 > buffer.nbytes


WRITTEN: dict[str, tuple[InMemory, str, dict[str, Any], dict[str, Any]]] = {
    "cpm, one rank": (MODEL, "megatron", {"tensor_parallel": 1}, {"heads": 4}),
    "cpm, four ranks": (MODEL, "megatron", {"tensor_parallel": 4}, {"heads": 4}),
    "megatron-lm": (MODEL, "megatron-lm", {"tensor_parallel": 2, "make_vocab_size_divisible_by": 56}, {}),
    "megatron-lm, untied": (
        InMemory(UNTIED),
        "megatron-lm",
        {"tensor_parallel": 2, "make_vocab_size_divisible_by": 56},
        {},
    ),
    "huggingface": (MODEL, "huggingface", {}, {}),
    "huggingface, untied": (InMemory(UNTIED), "huggingface", {}, {}),
    "uer": (MODEL, "uer", {}, {"uer_layer_norm": "standard"}),
    "openai-tf1": (MODEL, "openai-tf1", {}, {}),
}


@pytest.mark.parametrize("case", WRITTEN)
@pytest.mark.parametrize("rows", [1, 97, 111])
def test_a_checkpoint_of_every_format_is_read_without_its_last_rows(case: str, rows: int, tmp_path: Path) -> None:
    model, format, options, reading = WRITTEN[case]
    uer = {"uer_layer_norm": "standard"} if format == "uer" else {}
    to_checkpoint(model, tmp_path / "c", format=format, options={**options, **uer})
    found = open_checkpoint(tmp_path / "c", vocab_size=rows, **reading)
    assert_is_beginning_of(found, model, rows)
    assert found.info.details["padded_vocab_size"] == ROWS
    left_out = f"{ROWS - rows} row{'s' * (ROWS - rows > 1)} of {ROWS} of the vocabulary"
    assert [note for note in found.info.notes if left_out in note and f"--vocab-size {rows}" in note]
    spec = found.info.source
    assert spec is not None
    assert CheckpointSpec.from_dict(spec.to_dict()).open().config == found.config


@pytest.mark.parametrize("rows", [-3, 0, 113, 10**6])
def test_a_size_that_the_files_do_not_have_is_refused_in_one_line(rows: int, tmp_path: Path) -> None:
    to_checkpoint(MODEL, tmp_path / "c", format="huggingface")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "c", vocab_size=rows)
    assert str(caught.value).endswith(f": --vocab-size {rows}: expected 1 to 112, its rows of tokens")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_size_that_it_has_gives_the_checkpoint_itself() -> None:
    assert trim_vocabulary(MODEL, ROWS) is MODEL


def test_a_size_in_args_is_overruled_by_the_users(tmp_path: Path) -> None:
    """Megatron-LM's ``args`` say 110; the files have 128 rows."""
    to_checkpoint(
        InMemory(dataclasses.replace(CONFIG, vocab_size=110)),
        tmp_path / "c",
        format="megatron-lm",
        options={"tensor_parallel": 1},
    )
    sizes = [open_checkpoint(tmp_path / "c", vocab_size=size).config.vocab_size for size in (None, 128, 120, 110, 90)]
    assert sizes == [110, 128, 120, 110, 90]


ENDS: dict[str, tuple[SpecialTokens, SpecialTokens]] = {
    "all inside": (SpecialTokens(3, 2, 1), SpecialTokens(3, 2, 1)),
    "the padding outside": (SpecialTokens(3, 60, 1), SpecialTokens(3, 3, 1)),
    "the end outside": (SpecialTokens(50, 2, 1), SpecialTokens(None, 2, 1)),
    "all outside": (SpecialTokens(50, 50, 50), SpecialTokens(None, 0, None)),
    "several ends": (
        SpecialTokens(4, 4, None, {"eos_token_id": [4, 5, 60], "top_p": 0.5}),
        SpecialTokens(4, 4, None, {"eos_token_id": [4, 5], "top_p": 0.5}),
    ),
    "one of several ends": (
        SpecialTokens(60, 2, None, {"eos_token_id": [60, 5], "max_new_tokens": 99}),
        SpecialTokens(5, 2, None, {"max_new_tokens": 99}),
    ),
    "tokens that never occur": (
        SpecialTokens(4, 2, None, {"suppress_tokens": [7, 70], "window_line_token_id": 61}),
        SpecialTokens(4, 2, None, {"suppress_tokens": [7]}),
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_special_tokens_that_are_left_out_are_none(case: str) -> None:
    tokens, expected = ENDS[case]
    assert tokens_within(tokens, 50) == expected


def test_the_loss_of_the_end_of_a_text_is_said() -> None:
    model = with_rows(60)
    model.tokens = SpecialTokens(55, 55)  # type: ignore[misc]
    trimmed = trim_vocabulary(model, 50)
    assert trimmed.tokens == NO_TOKENS
    assert "the end of a text, id 55, is left out with them: texts end at their length only" in trimmed.info.notes[-1]


@pytest.mark.parametrize(
    ("pieces", "tokens", "rows"),
    [
        (97, NO_TOKENS, 97),
        (97, SpecialTokens(5, 5), 97),
        (97, SpecialTokens(96, 111), 97),
        (97, SpecialTokens(99, 99), 100),
        (97, SpecialTokens(7, 7, None, {"eos_token_id": [7, 104]}), 105),
        (112, NO_TOKENS, 112),
        (500, NO_TOKENS, 112),
    ],
)
def test_rows_behind_the_tokenizers_pieces_and_the_ends_are_left_out(
    pieces: int, tokens: SpecialTokens, rows: int
) -> None:
    trimmed = trim_to_tokenizer(MODEL, pieces, tokens)
    assert trimmed.config.vocab_size == rows
    if rows < ROWS:
        (note,) = trimmed.info.notes
        assert note.endswith(
            f"the tokenizer has {pieces} pieces, the model 112 rows: rows {rows} to 111 are left out, as no text "
            "becomes them; --vocab-size 112 keeps them"
        )


@pytest.mark.parametrize(("pieces", "is_said"), [(3, True), (55, True), (56, False), (111, False)])
def test_a_tokenizer_of_less_than_half_of_the_rows_is_said_to_be_perhaps_another_models(
    pieces: int, is_said: bool
) -> None:
    (note,) = trim_to_tokenizer(MODEL, pieces, NO_TOKENS).info.notes
    assert ("perhaps not the model's tokenizer: --tokenizer PATH gives another" in note) is is_said
    assert ("row 111 is left out" if pieces == 111 else f"rows {pieces} to 111 are left out") in note


def test_a_size_that_the_user_gave_counts_more_than_the_tokenizers() -> None:
    source = CheckpointSpec(Path("a"), vocab_size=ROWS)
    model = CheckpointAdapter(MODEL, info=CheckpointInfo("training", source=source))
    assert trim_to_tokenizer(model, 97, NO_TOKENS) is model
    note = unused_rows_note(model, 97)
    assert note is not None
    assert "the last 15 rows of 112 of the vocabulary, which no text becomes, are kept as --vocab-size 112 says" in note
    assert padding_note(with_rows(50304, source=source)) is None


NOTED = {
    50304: "GPT-2's vocabulary has 50,257 pieces: if it is that, --vocab-size 50257",
    50432: "GPT-2's vocabulary has 50,257 pieces",
    51200: "GPT-2's vocabulary has 50,257 pieces",
    30080: "CPM's vocabulary has 30,000 pieces",
    30208: "CPM's vocabulary has 30,000 pieces",
    21248: "Chinese BERT's vocabulary has 21,128 pieces: if it is that, --vocab-size 21128",
    13376: "GPT2-Chinese's vocabulary has 13,317 pieces",
    32000: "a multiple of 128, and no tokenizer",
}


@pytest.mark.parametrize("rows", NOTED)
def test_a_vocabulary_that_looks_padded_is_noted_with_the_option(rows: int) -> None:
    note = padding_note(with_rows(rows))
    assert note is not None
    for part in (NOTED[rows], f"{rows:,} rows", "--vocab-size"):
        assert part in note


@pytest.mark.parametrize("rows", [50257, 30000, 21128, 13317, 128, 1000, 50300])
def test_a_vocabulary_that_does_not_look_padded_has_no_note(rows: int) -> None:
    assert padding_note(with_rows(rows)) is None


def test_a_copy_keeps_rows_that_a_training_may_need_and_says_so(tmp_path: Path) -> None:
    tokenizer = tmp_path / "t"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("".join(f"{p}\n" for p in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"春江花月夜"]))
    result = to_checkpoint(MODEL, tmp_path / "c", format="huggingface", tokenizer=tokenizer)
    assert open_checkpoint(tmp_path / "c").config.vocab_size == ROWS
    (note,) = [note for note in result.notes if "no text becomes" in note]
    assert "the last 103 rows of 112 of the vocabulary" in note
    assert "--vocab-size 9 leaves them out" in note


def test_rows_between_the_pieces_and_an_end_of_text_behind_them_are_never_drawn(tmp_path: Path) -> None:
    random_model(vocab_size=96, eos_token_id=95, bos_token_id=95).save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    tokenizer = load_tokenizer(write_tokenizer("bert", tmp_path / "bert"))
    tokens = SpecialTokens(eos_token_id=95, pad_token_id=0)
    assert trim_to_tokenizer(checkpoint, tokenizer.vocab_size, tokens).config.vocab_size == 96
    blank = rows_without_text(checkpoint, tokenizer, tokens, is_chosen=False)
    assert blank == tuple(range(tokenizer.vocab_size, 95))
    assert rows_without_text(checkpoint, tokenizer, tokens, is_chosen=True) == ()
