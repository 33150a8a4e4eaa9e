"""How probable a model finds a text: perplexity, and the choice among candidates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from exports.generation_config import OptionError
from exports.loaded_model import LoadedModel
from tokenization import Tokenizer, TokenizerError


@dataclasses.dataclass(frozen=True)
class Score:
    """Attributes:

    text: as it was given.
    tokens: of it, without what the tokenizer puts in front of a text.
    logprobs: the natural logarithm of each token's probability after those before it; None for the first one of a model
        that starts from nothing (CPM), which has no probability.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float | None, ...]

    @property
    def total(self) -> float:
        """The sum of the log-probabilities, in nats."""
        return math.fsum(value for value in self.logprobs if value is not None)

    @property
    def mean(self) -> float:
        """Of the tokens that have one; NaN when none has."""
        number = sum(value is not None for value in self.logprobs)
        return self.total / number if number else math.nan

    @property
    def perplexity(self) -> float:
        """exp of minus the mean; infinite where that is too large for a number."""
        try:
            return math.exp(-self.mean)
        except OverflowError:
            return math.inf


@dataclasses.dataclass(frozen=True)
class Choice:
    """Attributes:

    index, candidate: the most probable candidate; the first of equals.
    scores: the mean log-probability that each candidate was judged by.
    """

    index: int
    candidate: str
    scores: tuple[float, ...]


class Scorer:
    """Score texts of any length: see ``LoadedModel.logprobs`` for those longer than the model's positions."""

    def __init__(self, model: LoadedModel, tokenizer: Tokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def score(self, texts: Sequence[str], batch_size: int) -> list[Score]:
        """A score for each text. Raises ``TokenizerError`` for a text without tokens."""
        start = list(self._tokenizer.start_token_ids)
        ids = [self._encode(text) for text in texts]
        found = self._model.logprobs([[*start, *tokens] for tokens in ids], batch_size)
        scores = []
        for text, tokens, logprobs in zip(texts, ids, found, strict=True):
            values: list[float | None] = [*map(float, logprobs[len(start) :])]
            if not start:
                values[0] = None
            scores.append(Score(text, tuple(tokens), tuple(values)))
        return scores

    def choose(self, prompt: str, candidates: Sequence[str], text: str | None, batch_size: int) -> Choice:
        """As ``TextGenerator.choose``."""
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


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise TokenizerError(f"found a value of type {type(text).__name__}: expected a text")
