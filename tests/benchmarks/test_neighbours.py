"""benchmarks.neighbours: that it runs, and sees a text that is another in a batch."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

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


def test_it_counts_the_texts_that_differ() -> None:
    generator: Any = Fake()
    assert neighbours.compare(generator, texts=10, new=5, longest=20, batch_sizes=(4,)) == (5, 0)


def test_it_prints_a_line_for_each_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("inference.load", lambda folder: Fake())
    neighbours.main(["model", "--texts", "1", "--longest", "20"])
    assert capsys.readouterr().out == "model: of 1 texts 0 are others in a batch, 0 as a stream\n"
