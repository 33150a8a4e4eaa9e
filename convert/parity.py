"""How far the logits of two models of the same weights lie apart, what their dtype allows, and the report of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Array
from convert.errors import ConvertError

_BLOCK = 1 << 18
"""Logits that are compared in one step: 2 MB as float64."""


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
        top1: least share of all positions with the same best token. Where the source's logits of the two candidates
            are closer than the allowed difference, the position counts as one.
    """

    absolute: float
    relative: float
    kl: float
    top1: float


TOLERANCES = {
    "float32": Tolerance(absolute=1e-4, relative=1e-5, kl=1e-6, top1=1.0),
    "float16": Tolerance(absolute=1e-4, relative=0.02, kl=0.001, top1=0.99),
    "bfloat16": Tolerance(absolute=1e-4, relative=0.02, kl=0.02, top1=0.99),
    "int8": Tolerance(absolute=1e-4, relative=0.05, kl=0.02, top1=0.95),
}


@dataclasses.dataclass(frozen=True)
class PromptParity:
    """One prompt's comparison; a number that is not finite is None, and the prompt has failed.

    Attributes:
        tokens: its length, S.
        max_abs_diff: over its S * V logits.
        tolerance: what ``max_abs_diff`` may be.
        kl: mean KL(source || converted), nats.
        agreeing: positions, of S, with the same best token.
        low, high: the source's smallest and largest logit.
        passed: whether difference and KL are within the tolerance.
    """

    tokens: int
    max_abs_diff: float | None
    tolerance: float | None
    kl: float | None
    agreeing: int
    low: float | None
    high: float | None
    passed: bool


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
        """Share of the positions of all prompts."""
        return sum(prompt.agreeing for prompt in self.prompts) / sum(prompt.tokens for prompt in self.prompts)

    @property
    def passed(self) -> bool:
        return all(prompt.passed for prompt in self.prompts) and self.top1 >= self.bounds.top1

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers, strings, booleans and None."""
        prompts = [{**dataclasses.asdict(prompt), "top1": prompt.agreeing / prompt.tokens} for prompt in self.prompts]
        return {
            "passed": self.passed,
            "dtype": self.dtype,
            "seed": self.seed,
            "bounds": dataclasses.asdict(self.bounds),
            "max_abs_diff": self.max_abs_diff,
            "kl": self.kl,
            "top1": self.top1,
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
        count = len(self.prompts)
        return (
            f"{self.dtype}: {'the same logits as' if self.passed else 'OTHER LOGITS than'} the checkpoint: largest "
            f"difference {_number(self.max_abs_diff)}, KL {_number(self.kl)} nats, top-1 agreement {self.top1:.2%}; "
            f"{count} prompt{'s'[: count != 1]} of up to {max(prompt.tokens for prompt in self.prompts)} tokens"
        )

    def table(self) -> str:
        """A line for each prompt, and ``str``."""
        titles = f"{'tokens':>7} {'max |diff|':>11} {'allowed':>9} {'KL (nats)':>11} {'top-1':>9}"
        lines = [f"{titles} {'logits from':>12} {'to':>9}"]
        for prompt in self.prompts:
            lines.append(
                f"{prompt.tokens:7} {_number(prompt.max_abs_diff):>11} {_number(prompt.tolerance):>9} "
                f"{_number(prompt.kl):>11} {prompt.agreeing / prompt.tokens:9.2%} {_number(prompt.low):>12} "
                f"{_number(prompt.high):>9}{'' if prompt.passed else '   too far'}"
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
            f"{_number(worst.kl)} nats, {self.bounds.kl:g} allowed; top-1 agreement of all prompts {self.top1:.2%}, "
            f"{self.bounds.top1:.2%} required: it is of another checkpoint, or wrongly converted"
        )


def _largest(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return max(finite) if len(finite) == len(values) else None


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


class Comparison:
    """Takes the logits of one prompt block by block."""

    def __init__(self, bounds: Tolerance) -> None:
        self.bounds = bounds
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
        rows = np.arange(len(source))
        self.gaps.append(source.max(axis=-1) - source[rows, converted.argmax(axis=-1)])

    def result(self) -> PromptParity:
        gaps = np.concatenate(self.gaps)
        tokens, values = len(gaps), [self.difference, self.kl, self.low, self.high]
        if not all(map(math.isfinite, values)):
            difference, _, low, high = (value if math.isfinite(value) else None for value in values)
            return PromptParity(tokens, difference, None, None, 0, low, high, passed=False)
        kl = max(0.0, self.kl / tokens)  # equal logits may give -1e-17
        extent = max(self.high, 0.0) - min(self.low, 0.0)
        tolerance = max(self.bounds.absolute, self.bounds.relative * extent)
        agreeing = int((gaps < tolerance).sum())
        passed = self.difference <= tolerance and kl <= self.bounds.kl
        return PromptParity(tokens, self.difference, tolerance, kl, agreeing, self.low, self.high, passed)


def _log_softmax(logits: Array) -> Array:
    """float64, over the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
