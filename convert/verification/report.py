"""How far the logits of two models of the same weights lie apart, what their dtype allows, and the report of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.tensors import Array
from support.errors import ConvertError

_BLOCK = 1 << 18
"""Logits that are compared in one step: 2 MB as float64."""

JUDGED = 1000
"""Tokens of text from which on the perplexity decides. The losses of a token under the two models differ with a
standard deviation of about sqrt(2 KL): with the KL of 0.001 that a half type may have, chance moves the mean over 1,000
by 0.0014, over 100 it moves it by as much as the tolerance."""


class VerificationError(ConvertError):
    """The converted model does not compute what the source does."""

    exit_code = 3


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What a dtype may cost.

    Attributes:
        absolute, relative: the largest difference of a logit: the larger of ``absolute`` and ``relative`` times the
            range of the prompt's logits. The range includes zero: a float's error grows with the number itself.
        kl: mean over a prompt's positions of KL(source || converted), in nats.
        agreement: least share of all positions where the two models' best tokens are the same, or near ties: the
            source's logits of the two are closer than the allowed difference.
        perplexity: the largest relative change of the perplexity of a text, in either direction.
    """

    absolute: float
    relative: float
    kl: float
    agreement: float
    perplexity: float


TOLERANCES = {
    "float32": Tolerance(absolute=1e-4, relative=1e-5, kl=1e-6, agreement=1.0, perplexity=1e-4),
    "float16": Tolerance(absolute=1e-4, relative=0.02, kl=0.001, agreement=0.99, perplexity=0.005),
    "bfloat16": Tolerance(absolute=1e-4, relative=0.02, kl=0.02, agreement=0.99, perplexity=0.005),
    "int8": (_INT8 := Tolerance(absolute=1e-4, relative=0.05, kl=0.02, agreement=0.95, perplexity=0.005)),
    "int8-low-memory": _INT8,
    # Weights are rounded to half as many levels, activations to as many: the error's square is 2.5 times int8's.
    "int8-avx2": Tolerance(absolute=1e-4, relative=0.08, kl=0.05, agreement=0.93, perplexity=0.005),
}


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Of the two models on the same tokens: exp of the mean negative log-likelihood.

    Attributes:
        source, converted: per token; None when not finite, or too large for a number.
        change: converted / source - 1; None likewise.
        tokens: that were predicted: all but the first of each prompt.
        allowed: what ``change`` may be; None where the tokens are too few to say (``JUDGED``).
    """

    source: float | None
    converted: float | None
    change: float | None
    tokens: int
    allowed: float | None

    @property
    def passed(self) -> bool:
        return self.allowed is None or (self.change is not None and abs(self.change) <= self.allowed)

    def __str__(self) -> str:
        bound = f"too few to judge, {JUDGED} are needed" if self.allowed is None else f"{self.allowed:.2%} allowed"
        return (
            f"perplexity {_number(self.source, 5)}, converted {_number(self.converted, 5)} ({_percent(self.change)}; "
            f"{self.tokens} tokens: {bound})"
        )


@dataclasses.dataclass(frozen=True)
class PromptParity:
    """One prompt's comparison; a number that is not finite is None, and the prompt has failed.

    Attributes:
        tokens: its length, S.
        max_abs_diff: over its S * V logits.
        tolerance: what ``max_abs_diff`` may be.
        kl: mean KL(source || converted), nats.
        same: positions, of S, with the same best token.
        agreeing: those, and where the source's logits of the two are closer than ``tolerance``.
        low, high: the source's smallest and largest logit.
        passed: whether difference and KL are within the tolerance.
        predicted: tokens whose losses are in the next two: S - 1 of a text, 0 of random tokens.
        source_loss, converted_loss: the sum of their negative log-likelihoods, nats.
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

    @property
    def perplexity(self) -> Perplexity | None:
        """Of this prompt alone, never judged; None where nothing was predicted."""
        return _perplexity([self], None)


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """The result of a verification.

    Attributes:
        dtype: of the SavedModel.
        bounds: the tolerance of that dtype.
        seed: of the random prompts; None when prompts were given.
        prompts: in the order they were run.
    """

    dtype: str
    bounds: Tolerance
    seed: int | None
    prompts: tuple[PromptParity, ...]

    @property
    def max_abs_diff(self) -> float | None:
        return _largest([prompt.max_abs_diff for prompt in self.prompts])

    @property
    def kl(self) -> float | None:
        """Of the worst prompt."""
        return _largest([prompt.kl for prompt in self.prompts])

    @property
    def top1(self) -> float:
        """Share of the positions of all prompts with the same best token."""
        return self._share([prompt.same for prompt in self.prompts])

    @property
    def agreement(self) -> float:
        """Share of the positions of all prompts with the same best token, or near ties: what is judged."""
        return self._share([prompt.agreeing for prompt in self.prompts])

    def _share(self, positions: Sequence[int]) -> float:
        return sum(positions) / sum(prompt.tokens for prompt in self.prompts)

    @property
    def perplexity(self) -> Perplexity | None:
        """Of all prompts together; None of random tokens, of which it would say nothing, and of single ones."""
        return _perplexity(self.prompts, self.bounds.perplexity)

    @property
    def same_logits(self) -> bool:
        """Whether difference, KL and best tokens are within the tolerance."""
        return all(prompt.passed for prompt in self.prompts) and self.agreement >= self.bounds.agreement

    @property
    def passed(self) -> bool:
        return self.same_logits and (self.perplexity is None or self.perplexity.passed)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers, strings, booleans and None."""
        prompts = [{**dataclasses.asdict(prompt), "top1": prompt.same / prompt.tokens} for prompt in self.prompts]
        return {
            "passed": self.passed,
            "dtype": self.dtype,
            "seed": self.seed,
            "bounds": dataclasses.asdict(self.bounds),
            "max_abs_diff": self.max_abs_diff,
            "kl": self.kl,
            "top1": self.top1,
            "agreement": self.agreement,
            "perplexity": self.perplexity and dataclasses.asdict(self.perplexity),
            "prompts": prompts,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ParityReport:
        """The inverse of ``to_dict``."""
        names = [field.name for field in dataclasses.fields(PromptParity)]
        prompts = (PromptParity(**{name: prompt[name] for name in names}) for prompt in values["prompts"])
        return cls(values["dtype"], Tolerance(**values["bounds"]), values["seed"], tuple(prompts))

    def __str__(self) -> str:
        """One line."""
        count, longest = len(self.prompts), max(prompt.tokens for prompt in self.prompts)
        text = f"{self.perplexity}; " if self.perplexity else ""
        found = "OTHER LOGITS than the checkpoint"
        if self.passed:
            lossy = self.dtype != "float32"
            found = f"{'logits within the bounds around those of' if lossy else 'the same logits as'} the checkpoint"
        elif self.same_logits:
            found = "ANOTHER PERPLEXITY than the checkpoint"
        near = "" if self.agreement == self.top1 else f" ({self.agreement:.2%} with near ties)"
        return (
            f"{self.dtype}: {found}: largest difference {_number(self.max_abs_diff)}, KL "
            f"{_number(self.kl)} nats, same best token {self.top1:.2%}{near}; {text}"
            f"{count} prompt{'s'[: count != 1]} of up to {longest} tokens"
        )

    def table(self) -> str:
        """A line for each prompt, and ``str``."""
        titles = f"{'tokens':>7} {'max |diff|':>11} {'allowed':>9} {'KL (nats)':>11} {'same best':>9}"
        text = f" {'perplexity':>11} {'converted':>11} {'change':>10}" if self.perplexity else ""
        lines = [f"{titles} {'logits from':>12} {'to':>9}{text}"]
        for prompt in self.prompts:
            found = prompt.perplexity
            losses = (
                f" {_number(found.source, 5):>11} {_number(found.converted, 5):>11} {_percent(found.change):>10}"
                if found
                else " " * len(text)
            )
            lines.append(
                f"{prompt.tokens:7} {_number(prompt.max_abs_diff):>11} {_number(prompt.tolerance):>9} "
                f"{_number(prompt.kl):>11} {prompt.same / prompt.tokens:9.2%} {_number(prompt.low):>12} "
                f"{_number(prompt.high):>9}{losses}{'' if prompt.passed else '   too far'}".rstrip()
            )
        return "\n".join([*lines, str(self)])

    def check(self, where: Path) -> None:
        """Does nothing when the report passed.

        Args:
            where: the SavedModel, for the message.

        Raises:
            VerificationError: it did not; with the worst prompt.
        """
        if self.passed:
            return
        if self.same_logits:
            raise VerificationError(
                f"{where}: predicts text otherwise than the checkpoint does: {self.perplexity}, though every logit is "
                f"as near as {self.dtype} has to be: choose another --dtype, or it is wrongly converted"
            )

        def badness(item: tuple[int, PromptParity]) -> tuple[bool, float]:
            prompt = item[1]
            ratio = math.inf
            if prompt.max_abs_diff is not None and prompt.kl is not None and prompt.tolerance is not None:
                ratio = max(prompt.max_abs_diff / prompt.tolerance, prompt.kl / self.bounds.kl)
            return not prompt.passed, ratio

        number, worst = max(enumerate(self.prompts, 1), key=badness)
        raise VerificationError(
            f"{where}: does not compute what the checkpoint does: prompt {number} ({worst.tokens} tokens): logits "
            f"differ by up to {_number(worst.max_abs_diff)}, {_number(worst.tolerance)} allowed ({self.dtype}); KL "
            f"{_number(worst.kl)} nats, {self.bounds.kl:g} allowed; best token the same, or a near tie, in "
            f"{self.agreement:.2%} of all prompts, {self.bounds.agreement:.2%} required: it is of another "
            "checkpoint, or wrongly converted"
        )


def _largest(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return max(finite) if len(finite) == len(values) else None


def _number(value: float | None, digits: int = 3) -> str:
    return "not finite" if value is None else f"{value:.{digits}g}"


def _percent(change: float | None) -> str:
    return "not finite" if change is None else f"{round(change, 6) + 0.0:+.4%}"  # no -0


def _perplexity(prompts: Sequence[PromptParity], bound: float | None) -> Perplexity | None:
    """Of several prompts together: a token counts as one, whatever the length of its prompt."""
    if not (tokens := sum(prompt.predicted for prompt in prompts)):
        return None

    def mean(losses: Iterable[float | None]) -> float:
        return math.fsum(math.nan if loss is None else loss for loss in losses) / tokens

    source, converted = mean(p.source_loss for p in prompts), mean(p.converted_loss for p in prompts)
    return Perplexity(
        _finite(math.exp, source),
        _finite(math.exp, converted),
        _finite(math.expm1, converted - source),
        tokens,
        bound if tokens >= JUDGED else None,
    )


def _finite(function: Callable[[float], float], value: float) -> float | None:
    with contextlib.suppress(OverflowError):
        result = function(value)
        return result if math.isfinite(result) else None
    return None


class Comparison:
    """Takes the logits of one prompt block by block.

    Args:
        bounds: what its dtype may cost.
        text: the prompt's token ids where they are a text; each but the first is predicted by the logits before it.
    """

    def __init__(self, bounds: Tolerance, text: Sequence[int] = ()) -> None:
        self.bounds = bounds
        self.targets = np.asarray(text, np.int64)[1:]
        self.seen = 0
        self.losses = np.zeros(2)  # nats, of the source and the converted model
        self.difference = self.kl = 0.0
        self.low, self.high = math.inf, -math.inf
        self.gaps: list[Array] = []

    def add(self, source: Array, converted: Array) -> None:
        """``source`` and ``converted``: float32 ``[N, V]``, the same positions."""
        step = max(1, _BLOCK // source.shape[-1])
        for at in range(0, len(source), step):
            self._add(source[at : at + step], converted[at : at + step])

    def _add(self, source: Array, converted: Array) -> None:
        # min and max of numpy keep a NaN, Python's do not
        self.low, self.high = float(np.minimum(self.low, source.min())), float(np.maximum(self.high, source.max()))
        with np.errstate(invalid="ignore"):  # inf - inf
            self.difference = float(np.maximum(self.difference, np.abs(source - converted).max()))
            log_p, log_q = _log_softmax(source), _log_softmax(converted)
            self.kl += float((np.exp(log_p) * (log_p - log_q)).sum())
        targets = self.targets[self.seen : (seen := self.seen + len(source))]
        self.seen = seen
        self.losses -= [log[np.arange(len(targets)), targets].sum() for log in (log_p, log_q)]
        rows = np.arange(len(source))
        self.gaps.append(source.max(axis=-1) - source[rows, converted.argmax(axis=-1)])

    def result(self) -> PromptParity:
        gaps = np.concatenate(self.gaps)
        tokens, values = len(gaps), [self.difference, self.kl, self.low, self.high]
        if not all(map(math.isfinite, values)):
            difference, _, low, high = (value if math.isfinite(value) else None for value in values)
            lost = len(self.targets), None, None
            return PromptParity(tokens, difference, None, None, 0, 0, low, high, False, *lost)
        kl = max(0.0, self.kl / tokens)  # equal logits may give -1e-17
        extent = max(self.high, 0.0) - min(self.low, 0.0)
        tolerance = max(self.bounds.absolute, self.bounds.relative * extent)
        same, agreeing = int((gaps == 0).sum()), int((gaps < tolerance).sum())
        passed = self.difference <= tolerance and kl <= self.bounds.kl
        losses = len(self.targets), float(self.losses[0]), float(self.losses[1])
        return PromptParity(
            tokens, self.difference, tolerance, kl, same, agreeing, self.low, self.high, passed, *losses
        )


def _log_softmax(logits: Array) -> Array:
    """float64, over the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
