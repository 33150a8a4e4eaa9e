"""``training.finetune``: from texts to a SavedModel that writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convert
import training
from convert.output.manifest import MANIFEST, check
from inference.text_generator import TextGenerator
from tests.helpers.small_vocabularies import write_tokenizer

POEM = "临江仙\n滚滚长江东逝水,浪花淘尽英雄。\n是非成败转头空。\n青山依旧在,几度夕阳红。\n"
SIZES = "layers=2,hidden=32,heads=2,positions=64"
FAST = {"sample": 0, "dropout": 0.0}


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts), "utf-8")
    return path


def perplexity(model: Path, text: Path) -> float:
    """As ``verify`` measures it: transformers' and TensorFlow's logits, in float64."""
    found = convert.verify(model, model, text=text).perplexity
    assert found is not None
    return found.converted


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer("cpm", tmp_path_factory.mktemp("tokenizer") / "files")


def test_a_poem_learnt_by_heart_comes_out_to_the_last_character(tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "poem.txt"
    text.write_text(POEM, "utf-8")
    settings: dict[str, Any] = {"init": SIZES, "tokenizer": tokenizer, "learning_rate": 2e-2, "steps": 60, **FAST}
    result = training.finetune(None, text, tmp_path / "model", **settings)
    generated = TextGenerator.load(tmp_path / "model").generate("临江仙", temperature=0, max_new_tokens=80)[0]
    assert generated.full_text == POEM
    assert result.validation is None
    assert result.training[1] < 1.05
    assert check(tmp_path / "model").intact


@pytest.mark.slow
def test_lyrics_learnt_by_heart_are_sung_line_by_line_without_an_option(tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "songs.jsonl"
    text.write_text(json.dumps({"text": POEM, "style": "民谣"}, ensure_ascii=False) + "\n", "utf-8")
    settings: dict[str, Any] = {"init": SIZES, "tokenizer": tokenizer, "learning_rate": 2e-2, "steps": 60, **FAST}
    result = training.finetune(None, text, tmp_path / "model", preset="lyric", prefix=["style"], **settings)
    generated = TextGenerator.load(tmp_path / "model").generate("民谣\n临江仙", temperature=0, max_new_tokens=80)[0]
    assert generated.full_text.startswith(f"民谣\n{POEM}")
    assert result.command == f"gpt2-savedmodel generate {tmp_path}/model $'民谣\\n临江仙'"
    again = training.finetune(
        tmp_path / "model", text, tmp_path / "again", preset="lyric", prefix=["style"], steps=0, **FAST
    )
    assert again.training[0] < 1.1


@pytest.mark.slow
def test_the_perplexity_after_is_that_of_verify_on_the_result(tokenizer: Path, tmp_path: Path) -> None:
    poems = [f"{POEM}{number * '几度夕阳红。'}\n" for number in range(6)]
    train, held_out = write_jsonl(tmp_path / "train.jsonl", poems), write_jsonl(tmp_path / "held.jsonl", poems[:3])
    source = tmp_path / "source"
    training.finetune(None, train, source, init=SIZES, tokenizer=tokenizer, steps=0, **FAST)
    result = training.finetune(source, train, tmp_path / "model", steps=3, validation=held_out, **FAST)
    assert result.validation is not None
    expected = [perplexity(model, held_out) for model in (source, tmp_path / "model")]
    np.testing.assert_allclose(result.validation, expected, rtol=1e-5)
    assert result.validation[1] < result.validation[0]
    manifest = json.loads((tmp_path / "model" / MANIFEST).read_text())
    record = json.loads((tmp_path / "model" / "assets.extra" / "training.json").read_text())
    assert manifest["training"] == record
    assert record["perplexity"]["validation"] == list(result.validation)


@pytest.mark.slow
def test_the_progress_of_loading_a_teacher_is_one_of_its_own(tokenizer: Path, tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", [POEM, POEM])
    teacher, student = tmp_path / "teacher", SIZES.replace("hidden=32", "hidden=16")
    training.finetune(None, text, teacher, init=SIZES, tokenizer=tokenizer, steps=0, **FAST)
    seen: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        seen.setdefault(stage, []).append((done, total))

    more = {"init": student, "tokenizer": tokenizer, "teacher": teacher, "steps": 0, **FAST}
    training.finetune(None, text, tmp_path / "model", progress=progress, **more)
    for stage in ("load", "load the teacher"):
        ((last, total),) = {(done, total) for done, total in seen[stage] if done == total}
        assert last == total == max(done for done, _ in seen[stage])
        assert len({total for _, total in seen[stage]}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["poem", "plain"])
@pytest.mark.parametrize("kind", ["cpm", "bert"])
def test_verify_measures_the_same_of_the_held_out_documents_of_a_text_file(
    kind: str, preset: str, tmp_path: Path
) -> None:
    """Documents longer than the model's positions; BERT's begin with ``[CLS]``."""
    files = write_tokenizer(kind, tmp_path / "tokenizer")
    held_out, train = tmp_path / "held.txt", tmp_path / "train.txt"
    held_out.write_text(
        "\n\n\n".join(f"hello good world\n{number * '今天天气不错,一曲新词酒一杯'}" for number in range(5))
    )
    train.write_text(POEM, "utf-8")
    sizes = "layers=2,hidden=32,heads=2,positions=16"
    settings: dict[str, Any] = {"init": sizes, "tokenizer": files, "preset": preset, "validation": held_out}
    result = training.finetune(None, train, tmp_path / "model", steps=3, **settings, **FAST)
    assert result.validation is not None
    measured = perplexity(tmp_path / "model", tmp_path / "model.training" / "held-out.jsonl")
    assert result.validation[1] == pytest.approx(measured, rel=1e-5)
