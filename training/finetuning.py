"""From texts and a model to a model that writes such texts: check, prepare, train, export.

The module is not called ``finetune``, as the function is: ``training.finetune`` could be either then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointSource
from support.errors import UserError
from training.settings import Settings

Model = Checkpoint | CheckpointSource | str | Path
"""A checkpoint, what opens one, or where one is."""


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned model that was written.

    Attributes:
        folder: where it is.
        format: in which format.
        parameters, trainable: the number of weights, and of those that were trained.
        steps, tokens: updates, and tokens that were predicted in them.
        validation, training: perplexity before and after, of the held-out documents and of a sample of the others.
        seconds: how long it took, this run alone.
        notes: what a user should know, a line each.
    """

    folder: Path
    format: str
    parameters: int
    trainable: int
    steps: int
    tokens: int
    validation: tuple[float, float] | None
    training: tuple[float, float]
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        values = dataclasses.asdict(self)
        return {**values, "folder": str(self.folder), "notes": list(self.notes)}

    def summary(self) -> str:
        """Return one line for people."""
        return str(self.folder)


def finetune(
    model: Model | None,
    text: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    fresh: bool = False,
    overwrite: bool = False,
    message: Callable[[str], object] = lambda line: None,
    **settings: Any,
) -> FinetuneResult:
    """Train ``model`` on texts, and write the result to ``output``.

    Args:
        model: a checkpoint of any format, or a SavedModel of this project; None for one from nothing (``init``).
        text: files and folders of texts.
        output: where the result goes; ``output.training`` beside it has the state while it runs.
        fresh: start over where a run was stopped, instead of going on.
        overwrite: replace an older result at ``output``.
        message: called with lines that tell how it goes.
        settings: see ``training.Settings``.

    Raises:
        UserError: texts, model, settings or destination cannot be used.
    """
    Settings.of(settings)
    raise UserError("finetune: not there yet")
