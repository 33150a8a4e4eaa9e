"""The numbers of a comparison, against PyTorch's, and what is judged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.verification.metrics import TOLERANCES, LogitsComparison, PromptParity
from convert.verification.report import ParityReport, VerificationError


def two_models_logits() -> tuple[np.ndarray, np.ndarray]:
    """Logits [50, 20] of a source, and nearly the same."""
    rng = np.random.default_rng(0)
    source = rng.normal(size=(50, 20)).astype(np.float32) * 3
    return source, source + rng.normal(size=source.shape).astype(np.float32) * 0.05


def prompts_with_losses(predicted: int, change: float) -> tuple[PromptParity, ...]:
    """Two prompts of a text, so many predicted tokens together, whose perplexity changes so much."""
    first, second = 100, predicted - 100
    loss = 3.0 * second
    return (
        PromptParity(first + 1, 0.1, 1.0, 1e-4, first, first + 1, -9.0, 9.0, True, first, 2.0 * first, 2.0 * first),
        PromptParity(
            second + 1, 0.1, 1.0, 1e-4, second + 1, second + 1, -9.0, 9.0, True, second, loss,
            loss + predicted * math.log1p(change),
        ),
    )  # fmt: skip


def test_difference_and_kl_are_pytorchs() -> None:
    source, converted = two_models_logits()
    comparison = LogitsComparison(TOLERANCES["float16"])
    for start in range(0, 50, 13):
        comparison.add(source[start : start + 13], converted[start : start + 13])
    found = comparison.result()
    log_p, log_q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (source, converted))
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    assert found.kl == pytest.approx(float(expected), rel=1e-9)
    assert found.max_abs_diff == np.abs(source - converted).max()
    assert (found.low, found.high) == (source.min(), source.max())
    assert found.tolerance == pytest.approx(0.02 * (source.max() - source.min()))
    assert found.tokens == 50
    assert (found.predicted, found.perplexity) == (0, None)


def test_perplexity_is_pytorchs() -> None:
    """The last logits predict nothing, the first token is not predicted, whatever the blocks."""
    source, converted = two_models_logits()
    text = np.random.default_rng(1).integers(0, 20, 50)
    comparison = LogitsComparison(TOLERANCES["float16"], text.tolist())
    for start in range(0, 50, 13):
        comparison.add(source[start : start + 13], converted[start : start + 13])
    found = comparison.result().perplexity
    targets = torch.from_numpy(text[1:])
    losses = [
        torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]).double(), targets)
        for logits in (source, converted)
    ]
    expected = [float(loss.exp()) for loss in losses]
    assert found is not None
    assert [found.source, found.converted] == pytest.approx(expected, rel=1e-12)
    assert found.change == pytest.approx(expected[1] / expected[0] - 1, rel=1e-9)
    assert found.tokens == 49


@pytest.mark.parametrize(
    ("predicted", "change", "passed"),
    [(1000, 0.0049, True), (1000, 0.0051, False), (1000, -0.0051, False), (999, 0.0051, True)],
)
def test_perplexity_decides_where_enough_tokens_are_predicted(predicted: int, change: float, passed: bool) -> None:
    """In both directions; of several prompts each token counts once."""
    prompts = prompts_with_losses(predicted, change)
    report = ParityReport("int8", TOLERANCES["int8"], None, prompts, ("a note",))
    assert report.perplexity is not None
    assert report.perplexity.source == pytest.approx(math.exp((2 * 100 + 3 * (predicted - 100)) / predicted))
    assert report.perplexity.change == pytest.approx(change)
    assert report.perplexity.allowed == (0.005 if predicted >= 1000 else None)
    assert report.passed is passed
    assert ParityReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report
    if passed:
        report.check(Path("model"))
        return
    assert str(report).startswith(
        "int8: MISMATCH: the perplexity differs from the checkpoint's by more than int8 allows: "
    )
    words = r"model: does not predict text .* \(.0.5100%; 1000 tokens: 0.50% allowed"
    with pytest.raises(VerificationError, match=words):
        report.check(Path("model"))


def test_perplexity_too_large_for_a_number_fails() -> None:
    source, converted = np.zeros((2, 1100, 2), np.float32)
    converted[:, 0] = 1e4
    comparison = LogitsComparison(TOLERANCES["float32"], [1] * 1100)
    comparison.add(source, converted)
    report = ParityReport("float32", TOLERANCES["float32"], None, (comparison.result(),))
    assert report.perplexity is not None
    assert (report.perplexity.converted, report.perplexity.change) == (None, None)
    assert not report.perplexity.passed
    assert "converted not finite" in report.table()
    json.dumps(report.to_dict(), allow_nan=False)


def test_range_of_logits_includes_zero() -> None:
    """Logits around -100 have a float's errors of 100."""
    comparison = LogitsComparison(TOLERANCES["float32"])
    comparison.add(*[np.linspace(-104, -99, 10, dtype=np.float32)[np.newaxis]] * 2)
    assert comparison.result().tolerance == pytest.approx(104e-5)


def test_near_ties_count_as_agreement() -> None:
    source = np.array([[0, 100, 99.9], [0, 100, 90], [100, 0, 0]], np.float32)
    converted = np.array([[0, 99.9, 100], [0, 90, 100], [100, 0, 0]], np.float32)
    comparison = LogitsComparison(TOLERANCES["bfloat16"])
    comparison.add(source, converted)
    found = comparison.result()
    assert (found.same, found.agreeing, found.tolerance) == (1, 2, 2.0)
    report = ParityReport("bfloat16", TOLERANCES["bfloat16"], None, (found,))
    assert report.to_dict()["top1"] == pytest.approx(1 / 3)
    assert "same best token 33.33% (66.67% with near ties)" in str(report)
    assert not found.passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_logits_that_are_not_finite_fail(bad: float, side: int) -> None:
    sides = [np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32)]
    sides[side][1, 2] = bad
    comparison = LogitsComparison(TOLERANCES["float32"], [1, 2, 3])
    comparison.add(*sides)
    report = ParityReport("float32", TOLERANCES["float32"], None, (comparison.result(),))
    assert not report.passed
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["prompts"][0]["max_abs_diff"] is None
    assert report.to_dict()["perplexity"]["change"] is None
    assert "not finite" in report.table()
    with pytest.raises(VerificationError, match="not finite"):
        report.check(Path("model"))
