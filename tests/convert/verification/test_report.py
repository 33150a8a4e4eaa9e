"""What a report says: the verdict, the table, and which prompts are shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from convert.verification.metrics import TOLERANCES, PromptParity
from convert.verification.report import ParityReport, VerificationError

FLOAT32 = TOLERANCES["float32"]
PERFECT = PromptParity(10, 0.0, 1e-4, 0.0, 10, 10, -9.0, 9.0, True)


def report_of(dtype: str, *prompts: PromptParity) -> ParityReport:
    return ParityReport(dtype, TOLERANCES[dtype], None, prompts)


def test_few_prompts_are_all_in_the_table() -> None:
    head, *rows, last = report_of("float32", *[PERFECT] * 5).table().splitlines()
    assert "perplexity" not in head
    assert len(rows) == 5
    assert last == (
        "float32: the same logits as the checkpoint: largest difference 0, KL 0 nats, same best token 100.00%; "
        "5 prompts of up to 10 tokens"
    )


def test_of_many_prompts_the_worst_are_in_the_table_with_their_places() -> None:
    prompts = [
        dataclasses.replace(PERFECT, max_abs_diff=number * 1e-7, predicted=9, place=f"line {number}")
        for number in range(1, 298)
    ]
    prompts[100] = dataclasses.replace(prompts[100], max_abs_diff=0.2, passed=False)
    head, *rows, found, last = report_of("float32", *prompts).table().splitlines()
    assert head.split()[0] == "from"
    assert [row[:9].strip() for row in rows] == ["line 101", "line 297", "line 296", "line 295", "line 294"]
    assert [row.endswith("too far") for row in rows] == [True, False, False, False, False]
    assert found == "the 5 worst of 297 prompts; 1 differ by more than is allowed"
    assert last.startswith("float32: MISMATCH: the logits differ from the checkpoint's by more than float32 allows: ")
    assert last.endswith("297 prompts of up to 10 tokens")


def test_rows_of_a_table_are_as_long_as_its_head() -> None:
    prompts = [
        dataclasses.replace(PERFECT, predicted=9, source_loss=30.0, converted_loss=30.0, place=place)
        for place in ("line 1", "line 1000")
    ]
    head, *rows, _ = report_of("float32", *prompts).table().splitlines()
    assert head.split()[-3:] == ["perplexity", "converted", "change"]
    assert [len(row) for row in rows] == [len(head)] * 2


def test_smaller_types_are_said_to_be_as_close_as_they_have_to_be() -> None:
    summary = report_of("int8", PERFECT).summary()
    assert summary.startswith("int8: the logits are as close to the checkpoint's as int8 has to be: largest difference")
    assert summary.endswith("; 1 prompt of up to 10 tokens")


def test_the_worst_prompt_is_named_in_the_error() -> None:
    bad = dataclasses.replace(PERFECT, tokens=20, max_abs_diff=0.5, kl=0.01, passed=False)
    worse = dataclasses.replace(bad, tokens=30, max_abs_diff=None, tolerance=None, kl=None)
    report = report_of("float32", PERFECT, bad, worse, bad)
    with pytest.raises(VerificationError, match=r"^model: does not compute .*: prompt 3 \(30 tokens\)") as error:
        report.check(Path("model"))
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)
