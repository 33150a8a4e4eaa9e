"""Which models can teach another one, and what is said of those that cannot; no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.conversion import to_checkpoint
from support.errors import UserError
from tests.helpers.small_vocabularies import write_tokenizer
from tf_model.config import GPT2Config
from tokenization import load_tokenizer
from tokenization.special_tokens import SpecialTokens
from training.memory import Work, estimate, make_plan
from training.model.new_model import NewModel
from training.model.teacher import open_teacher
from training.setting import SettingError
from training.settings import Settings

LENGTH = 16


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    return write_tokenizer("bert", tmp_path / "vocabulary")


def config(vocabulary: Path, more: int = 0, positions: int = LENGTH) -> GPT2Config:
    size = load_tokenizer(vocabulary).vocab_size + more
    return GPT2Config(vocab_size=size, n_positions=positions, n_embd=8, n_layer=1, n_head=2)


def write_teacher(folder: Path, sizes: GPT2Config, tokenizer: Path | None) -> Path:
    to_checkpoint(NewModel(sizes, seed=1), folder, format="huggingface", tokenizer=tokenizer)
    return folder


def opened(teacher: Path, vocabulary: Path, **settings: Any) -> Any:
    tokenizer = load_tokenizer(vocabulary)
    tokens = SpecialTokens(tokenizer.eos_token_id, tokenizer.pad_token_id)
    student = NewModel(config(vocabulary), 0, tokens, vocabulary)
    return open_teacher(Settings(teacher=teacher, **settings), student, tokenizer, tokens, LENGTH)


def test_a_teacher_may_have_other_sizes_and_rows_that_pad_its_vocabulary(tmp_path: Path, vocabulary: Path) -> None:
    sizes = config(vocabulary, more=7, positions=2 * LENGTH)
    teacher = opened(write_teacher(tmp_path / "teacher", sizes, vocabulary), vocabulary)
    assert teacher.config.vocab_size == sizes.vocab_size - 7
    assert opened(write_teacher(tmp_path / "without tokenizer", config(vocabulary), None), vocabulary) is not None


def other_pieces(folder: Path, vocabulary: Path) -> Path:
    other = write_tokenizer("bert", folder / "other")
    file = other / "vocab.txt"
    file.write_text(file.read_text("utf-8").replace("hello", "hullo"), "utf-8")
    return write_teacher(folder / "teacher", config(vocabulary), other)


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "nothing there": (lambda folder, _: folder / "nothing", "nothing"),
    "fewer tokens": (
        lambda folder, vocabulary: write_teacher(folder / "teacher", config(vocabulary, more=-3), None),
        "expected a teacher of the same vocabulary",
    ),
    "other pieces": (other_pieces, "its tokenizer has other pieces"),
    "fewer positions": (
        lambda folder, vocabulary: write_teacher(folder / "teacher", config(vocabulary, positions=12), None),
        "has 12 positions, rows have 16 tokens: give --length 12",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_teach_is_said_in_one_line(case: str, tmp_path: Path, vocabulary: Path) -> None:
    write, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        opened(write(tmp_path, vocabulary), vocabulary)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["teacher_weight", "teacher_temperature", "teacher_dtype", "teacher_heads"])
def test_settings_of_a_teacher_need_one(setting: str) -> None:
    value = {"teacher_dtype": "int8", "teacher_heads": 2}.get(setting, 0.5)
    with pytest.raises(SettingError, match=f"--{setting.replace('_', '-')}: needs --teacher"):
        Settings.of({setting: value})


def test_a_teacher_of_2_6_billion_weights_is_int8_where_bfloat16_does_not_fit() -> None:
    student = GPT2Config(vocab_size=30000, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
    teacher = GPT2Config(vocab_size=30000, n_positions=1024, n_embd=2560, n_layer=32, n_head=32)
    work = Work(student, student.parameter_count, 0, True, 256, 8, teacher)
    dtypes = [make_plan(work, gigabytes * 10**9).teacher_dtype for gigabytes in (20, 12, 9)]
    assert dtypes == ["float32", "bfloat16", "int8"]
    alone = estimate(Work(student, student.parameter_count, 0, True, 256, 8), 1, recompute=True)
    weights = {"float32": 4, "bfloat16": 2, "int8": 1}
    for dtype, size in weights.items():
        more = estimate(work, 1, recompute=True, teacher_dtype=dtype) - alone
        assert size * 2.6e9 < more < (size + 0.3) * 2.6e9
