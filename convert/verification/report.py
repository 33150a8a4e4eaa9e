"""What a comparison of two models says: judgement and words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.verification.metrics import (
    MIN_TOKENS_FOR_PERPLEXITY,
    Perplexity,
    PromptParity,
    Tolerance,
    total_perplexity,
)
from support.errors import ConvertError
from support.messages import pluralize

_MAX_ROWS = 5
"""Prompts in a table; of more only the worst are shown."""


class VerificationError(ConvertError):
    """The converted model does not compute what the source does."""

    exit_code = 3


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """The result of a verification; ``str`` is its summary.

    Attributes:
        dtype: of the converted model.
        bounds: the tolerance of that dtype.
        seed: of the random prompts; None when a text was given.
        prompts: in the order of the file.
        notes: what a user should know about the models and the text, one line each.
    """

    dtype: str
    bounds: Tolerance
    seed: int | None
    prompts: tuple[PromptParity, ...]
    notes: tuple[str, ...] = ()

    @property
    def max_abs_diff(self) -> float | None:
        """The largest difference of a logit; None where one is not finite."""
        return _largest([prompt.max_abs_diff for prompt in self.prompts])

    @property
    def kl(self) -> float | None:
        """The KL divergence of the worst prompt; None where it is not finite."""
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
        """Of all prompts together; None of random tokens, whose perplexity says nothing, and of single tokens."""
        return total_perplexity(self.prompts, self.bounds.perplexity)

    @property
    def same_logits(self) -> bool:
        """Whether difference, KL and best tokens are within the tolerance."""
        return all(prompt.passed for prompt in self.prompts) and self.agreement >= self.bounds.agreement

    @property
    def passed(self) -> bool:
        return self.same_logits and (self.perplexity is None or self.perplexity.passed)

    def check(self, where: str | Path = "the converted model") -> None:
        """Raise an error unless the report has passed.

        Args:
            where: the converted model's path, for the message.

        Raises:
            VerificationError: it has not; the message names the worst prompt.
        """
        if self.passed:
            return
        if self.same_logits and self.perplexity:
            raise VerificationError(
                f"{where}: does not predict text as the checkpoint does: {_describe(self.perplexity)}, though every "
                f"logit is as close as {self.dtype} has to be: choose another --dtype, or it is wrongly converted"
            )
        number, worst = self.worst(1)[0]
        raise VerificationError(
            f"{where}: does not compute what the checkpoint does: prompt {number} ({worst.tokens} tokens): logits "
            f"differ by up to {_number(worst.max_abs_diff)}, {_number(worst.tolerance)} allowed ({self.dtype}); KL "
            f"{_number(worst.kl)} nats, {self.bounds.kl:g} allowed; best token the same, or a near tie, in "
            f"{self.agreement:.2%} of all positions, {self.bounds.agreement:.2%} required: it was made from another "
            "checkpoint, or is wrongly converted"
        )

    def worst(self, count: int) -> list[tuple[int, PromptParity]]:
        """Return the ``count`` prompts that use most of their tolerance, with their numbers from 1; the worst first."""
        numbered = list(enumerate(self.prompts, 1))
        return sorted(numbered, key=lambda item: (item[1].passed, -item[1].excess(self.bounds)))[:count]

    def summary(self) -> str:
        """Return the verdict and the numbers of all prompts together, in one line."""
        near_ties = "" if self.agreement == self.top1 else f" ({self.agreement:.2%} with near ties)"
        perplexity = f"{_describe(self.perplexity)}; " if self.perplexity else ""
        longest = max(prompt.tokens for prompt in self.prompts)
        return (
            f"{self.dtype}: {self._verdict()}: largest difference {_number(self.max_abs_diff)}, KL "
            f"{_number(self.kl)} nats, same best token {self.top1:.2%}{near_ties}; {perplexity}"
            f"{pluralize(len(self.prompts), 'prompt')} of up to {pluralize(longest, 'token')}"
        )

    __str__ = summary

    def _verdict(self) -> str:
        if not self.same_logits:
            return f"MISMATCH: the logits differ from the checkpoint's by more than {self.dtype} allows"
        if not self.passed:
            return f"MISMATCH: the perplexity differs from the checkpoint's by more than {self.dtype} allows"
        if self.dtype == "float32":
            return "the same logits as the checkpoint"
        return f"the logits are as close to the checkpoint's as {self.dtype} has to be"

    def table(self) -> str:
        """Return a line for each prompt, where there are many for the worst few, and the summary."""
        rows = list(enumerate(self.prompts, 1))
        ending = []
        if len(rows) > _MAX_ROWS:
            rows = self.worst(_MAX_ROWS)
            failed = sum(not prompt.passed for prompt in self.prompts)
            found = f"the {_MAX_ROWS} worst of {len(self.prompts)} prompts"
            ending = [f"{found}; {failed} differ by more than is allowed" if failed else found]
        width = max(len(prompt.place) for prompt in self.prompts)  # 0: random tokens, which are from nowhere
        has_text = self.perplexity is not None
        lines = [_row(_TITLES, _TEXT_TITLES if has_text else (), "from"[:width], width)]
        for _, prompt in rows:
            cells = (
                str(prompt.tokens), _number(prompt.max_abs_diff), _number(prompt.tolerance), _number(prompt.kl),
                f"{prompt.top1:.2%}", _number(prompt.low), _number(prompt.high),
            )  # fmt: skip
            line = _row(cells, _text_cells(prompt) if has_text else (), prompt.place, width)
            lines.append(line if prompt.passed else f"{line}   too far")
        return "\n".join([*lines, *ending, self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON: numbers, strings, booleans and None."""
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
            "prompts": [{**dataclasses.asdict(prompt), "top1": prompt.top1} for prompt in self.prompts],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ParityReport:
        """Make a report of what ``to_dict`` gave."""
        names = [field.name for field in dataclasses.fields(PromptParity)]
        prompts = (PromptParity(**{name: prompt[name] for name in names}) for prompt in values["prompts"])
        bounds = Tolerance(**values["bounds"])
        return cls(values["dtype"], bounds, values["seed"], tuple(prompts), tuple(values["notes"]))


_TITLES = ("tokens", "max |diff|", "allowed", "KL (nats)", "same best", "logits from", "to")
_WIDTHS = (7, 11, 9, 11, 9, 12, 9)
_TEXT_TITLES = ("perplexity", "converted", "change")
_TEXT_WIDTHS = (11, 11, 10)


def _row(cells: Sequence[str], text_cells: Sequence[str], place: str, place_width: int) -> str:
    """Return a line of the table; ``text_cells`` and the place are there where the prompts are of a text."""
    columns = [*zip(cells, _WIDTHS, strict=True), *zip(text_cells, _TEXT_WIDTHS, strict=bool(text_cells))]
    numbers = " ".join(f"{cell:>{width}}" for cell, width in columns)
    return f"{place:<{place_width}} {numbers}" if place_width else numbers


def _text_cells(prompt: PromptParity) -> tuple[str, ...]:
    found = prompt.perplexity
    if found is None:  # a single token: nothing is predicted
        return ("", "", "")
    return _number(found.source, 5), _number(found.converted, 5), _percent(found.change)


def _describe(perplexity: Perplexity) -> str:
    allowed = f"too few to judge, {MIN_TOKENS_FOR_PERPLEXITY} are needed"
    if perplexity.allowed is not None:
        allowed = f"{perplexity.allowed:.2%} allowed"
    return (
        f"perplexity {_number(perplexity.source, 5)}, converted {_number(perplexity.converted, 5)} "
        f"({_percent(perplexity.change)}; {perplexity.tokens} tokens: {allowed})"
    )


def _largest(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return max(finite) if len(finite) == len(values) else None


def _number(value: float | None, digits: int = 3) -> str:
    return "not finite" if value is None else f"{value:.{digits}g}"


def _percent(change: float | None) -> str:
    return "not finite" if change is None else f"{round(change, 6) + 0.0:+.4%}"  # no -0
