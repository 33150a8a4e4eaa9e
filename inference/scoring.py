"""How probable a model finds a text: perplexity, bits per character, and the choice among candidates."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from exports.generation_config import OptionError
from exports.loaded_model import LoadedModel
from inference.model_tokenizer import ModelTokenizer
from inference.results import shortened
from tokenization import TokenizerError


@dataclasses.dataclass(frozen=True, repr=False)
class Score:
    """How probable a model finds a text.

    Attributes:
        text: as it was given.
        tokens: of it, without what stands in front of every text. A special piece in it is text; its line feeds are
            the model's line piece, if it has one.
        logprobs: the natural logarithm of each token's probability after those before it; None for the first one of a
            model that starts from nothing (CPM), which has no probability.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float | None, ...]

    @property
    def total(self) -> float:
        """The sum of the log-probabilities, in nats."""
        return math.fsum(value for value in self.logprobs if value is not None)

    @property
    def scored_tokens(self) -> int:
        """How many tokens have a probability."""
        return sum(value is not None for value in self.logprobs)

    @property
    def mean(self) -> float:
        """Of the tokens that have one; NaN when none has."""
        return self.total / self.scored_tokens if self.scored_tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp of minus the mean; infinite where that is too large for a number."""
        return _exp(-self.mean)

    @property
    def bits_per_character(self) -> float:
        """Minus the sum of the log-probabilities, in bits, over the number of characters."""
        return CorpusScore.of([self]).bits_per_character

    def __repr__(self) -> str:
        return f"Score({shortened(self.text)}, {len(self.tokens)} tokens, perplexity {self.perplexity:.4g})"


@dataclasses.dataclass(frozen=True)
class CorpusScore:
    """How probable a model finds several texts together.

    Attributes:
        documents: how many texts.
        tokens: how many of their tokens have a probability.
        characters: of all texts.
        total: the sum of the log-probabilities, in nats.
    """

    documents: int
    tokens: int
    characters: int
    total: float

    @classmethod
    def of(cls, scores: Iterable[Score]) -> CorpusScore:
        """Add up the scores of texts; they are not kept."""
        whole = cls(0, 0, 0, 0.0)
        for score in scores:
            whole += cls(1, score.scored_tokens, len(score.text), score.total)
        return whole

    def __add__(self, other: CorpusScore) -> CorpusScore:
        return CorpusScore(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.characters + other.characters,
            self.total + other.total,
        )

    @property
    def perplexity(self) -> float:
        """exp of minus the mean log-probability of the tokens; NaN when none has one."""
        return _exp(-self.total / self.tokens) if self.tokens else math.nan

    @property
    def bits_per_character(self) -> float:
        """Minus the sum of the log-probabilities, in bits, over the number of characters; NaN when no token has one."""
        return -self.total / math.log(2) / self.characters if self.tokens else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON; NaN and infinity, which JSON does not have, are None."""
        figures = {"perplexity": self.perplexity, "bits_per_character": self.bits_per_character}
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        return {"documents": self.documents, "tokens": self.tokens, "characters": self.characters, **finite}


@dataclasses.dataclass(frozen=True, repr=False)
class Choice:
    """The most probable of several candidates.

    Attributes:
        index, candidate: the most probable candidate; the first of equals.
        scores: the mean log-probability that each candidate was judged by.
    """

    index: int
    candidate: str
    scores: tuple[float, ...]

    def __str__(self) -> str:
        return self.candidate

    def __repr__(self) -> str:
        return f"Choice({shortened(self.candidate)}, {self.index} of {len(self.scores)})"


class Scorer:
    """Score texts of any length: see ``LoadedModel.logprobs`` for those longer than the model's positions."""

    def __init__(self, model: LoadedModel, tokenizer: ModelTokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def score(
        self, texts: Iterable[str], batch_size: int, on_progress: Callable[[int], object] | None = None
    ) -> Iterator[Score]:
        """Yield a score for each text; ``batch_size`` texts at a time are read and held.

        Args:
            on_progress: called with the bytes of all texts so far, in UTF-8, that are scored.

        Raises:
            TokenizerError: a text without tokens, or that is no text.
        """
        start = list(self._tokenizer.start_token_ids)
        remaining, size_before = iter(texts), 0
        while some := list(itertools.islice(remaining, batch_size)):
            ids = [self._encode(text) for text in some]
            size = sum(len(text.encode()) for text in some)
            count = _TokenCount(size_before, size, sum(map(len, ids)), on_progress)
            found = self._model.logprobs([[*start, *tokens] for tokens in ids], batch_size, count.add)
            size_before += size
            for text, tokens, logprobs in zip(some, ids, found, strict=True):
                values: list[float | None] = [*map(float, logprobs[len(start) :])]
                if not start:
                    values[0] = None
                yield Score(text, tuple(tokens), tuple(values))

    def choose(self, prompt: str, candidates: Sequence[str], text: str | None, batch_size: int) -> Choice:
        """Choose as ``TextGenerator.choose`` does."""
        if not candidates:
            raise OptionError("no candidates to choose from")
        for given in (prompt, *candidates, "" if text is None else text):
            _check_text(given)
        if text is None:
            pairs = [(prompt, candidate) for candidate in candidates]
        elif "{}" in prompt:
            pairs = [(prompt.replace("{}", candidate), text) for candidate in candidates]
        else:
            raise OptionError(f"{prompt[:40]!r}: with a text to be scored, the prompt needs a {{}} for the candidate")
        limit, rows, lengths = self._model.config.n_positions, [], []
        for before, scored in pairs:
            ids, new = self._tokenizer.encode_prompt(before), self._encode(scored)
            if len(ids) >= limit:
                raise TokenizerError(
                    f"{before[:20]!r}: {len(ids)} tokens leave nothing of the model's {limit} positions"
                )
            rows.append([*ids, *new][:limit])  # of a long text its beginning, as CPM does it
            lengths.append(len(ids))
        found = self._model.logprobs(rows, batch_size)
        scores = [float(values[length:].mean()) for values, length in zip(found, lengths, strict=True)]
        best = max(range(len(scores)), key=scores.__getitem__)
        return Choice(best, candidates[best], tuple(scores))

    def _encode(self, text: str) -> list[int]:
        _check_text(text)
        ids = self._tokenizer.encode(text)
        if not ids:
            raise TokenizerError(f"{text[:20]!r}: a text without tokens has no probability")
        return ids


class _TokenCount:
    """Reports tokens that are scored as bytes of text: the bytes of a batch are spread evenly over its tokens."""

    def __init__(self, before: int, size: int, tokens: int, report: Callable[[int], object] | None) -> None:
        self._before, self._size, self._tokens, self._report, self._done = before, size, tokens, report, 0

    def add(self, tokens: int) -> None:
        self._done += tokens
        if self._report is not None:
            self._report(self._before + self._size * min(self._done, self._tokens) // self._tokens)


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise TokenizerError(f"found a value of type {type(text).__name__}: expected a text")


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
