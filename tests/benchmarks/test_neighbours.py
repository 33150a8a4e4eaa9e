"""benchmarks.neighbours: that it runs, and sees a text that is another in a batch."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from benchmarks import neighbours


@dataclasses.dataclass
class Text:
    tokens: tuple[int, ...]
    text: str


class Fake:
    """Writes the prompt's length; in a batch of several every second text has a neighbour's."""

    tokenizer = SimpleNamespace(vocab_size=50)

    def generate(self, prompts: list[list[int]], seed: Any, **options: Any) -> list[Text]:
        lengths = [len(prompt) + (len(prompts) > 1 and n % 2) for n, prompt in enumerate(prompts)]
        return [Text((length,), str(length)) for length in lengths]

    def stream(self, prompt: list[int], seed: int, **options: Any) -> list[str]:
        return [*str(len(prompt))]


def test_it_counts_the_texts_that_differ(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(neighbours, "_BATCHES", (4,))
    monkeypatch.setattr(neighbours.TextGenerator, "load", lambda model: Fake())
    neighbours.main(["model", "--texts", "10", "--longest", "20"])
    assert "model: of 10 texts 5 are others in a batch, 0 as a stream" in capsys.readouterr().out
