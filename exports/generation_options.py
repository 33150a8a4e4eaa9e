"""What can be said about how a text is generated: one table for the graph, for Python and for the command line.

The names are those of transformers' ``generation_config.json``; those that it does not have are ``seed`` and the two of
the window. This module needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

_INT32 = 2**31 - 1
MAX_NEW_TOKENS = 100_000_000
"""More is a mistake: the room for a text is taken before its first token."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A parameter of generation: a whole number, a real number, or a list of tokens.

    Attributes:
        default: what it is when left out; its type is the option's, and a tuple is a list of tokens.
        low, high: what it may be at least and at most; for tokens this is -1, none, to the last of the vocabulary.
        exclusive_low: ``low`` itself is not allowed.
        help: one line for the command line.
    """

    default: int | float | tuple[int, ...]
    low: float
    high: float
    help: str
    exclusive_low: bool = False

    @property
    def is_list(self) -> bool:
        return isinstance(self.default, tuple)

    @property
    def is_flag(self) -> bool:
        return isinstance(self.default, bool)

    @property
    def is_real(self) -> bool:
        return isinstance(self.default, float)

    @property
    def expected(self) -> str:
        """The values allowed, in words."""
        low, high = f"{self.low:g}", f"{self.high:g}"
        if self.is_list:
            return "token ids, -1 for none"
        if self.low == -float("inf"):
            return "any number that float32 can hold"
        if self.high in (float("inf"), _INT32, MAX_NEW_TOKENS, 2**63 - 1):
            at_least = f"more than {low}" if self.exclusive_low else f"{low} or more"
            return at_least if self.high != MAX_NEW_TOKENS else f"{low} to {MAX_NEW_TOKENS}"
        return f"more than {low}, at most {high}" if self.exclusive_low else f"{low} to {high}"


_INF = float("inf")

COMMON_OPTIONS: Mapping[str, Option] = {
    "max_new_tokens": Option(20, 0, MAX_NEW_TOKENS, "most tokens to be added"),
    "min_new_tokens": Option(0, 0, _INT32, "no end of text before so many new tokens"),
    "repetition_penalty": Option(
        1.0, 0, _INF, "above 1 makes tokens of the text so far less probable; 1 is off", exclusive_low=True
    ),
    "no_repeat_ngram_size": Option(0, 0, _INT32, "no sequence of so many tokens occurs twice; 0 is off"),
    "suppress_tokens": Option((), -1, _INT32, "token ids that never occur"),
    "eos_token_id": Option((), -1, _INT32, "token ids that end a text"),
}
"""Options of every way of generating."""

SAMPLING_OPTIONS: Mapping[str, Option] = {
    "temperature": Option(1.0, 0, _INF, "0 takes the most probable token, above 1 flattens the distribution"),
    "top_k": Option(0, 0, _INT32, "keep only the k most probable tokens; 0 is off"),
    "top_p": Option(1.0, 0, 1, "keep the most probable tokens that together reach X; 1 is off", True),
    "min_p": Option(0.0, 0, 1, "drop tokens less than X times as probable as the best; 0 is off"),
    "typical_p": Option(1.0, 0, 1, "keep the most typical tokens that together reach X; 1 is off", True),
    "seed": Option(-1, -1, 2**63 - 1, "the same seed gives the same text; -1 picks a new one each time"),
    "window_tokens": Option(0, 0, _INT32, "tokens kept when all positions are used; 0 is half of them"),
    "window_line_token_id": Option(
        -1, -1, _INT32, "the kept tokens start after this one, the end of a line; -1 is off"
    ),
}
"""Options of sampling and of greedy decoding."""

BEAM_OPTIONS: Mapping[str, Option] = {
    "num_beams": Option(4, 1, _INT32, "texts that beam search follows at once; 1 is no beam search"),
    "num_return_sequences": Option(1, 1, _INT32, "texts that are returned"),
    "length_penalty": Option(1.0, -_INF, _INF, "above 0 favours longer texts, below shorter ones"),
    "early_stopping": Option(
        0,
        0,
        2,
        "stop when the best running beam cannot win (0), as soon as num_beams texts are finished (1), or only when no "
        "running beam could still win (2)",
    ),
}
"""Options of beam search."""
