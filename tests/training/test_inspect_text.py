"""``inspect-text``: what a model would be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import training
from convert.formats.registry import CheckpointSpec
from demo.__main__ import CHECKPOINT, HEADS
from support.errors import UserError
from tests.helpers.small_vocabularies import write_tokenizer
from tokenization import TokenizerError, load_tokenizer
from training.cli import main
from training.text_inspection import show_row
from training.texts.packing import pack
from training.texts.presets import EncodedDocument

TOKENIZER = CHECKPOINT / "tokenizer"
OPTIONS = ["--model", str(CHECKPOINT), "--heads", str(HEADS), "--tokenizer", str(TOKENIZER)]
NEW_MODEL: dict[str, Any] = {"init": "layers=1,hidden=8,heads=1,positions=16", "tokenizer": TOKENIZER}


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    file = tmp_path / "songs.jsonl"
    lines = [{"text": "一曲新词酒一杯", "tune": "浣溪沙"}, {"text": "去年天气", "tune": "浣溪沙"}]
    file.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    return file


def test_the_figures_are_those_of_the_texts(songs: Path) -> None:
    report = training.inspect_text(None, songs, validation=0, prefix=["tune"], **NEW_MODEL)
    tokenizer = load_tokenizer(TOKENIZER)
    texts = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in ("一曲新词酒一杯", "去年天气")]
    prefix = tokenizer.encode("浣溪沙\n")
    assert (report.documents, report.held_out, report.files, report.preset) == (2, 0, 1, "plain")
    assert report.tokens == sum(map(len, texts))
    assert report.read_tokens == sum(map(len, texts)) + 2 * len(prefix)
    assert (report.longest, report.longest_place) == (len(texts[0]) + len(prefix), f"{songs}, line 1")
    assert (report.rows, report.length, report.steps_per_epoch) == (2, 16, 1)
    assert report.fill == round(report.read_tokens / 34, 4)
    assert report.unknown == 0
    assert any("nothing is held out" in note for note in report.notes)


def test_the_first_row_shows_where_documents_end_and_what_is_not_learned(songs: Path) -> None:
    report = training.inspect_text(None, songs, validation=0, prefix=["tune"], **NEW_MODEL)
    assert report.first_row == "«浣溪沙\n»一曲新词酒一杯<eod>⏹"
    learned = training.inspect_text(None, songs, validation=0, prefix=["tune"], loss="all", **NEW_MODEL)
    assert learned.first_row == "浣溪沙\n一曲新词酒一杯<eod>⏹"
    assert learned.tokens > report.tokens


def test_a_row_of_several_documents_has_an_end_after_each() -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    documents = [EncodedDocument(tuple(tokenizer.encode(text))) for text in ("一曲新词", "酒一杯")]
    assert show_row(pack(documents, 12), tokenizer) == "一曲新词⏹酒一杯⏹"


def test_what_the_vocabulary_lacks_is_counted_and_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("一曲新词\u4e44\n\n酒", "utf-8")
    report = training.inspect_text(None, file, validation=0, **NEW_MODEL)
    ids = [
        token
        for text in ("一曲新词\u4e44\n", "酒\n")
        for token in load_tokenizer(TOKENIZER).encode(text, append_eod=True)
    ]
    assert report.unknown == ids.count(0) == 1
    assert report.unknown_share == pytest.approx(1 / len(ids))
    (note,) = [note for note in report.notes if "unknown" in note]
    assert "(\u4e44)" in note


def test_documents_longer_than_a_row_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("酒" * 40 + "\n\n" + "酒", "utf-8")
    report = training.inspect_text(None, file, validation=0, **NEW_MODEL)
    assert (report.cut, report.longest) == (1, 43)
    assert report.longest_place == f"{file}, line 1"


def test_the_command_prints_the_report_as_text_and_as_json(songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect-text", *OPTIONS, "--text", str(songs), "--validation", "0", "--prefix", "tune"]
    main([*arguments, "--quiet"])
    text = capsys.readouterr()
    main([*arguments, "--json"])
    values = json.loads(capsys.readouterr().out)
    assert text.err == ""
    assert "documents  2 to train on, 0 held out" in text.out
    assert text.out.endswith("«浣溪沙\n»一曲新词酒一杯<eod>⏹«浣溪沙\n»去年天气<eod>⏹\n")
    assert (
        values
        == training.inspect_text(
            CheckpointSpec(CHECKPOINT, HEADS), songs, validation=0, prefix=["tune"], tokenizer=TOKENIZER
        ).to_dict()
    )


@pytest.mark.parametrize("option", ["--learning-rate", "--output"])
def test_options_that_change_no_text_are_refused(option: str, songs: Path) -> None:
    with pytest.raises(SystemExit):
        main(["inspect-text", *OPTIONS, "--text", str(songs), option, "1"])


def test_a_tokenizer_of_another_model_is_refused(songs: Path, tmp_path: Path) -> None:
    pieces = "".join(f"{chr(0x4E00 + index)}\n" for index in range(7000))
    (tmp_path / "vocab.txt").write_text(f"[PAD]\n[UNK]\n{pieces}", "utf-8")
    with pytest.raises(TokenizerError, match="7002 pieces, but the model has 6000: not its tokenizer"):
        training.inspect_text(CheckpointSpec(CHECKPOINT, HEADS), songs, tokenizer=tmp_path)


def test_a_row_longer_than_the_model_is_refused(songs: Path) -> None:
    with pytest.raises(UserError, match="--length 17: expected 16 at most"):
        training.inspect_text(None, songs, length=17, **NEW_MODEL)


def test_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n今\n", "utf-8")
    file = tmp_path / "a.txt"
    file.write_text("今", "utf-8")
    with pytest.raises(UserError, match="expected a document of two tokens or more"):
        training.inspect_text(None, file, init="layers=1,hidden=8,heads=1,positions=16", tokenizer=tmp_path)


@pytest.mark.parametrize("kind", ["cpm", "bert", "bpe"])
def test_every_kind_of_tokenizer_can_be_trained_with(kind: str, songs: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(kind, tmp_path / kind)
    report = training.inspect_text(
        None, songs, validation=0, tokenizer=tokenizer, init="layers=1,hidden=8,heads=1,positions=64"
    )
    assert report.rows >= 1
    assert report.tokens > 8


def test_progress_is_bytes_of_text(songs: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    training.inspect_text(None, songs, validation=0, progress=lambda *call: calls.append(call), **NEW_MODEL)
    assert calls == [("encode", done, 33) for done in (0, 21, 33)]
    assert np.diff([done for _, done, _ in calls]).min() > 0
