"""The reports of a run while it trains, and the watcher that gets them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from support.progress import TerminalProgress


@dataclasses.dataclass(frozen=True)
class StepReport:
    """A step that is done.

    Attributes:
        step: its number, from 1 on, of ``steps``.
        loss: mean loss of its predicted tokens, nats.
        learning_rate: of this update.
        tokens_per_second: predicted tokens, over the last steps.
        seconds_left: until the last step, evaluations left out.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds_left: float


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
    """A validation after ``step`` updates; ``is_best`` says whether no earlier loss was as low."""

    step: int
    loss: float
    perplexity: float
    is_best: bool


def show_perplexity(value: float) -> str:
    """Return a perplexity as lines for users have it: ``20,022.13``."""
    return f"{value:,.2f}"


class Watcher:
    """Gets the reports of a run; this one shows nothing."""

    def step(self, report: StepReport) -> None:
        """Take a step that is done."""

    def evaluation(self, report: EvaluationReport) -> None:
        """Take a validation loss."""

    def samples(self, step: int, texts: Sequence[str]) -> None:
        """Take texts that the model wrote after ``step`` updates."""

    def stage(self, name: str) -> None:
        """Take what is done from now on, for a time without other reports."""

    def note(self, text: str) -> None:
        """Take a fact, on one line."""


class TerminalWatcher(Watcher):
    """Shows steps as ``progress`` does, and a line for each evaluation, sample and note.

    Args:
        progress: counts steps: ``TerminalProgress(unit=" steps")``.
    """

    def __init__(self, progress: TerminalProgress) -> None:
        self._progress = progress

    def step(self, report: StepReport) -> None:
        note = f"loss {report.loss:.4f}, {report.tokens_per_second:,.0f} tokens/s"
        self._progress("train", report.step, report.steps, note)

    def evaluation(self, report: EvaluationReport) -> None:
        best = ", the best so far" if report.is_best and report.step else ""
        shown = f"validation loss {report.loss:.4f}, perplexity {show_perplexity(report.perplexity)}"
        self._progress.write(f"step {report.step}: {shown}{best}")

    def samples(self, step: int, texts: Sequence[str]) -> None:
        for number, text in enumerate(texts, 1):
            self._progress.write(f"--- step {step}, sample {number}\n{text}\n---")

    def stage(self, name: str) -> None:
        self._progress.write(f"{name} ...")

    def note(self, text: str) -> None:
        self._progress.write(f"note: {text}")
