"""Text in, text out: an exported model with its tokenizer.

>>> generator = TextGenerator.load("cpm-savedmodel")
>>> generator.generate("今天天气不错", max_new_tokens=50, seed=1)[0].full_text
>>> for part in generator.stream("今天天气不错"): print(part, end="", flush=True)
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exports.generation_config import GenerationConfig, OptionError, read_defaults, resolve
from exports.loaded_model import Array, LoadedModel, load
from exports.saved_model_folder import GENERATION_CONFIG
from inference.scoring import Choice, Score, Scorer
from tokenization import StreamDecoder, Tokenizer, TokenizerError

Prompt = str | Sequence[int]
"""A text, or its tokens."""

EOS, LENGTH, TRUNCATE, CONSTRAINTS = "eos", "length", "truncate", "constraints"

_FIRST, _MOST = 1, 8
"""Tokens per call while a text is streamed: few at first, so that the beginning comes at once."""


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """Attributes:

    prompt: as it was given; of tokens, their text (whole characters: ``text`` has what they begin and it ends).
    text: what was generated, without the end of text.
    tokens: all tokens of it, the end of text included; with ``truncate``, those up to where the text was cut.
    logprobs: the logarithm of the model's own probability of each of them, before any filter.
    finish_reason: ``eos`` (an end of text), ``length`` (as many tokens as asked for), ``truncate``, or ``constraints``
        (they left no token that could follow).
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


class TextGenerator:
    """A loaded SavedModel and its tokenizer; needs nothing but the SavedModel's folder.

    Options are those of ``generation_config.json`` (``exports/generation_options.py`` lists them), by default the ones
    that the SavedModel carries. Beside them there are ``max_length`` (tokens of prompt and continuation together),
    ``do_sample`` (False is greedy) and ``truncate`` (the text ends before this string, or the first of several).
    """

    def __init__(self, model: LoadedModel, tokenizer: Tokenizer, defaults: dict[str, Any]) -> None:
        self.config = model.config
        self.tokenizer = tokenizer
        self.defaults = defaults
        self._model = model
        self._scorer = Scorer(model, tokenizer)
        # Megatron pads the vocabulary: the model has rows that no text becomes and that have no text.
        self._no_text = tuple(range(tokenizer.vocab_size, model.config.vocab_size))

    @classmethod
    def load(cls, folder: str | Path, *, max_batch_size: int = 8) -> TextGenerator:
        """Loads a SavedModel of this project.

        Args:
            folder: the SavedModel.
            max_batch_size: most texts that will be generated at once. With 1, TensorFlow is told to use one thread
                per operation where the model is so small that this is faster.

        Raises:
            ModelError: the folder is not one, or has no tokenizer.
            TokenizerError: its tokenizer cannot be used.
            OptionError: its ``generation_config.json`` cannot be used.
        """
        model, tokenizer = load(Path(folder), max_batch_size)
        return cls(model, tokenizer, read_defaults(Path(folder) / "assets" / GENERATION_CONFIG))

    def resolve(self, **options: Any) -> GenerationConfig:
        """The options, checked, with the model's defaults for those left out; ``OptionError`` for one that is wrong."""
        return resolve(options, self.defaults, self.config)

    def generate(
        self, prompts: Prompt | Iterable[Prompt], *, batch_size: int = 8, **options: Any
    ) -> list[GeneratedText]:
        """Continues each prompt: ``num_return_sequences`` results for the first one, then those of the second, ...

        A prompt is a text or a list of token ids. With a ``seed`` the n-th result of a prompt is drawn with seed + n,
        whatever the other prompts are; a list has one seed per prompt. Texts longer than the model's positions go on in
        a window that moves.

        Args:
            prompts: one, or several.
            batch_size: rows that are generated at once.
            options: see the class.

        Raises:
            OptionError: an option that does not exist or cannot be so.
            TokenizerError: a prompt without tokens, with ids outside the vocabulary, or that is no prompt.
            ModelError: TensorFlow cannot do it, for want of memory for example.
        """
        config = self.resolve(**options)
        _check_batch_size(batch_size)
        encoded = [self._encode(prompt) for prompt in _as_list(prompts)]
        each = 1 if config.beams else config.values["num_return_sequences"]
        seeds = _seeds(config, len(encoded), each)
        rows = [(*row, seed) for row, of_row in zip(encoded, seeds, strict=True) for seed in of_row]
        results: list[GeneratedText] = []
        for start in range(0, len(rows), batch_size):
            results += self._batch(rows[start : start + batch_size], config)
        return results

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """The continuation of one prompt, in parts, as it comes: never half a character, and nothing that is taken
        back. Joined they are ``generate``'s text with the same seed; but rounding can change that, in float16 often.

        Raises:
            OptionError, TokenizerError: as ``generate``; at once, before the first part is asked for.
        """
        config = self.resolve(**options)
        if config.beams or config.values["num_return_sequences"] != 1:
            raise OptionError("a stream is one text, and beam search knows none before its end: num_beams and "
                              "num_return_sequences have to be 1")  # fmt: skip
        _, ids = self._encode(prompt)
        return self._stream(ids, config)

    def score(self, texts: str | Sequence[str], *, batch_size: int = 8) -> list[Score]:
        """How probable the model finds texts, token by token; see ``Score``. Of any length: see ``Scorer``.

        Raises:
            OptionError: ``batch_size`` is less than 1.
            TokenizerError: a text without tokens, or that is no text.
        """
        _check_batch_size(batch_size)
        return self._scorer.score([texts] if isinstance(texts, str) else list(texts), batch_size)

    def choose(self, prompt: str, candidates: Sequence[str], *, text: str | None = None, batch_size: int = 8) -> Choice:
        """The most probable of ``candidates``, by the mean log-probability of their tokens behind ``prompt``.

        With ``text``, ``prompt`` has a ``{}`` that each candidate is put into, and it is the text behind it that is
        scored: CPM's zero-shot classification, as in ``choose("这是关于{}的文章：", ["体育", "财经"], text=article)``.

        Raises:
            OptionError: no candidates, or no ``{}`` where one is needed.
            TokenizerError: a candidate or text without tokens, or a prompt that fills the model's positions.
        """
        _check_batch_size(batch_size)
        if isinstance(candidates, str):
            raise OptionError(f"candidates is the text {candidates[:20]!r}: expected a list of texts")
        return self._scorer.choose(prompt, list(candidates), text, batch_size)

    def _encode(self, prompt: Prompt) -> tuple[str, list[int]]:
        """The text of a prompt and its tokens."""
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode_prompt(prompt)
        ids = _ids(prompt) or self.tokenizer.encode_prompt("")
        return _begin(self.tokenizer, ids)[1], ids

    def _inputs(self, config: GenerationConfig) -> dict[str, Any]:
        inputs = config.inputs()
        return {**inputs, "suppress_tokens": (*inputs["suppress_tokens"], *self._no_text)}

    def _batch(self, rows: Sequence[tuple[str, list[int], int]], config: GenerationConfig) -> list[GeneratedText]:
        texts, prompts, seeds = zip(*rows, strict=True)
        options = {**self._inputs(config), "max_new_tokens": [_new_tokens(config, ids) for ids in prompts]}
        if config.beams:
            self._check_room(prompts, options["max_new_tokens"])
            output = self._model.call("beam_search", prompts, **options)
            results = []
            for i, (text, ids) in enumerate(zip(texts, prompts, strict=True)):
                for sequence, length, score in zip(*(output[key][i] for key in _BEAMS), strict=True):
                    new = sequence[len(ids) : length].tolist()
                    logprobs = self._model.logprobs([[*ids, *new]])[0][len(ids) :]
                    results.append(self._result(text, ids, new, logprobs, config, float(score)))
            return results
        output = self._model.call("generate", prompts, **{**options, "seed": seeds})
        results = []
        for text, ids, sequence, length, logprobs in zip(texts, prompts, *(output[key] for key in _ROWS), strict=True):
            new = sequence[len(ids) : length].tolist()
            results.append(self._result(text, ids, new, logprobs[: len(new)], config))
        return results

    def _check_room(self, prompts: Sequence[list[int]], new: Sequence[int]) -> None:
        limit = self.config.n_positions
        for ids, number in zip(prompts, new, strict=True):
            if len(ids) + number > limit:
                raise OptionError(
                    f"a prompt of {len(ids)} tokens and {number} new ones exceed the model's {limit} positions, and "
                    "beam search has no window that moves: give fewer max_new_tokens"
                )

    def _result(
        self, prompt: str, ids: list[int], new: list[int], logprobs: Array, config: GenerationConfig,
        score: float | None = None,
    ) -> GeneratedText:  # fmt: skip
        ended = bool(new) and new[-1] in config.values["eos_token_id"]
        decoder = _begin(self.tokenizer, ids)[0]
        parts = [decoder.push(token) for token in new[: len(new) - ended]]
        text, reason = "".join(parts) + decoder.finish(), EOS if ended else LENGTH
        if not ended and len(new) < _new_tokens(config, ids):
            reason = CONSTRAINTS
        if (cut := _cut(text, config.truncate)) is not None:
            text, reason = text[:cut], TRUNCATE
            ends = [0, *itertools.accumulate(map(len, parts))]
            new = new[: next((n for n, end in enumerate(ends) if end >= cut), len(parts))]
        return GeneratedText(prompt, text, tuple(new), tuple(map(float, logprobs[: len(new)])), reason, score)

    def _stream(self, ids: list[int], config: GenerationConfig) -> Iterator[str]:
        ends, minimum = config.values["eos_token_id"], config.values["min_new_tokens"]
        ((seed,),) = _seeds(config, 1, 1)
        limit = len(ids) + _new_tokens(config, ids)
        text = _Text(_begin(self.tokenizer, ids)[0], config.truncate)
        inputs = self._inputs(config)
        state = self._model.prefill(ids, inputs) if limit > len(ids) else {}
        size = _FIRST
        while len(ids) < limit and not text.cut:
            options = {**inputs, "seed": seed, "max_new_tokens": min(size, limit - len(ids))}
            options["min_new_tokens"] = minimum
            new, state = self._model.decode(ids, state, options)
            if not new:  # the constraints leave no token
                break
            ids, minimum, size = [*ids, *new], max(0, minimum - len(new)), min(2 * size, _MOST)
            ended = new[-1] in ends
            for token in new[: len(new) - ended]:
                if part := text.push(token):
                    yield part
            if ended:
                break
        if part := text.finish():
            yield part


_ROWS = ("sequences", "lengths", "logprobs")
_BEAMS = ("sequences", "lengths", "scores")


class _Text:
    """A ``StreamDecoder`` that stops before any of some strings, and so holds back what one may begin with."""

    def __init__(self, decoder: StreamDecoder, ends: tuple[str, ...]) -> None:
        self._decoder, self._ends, self._held = decoder, ends, ""
        self.cut = False

    def push(self, token: int) -> str:
        return "" if self.cut else self._give(self._decoder.push(token), final=False)

    def finish(self) -> str:
        return "" if self.cut else self._give(self._decoder.finish(), final=True)

    def _give(self, part: str, final: bool) -> str:
        text = self._held + part
        keep = 0 if final else max((_overlap(text, end) for end in self._ends), default=0)
        sure, cut = len(text) - keep, _cut(text, self._ends)
        if cut is not None and cut <= sure:  # else another of the strings may begin before it
            self.cut, sure = True, cut
        self._held = text[sure:]
        return text[:sure]


def _overlap(text: str, end: str) -> int:
    """The longest end of ``text`` that ``end`` begins with, without being it."""
    return next((n for n in range(min(len(end) - 1, len(text)), 0, -1) if text.endswith(end[:n])), 0)


def _cut(text: str, ends: tuple[str, ...]) -> int | None:
    return min((place for end in ends if (place := text.find(end)) >= 0), default=None)


def _begin(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[StreamDecoder, str]:
    """A decoder that has the tokens of a prompt, and their text: what it gives from here on is the continuation."""
    decoder = tokenizer.stream_decoder()
    return decoder, "".join([decoder.push(token) for token in ids])


def _as_list(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    if isinstance(prompts, (str, bytes)):
        return [prompts]
    try:
        found: list[Any] = list(prompts)
    except TypeError as error:
        raise TokenizerError(f"prompts are of type {type(prompts).__name__}: expected texts or lists of ids") from error
    return [found] if found and isinstance(found[0], (int, np.integer)) else found


def _ids(prompt: Sequence[int]) -> list[int]:
    try:
        if isinstance(prompt, bytes):
            raise TypeError("it is bytes")
        return [operator.index(token) for token in prompt]
    except TypeError as error:
        raise TokenizerError(f"a prompt is neither a text nor a list of token ids: {error}") from error


def _check_batch_size(value: Any) -> None:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise OptionError(f"batch_size is {value!r}: expected a whole number, 1 or more")


def _new_tokens(config: GenerationConfig, ids: Sequence[int]) -> int:
    if config.max_length is None:
        return int(config.values["max_new_tokens"])
    return max(0, config.max_length - len(ids))


def _seeds(config: GenerationConfig, prompts: int, each: int) -> list[list[int]]:
    """The seeds of each prompt's results."""
    if config.seeds is not None and len(config.seeds) != prompts:
        raise OptionError(f"seed has {len(config.seeds)} values for {prompts} prompts: expected one for each, or one")
    first = config.seeds or [config.values["seed"]] * prompts
    new: Callable[[], int] = lambda: secrets.randbits(63)  # noqa: E731
    return [[new() if seed < 0 else (seed + n) % 2**63 for n in range(each)] for seed in first]
