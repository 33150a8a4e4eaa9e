"""Generated texts: from the tokens that the graph returns to what a caller gets."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from inference.request import EncodedPrompt, TextConfig
from inference.stop_strings import StopStringFilter, find_stop
from tokenization import StreamDecoder

EOS, LENGTH, TRUNCATE, CONSTRAINTS = "eos", "length", "truncate", "constraints"


@dataclasses.dataclass(frozen=True, repr=False)
class GeneratedText:
    """A prompt and its continuation; ``str()`` gives both as one text.

    Attributes:
        prompt: as it was given (of a preset of lines, with its last line ended); of tokens, their text (whole
            characters: ``text`` has what they begin and it ends).
        text: what was generated, without the end of text; with a preset, ends of documents are line feeds.
        tokens: all tokens of it, the end of text included; with ``truncate``, those up to where the text was cut.
        logprobs: the logarithm of the model's own probability of each of them, before any filter.
        finish_reason: ``eos`` (an end of text), ``length`` (as many tokens as asked for), ``truncate``, or
            ``constraints`` (they left no token that could follow).
        score: of beam search, the sum of ``logprobs`` over length ** ``length_penalty``.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    score: float | None = None

    @property
    def full_text(self) -> str:
        """Prompt and continuation."""
        return self.prompt + self.text

    def __str__(self) -> str:
        return self.full_text

    def __repr__(self) -> str:
        return f"GeneratedText({shortened(self.full_text)}, {len(self.tokens)} tokens, {self.finish_reason})"


def shortened(text: str, limit: int = 40) -> str:
    """Return the representation of a text in one short line."""
    return repr(text if len(text) <= limit else f"{text[:limit]}…")


class ResultBuilder:
    """Makes texts of new tokens, in the way that ``config`` asks for."""

    def __init__(self, config: TextConfig) -> None:
        self._config = config

    def new_tokens(self, prompt: EncodedPrompt) -> int:
        """Return how many tokens may follow ``prompt``."""
        if self._config.max_length is None:
            return int(self._config.values["max_new_tokens"])
        return max(0, self._config.max_length - len(prompt.ids))

    def has_ended(self, new: Sequence[int]) -> bool:
        """Return whether the last of some new tokens is an end of text."""
        return bool(new) and new[-1] in self._config.values["eos_token_id"]

    def build(
        self, prompt: EncodedPrompt, new: Sequence[int], logprobs: Iterable[float], score: float | None = None
    ) -> GeneratedText:
        """Return the result with the tokens ``new`` after ``prompt``, cut at the first stop string.

        Args:
            logprobs: one for each token, at least.
        """
        ended = self.has_ended(new)
        decoder = self._decoder_after(prompt)
        parts = [decoder.push(token) for token in new[: len(new) - ended]]
        text, reason = "".join(parts) + decoder.finish(), EOS if ended else LENGTH
        if not ended and len(new) < self.new_tokens(prompt):
            reason = CONSTRAINTS
        if (stop := find_stop(text, self._config.truncate)) is not None:
            text, reason = text[:stop], TRUNCATE
            ends = [0, *itertools.accumulate(map(len, parts))]
            new = new[: next((n for n, end in enumerate(ends) if end >= stop), len(parts))]
        known = tuple(map(float, itertools.islice(logprobs, len(new))))
        return GeneratedText(prompt.text, text, tuple(new), known, reason, score)

    def stream(self, prompt: EncodedPrompt) -> StopStringFilter:
        """Return the text after ``prompt``, to be given its tokens as they come."""
        return StopStringFilter(self._decoder_after(prompt), self._config.truncate)

    def _decoder_after(self, prompt: EncodedPrompt) -> StreamDecoder:
        """Return a decoder that has the tokens of a prompt: what it gives from here on is the continuation."""
        decoder = self._config.style.decoder(self._config.tokenizer)
        for token in prompt.ids:
            decoder.push(token)
        return decoder
