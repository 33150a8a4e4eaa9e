"""How far the logits of two models lie apart, as numbers: differences, KL divergence, best tokens, perplexity."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from convert.tensors import Array

_BLOCK = 1 << 18
"""Logits that are compared in one step: 2 MB as float64."""

MIN_TOKENS_FOR_PERPLEXITY = 1000
"""Predicted tokens of text from which on the perplexity decides. The losses of a token under the two models differ with
a standard deviation of about sqrt(2 KL): with the KL of 0.001 that a half type may have, chance moves the mean over
1,000 tokens by 0.0014. Over 100 tokens chance moves it by as much as the tolerance."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What a dtype may cost.

    Attributes:
        absolute, relative: the largest difference of a logit is the larger of ``absolute`` and ``relative`` times the
            range of the prompt's logits. The range includes zero: a float's error grows with the number itself.
        kl: mean over a prompt's positions of KL(source || converted), in nats.
        agreement: least share of all positions where the two models' best tokens are the same, or near ties: the
            source's logits of the two tokens are closer than the allowed difference.
        perplexity: the largest relative change of the perplexity of a text, in either direction.
    """

    absolute: float
    relative: float
    kl: float
    agreement: float
    perplexity: float


_INT8 = Tolerance(absolute=1e-4, relative=0.05, kl=0.02, agreement=0.95, perplexity=0.005)

TOLERANCES = {
    "float32": Tolerance(absolute=1e-4, relative=1e-5, kl=1e-6, agreement=1.0, perplexity=1e-4),
    "float16": Tolerance(absolute=1e-4, relative=0.02, kl=0.001, agreement=0.99, perplexity=0.005),
    "bfloat16": Tolerance(absolute=1e-4, relative=0.02, kl=0.02, agreement=0.99, perplexity=0.005),
    "int8": _INT8,
    "int8-low-memory": _INT8,
    # Weights are rounded to half as many levels, activations to as many: the error's square is 2.5 times int8's.
    "int8-avx2": Tolerance(absolute=1e-4, relative=0.08, kl=0.05, agreement=0.93, perplexity=0.005),
}


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The perplexity of two models on the same tokens: exp of the mean negative log-likelihood.

    Attributes:
        source, converted: of each model; None when not finite, or too large for a number.
        change: converted / source - 1; None likewise.
        tokens: how many were predicted: all but the first of each prompt.
        allowed: what ``change`` may be; None where fewer than ``MIN_TOKENS_FOR_PERPLEXITY`` tokens were predicted.
    """

    source: float | None
    converted: float | None
    change: float | None
    tokens: int
    allowed: float | None

    @property
    def passed(self) -> bool:
        return self.allowed is None or (self.change is not None and abs(self.change) <= self.allowed)


@dataclasses.dataclass(frozen=True)
class PromptParity:
    """One prompt's comparison; a number that is not finite is None, and the prompt has failed.

    Attributes:
        tokens: its length, S.
        max_abs_diff: the largest difference of its S * V logits.
        tolerance: what ``max_abs_diff`` may be.
        kl: mean KL(source || converted), nats.
        same: positions, of S, with the same best token.
        agreeing: positions with the same best token, or whose two best tokens have logits of the source that are closer
            than ``tolerance``.
        low, high: the source's smallest and largest logit.
        passed: whether difference and KL are within the tolerance.
        predicted: tokens whose losses are in the next two: S - 1 of a text, 0 of random tokens.
        source_loss, converted_loss: the sum of their negative log-likelihoods, nats.
        place: what the prompt belongs to, such as a line of a file; empty for random tokens.
    """

    tokens: int
    max_abs_diff: float | None
    tolerance: float | None
    kl: float | None
    same: int
    agreeing: int
    low: float | None
    high: float | None
    passed: bool
    predicted: int = 0
    source_loss: float | None = 0.0
    converted_loss: float | None = 0.0
    place: str = ""

    @property
    def top1(self) -> float:
        """Share of the positions with the same best token."""
        return self.same / self.tokens

    @property
    def perplexity(self) -> Perplexity | None:
        """The perplexity of this prompt alone, which is never judged; None where nothing was predicted."""
        return total_perplexity([self], None)

    def excess(self, bounds: Tolerance) -> float:
        """How much of its tolerance is used: up to 1 where the prompt has passed, infinite where logits are not finite.

        Of a perfect copy it is 0.
        """
        if self.max_abs_diff is None or self.tolerance is None or self.kl is None:
            return math.inf
        return max(self.max_abs_diff / self.tolerance, self.kl / bounds.kl)


def total_perplexity(prompts: Sequence[PromptParity], bound: float | None) -> Perplexity | None:
    """Compute the perplexity of several prompts together: each token counts once, however long its prompt is.

    Args:
        prompts: with their losses.
        bound: the change that is allowed where there are tokens enough; None to allow any.

    Returns:
        None where nothing was predicted.
    """
    tokens = sum(prompt.predicted for prompt in prompts)
    if not tokens:
        return None
    source = _mean_loss((prompt.source_loss for prompt in prompts), tokens)
    converted = _mean_loss((prompt.converted_loss for prompt in prompts), tokens)
    return Perplexity(
        _finite(math.exp, source),
        _finite(math.exp, converted),
        _finite(math.expm1, converted - source),
        tokens,
        bound if tokens >= MIN_TOKENS_FOR_PERPLEXITY else None,
    )


def _mean_loss(losses: Iterable[float | None], tokens: int) -> float:
    return math.fsum(math.nan if loss is None else loss for loss in losses) / tokens


def _finite(function: Callable[[float], float], value: float) -> float | None:
    with contextlib.suppress(OverflowError):
        result = function(value)
        return result if math.isfinite(result) else None
    return None


class LogitsComparison:
    """Compares the logits of one prompt, which are added block by block.

    Args:
        bounds: what the dtype may cost.
        text: the prompt's token ids where they are a text; each but the first is predicted by the logits before it.
        place: as in ``PromptParity``.
    """

    def __init__(self, bounds: Tolerance, text: Sequence[int] = (), place: str = "") -> None:
        self._bounds, self._place = bounds, place
        self._targets = np.asarray(text, np.int64)[1:]
        self._seen = 0
        self._losses = np.zeros(2)  # nats, of the source and the converted model
        self._difference = self._kl = 0.0
        self._low, self._high = math.inf, -math.inf
        self._gaps: list[Array] = []

    def add(self, source: Array, converted: Array) -> None:
        """Compare the next positions: ``source`` and ``converted`` are float32 ``[N, V]``."""
        step = max(1, _BLOCK // source.shape[-1])
        for start in range(0, len(source), step):
            self._add(source[start : start + step], converted[start : start + step])

    def _add(self, source: Array, converted: Array) -> None:
        # NumPy's min and max keep a NaN, Python's do not.
        self._low = float(np.minimum(self._low, source.min()))
        self._high = float(np.maximum(self._high, source.max()))
        with np.errstate(invalid="ignore"):  # inf - inf
            self._difference = float(np.maximum(self._difference, np.abs(source - converted).max()))
            log_p, log_q = _log_softmax(source), _log_softmax(converted)
            self._kl += float((np.exp(log_p) * (log_p - log_q)).sum())
        targets = self._targets[self._seen : self._seen + len(source)]
        self._seen += len(source)
        self._losses -= [log[np.arange(len(targets)), targets].sum() for log in (log_p, log_q)]
        rows = np.arange(len(source))
        self._gaps.append(source.max(axis=-1) - source[rows, converted.argmax(axis=-1)])

    def result(self) -> PromptParity:
        """Return the comparison of all positions that were added."""
        gaps = np.concatenate(self._gaps)
        tokens, predicted = len(gaps), len(self._targets)
        if not all(map(math.isfinite, (self._difference, self._kl, self._low, self._high))):
            return PromptParity(
                tokens,
                max_abs_diff=_finite(float, self._difference),
                tolerance=None,
                kl=None,
                same=0,
                agreeing=0,
                low=_finite(float, self._low),
                high=_finite(float, self._high),
                passed=False,
                predicted=predicted,
                source_loss=None,
                converted_loss=None,
                place=self._place,
            )
        kl = max(0.0, self._kl / tokens)  # equal logits may give -1e-17
        extent = max(self._high, 0.0) - min(self._low, 0.0)
        tolerance = max(self._bounds.absolute, self._bounds.relative * extent)
        return PromptParity(
            tokens,
            max_abs_diff=self._difference,
            tolerance=tolerance,
            kl=kl,
            same=int((gaps == 0).sum()),
            agreeing=int((gaps < tolerance).sum()),
            low=self._low,
            high=self._high,
            passed=self._difference <= tolerance and kl <= self._bounds.kl,
            predicted=predicted,
            source_loss=float(self._losses[0]),
            converted_loss=float(self._losses[1]),
            place=self._place,
        )


def _log_softmax(logits: Array) -> Array:
    """Return the logarithm of the softmax over the last axis, float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
