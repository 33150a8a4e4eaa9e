"""Text in, text out: a SavedModel with its tokenizer.

>>> generator = TextGenerator.load("cpm-savedmodel")
>>> generator.generate("今天天气不错", max_new_tokens=50, seed=1)[0].full_text
>>> for part in generator.stream("今天天气不错"): print(part, end="", flush=True)
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exports.generation_config import OptionError
from exports.loaded_model import LoadedModel, load
from exports.saved_model_folder import SavedModelFolder
from inference.options import GenerationOptions, document_options
from inference.request import EncodedPrompt, Prompt, RequestReader, TextConfig, as_prompts
from inference.results import GeneratedText, ResultBuilder
from inference.scoring import Choice, CorpusScore, Score, Scorer
from tokenization import Tokenizer, TokenizerError

if TYPE_CHECKING:
    from typing_extensions import Unpack

_FIRST_TOKENS, _MOST_TOKENS = 1, 8
"""Tokens per call while a text is streamed: few at first, so that the beginning comes at once."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of a batch: a prompt, and the seed that its continuation is drawn with."""

    prompt: EncodedPrompt
    seed: int


class TextGenerator:
    """A loaded SavedModel and its tokenizer; needs nothing but the SavedModel's folder.

    Attributes:
        requests: checks options and encodes prompts.
    """

    def __init__(self, model: LoadedModel, tokenizer: Tokenizer, defaults: Mapping[str, Any]) -> None:
        self.requests = RequestReader(model.config, tokenizer, defaults)
        self.config, self.tokenizer, self.defaults = model.config, tokenizer, self.requests.defaults
        self.model = model
        self._scorer = Scorer(model, self.requests.model_tokenizer())
        # Megatron pads the vocabulary: the model has rows that no text becomes and that have no text.
        self._no_text = (*sorted(tokenizer.blank_ids), *range(tokenizer.vocab_size, model.config.vocab_size))

    @classmethod
    def load(
        cls, folder: str | Path, *, max_batch_size: int = 8, requests: RequestReader | None = None
    ) -> TextGenerator:
        """Load a SavedModel of this project.

        Args:
            folder: the SavedModel.
            max_batch_size: how many texts will be generated at once at most. With 1, TensorFlow is told to use one
                thread per operation where the model is so small that this is faster.
            requests: what was read from the folder already; None reads it.

        Raises:
            ModelError: the folder is not one.
            TokenizerError: its tokenizer cannot be used.
            OptionError: its ``generation_config.json`` cannot be used.
        """
        requests = requests or RequestReader.read(SavedModelFolder(Path(folder)))
        files = requests.files or SavedModelFolder(Path(folder))
        return cls(load(files, max_batch_size), requests.tokenizer, requests.defaults)

    def __repr__(self) -> str:
        sizes = self.config
        return (
            f"TextGenerator(n_layer={sizes.n_layer}, n_embd={sizes.n_embd}, n_positions={sizes.n_positions}, "
            f"vocab_size={sizes.vocab_size}, tokenizer={type(self.tokenizer).__name__})"
        )

    @document_options
    def resolve(self, **options: Unpack[GenerationOptions]) -> TextConfig:
        """Check options, and take the model's defaults for those left out.

        Raises:
            OptionError: an option that does not exist, a value that it cannot have, or options that contradict.
        """
        return self.requests.resolve(**options)

    @document_options
    def generate(
        self, prompts: Prompt | Iterable[Prompt], *, batch_size: int = 8, **options: Unpack[GenerationOptions]
    ) -> list[GeneratedText]:
        """Continue each prompt: ``num_return_sequences`` results for the first one, then those of the second, ...

        A prompt is a text or a list of token ids. With a ``seed`` the n-th result of a prompt is drawn with seed + n,
        whatever the other prompts are; a list has one seed per prompt. Texts longer than the model's positions go on in
        a window that moves.

        Args:
            prompts: one, or several.
            batch_size: rows that are generated at once.
            options: see below.

        Raises:
            OptionError: an option that does not exist or cannot be so.
            TokenizerError: a prompt without tokens, with ids outside the vocabulary, or that is no prompt.
            ModelError: TensorFlow cannot do it, for want of memory for example.
        """
        config = self.requests.resolve(**options)
        check_batch_size(batch_size)
        encoded = [self.requests.encode(prompt, config) for prompt in as_prompts(prompts)]
        return self.generate_encoded(encoded, config, batch_size=batch_size)

    def generate_encoded(
        self, prompts: Sequence[EncodedPrompt], config: TextConfig, *, batch_size: int = 8
    ) -> list[GeneratedText]:
        """Continue prompts that ``requests`` has encoded, as ``generate`` does.

        Raises:
            OptionError: a number of seeds that is not that of the prompts, or no room for beam search.
            ModelError: TensorFlow cannot do it, for want of memory for example.
        """
        each = 1 if config.beams else config.values["num_return_sequences"]
        seeds = _seeds(config, len(prompts), each)
        rows = [_Row(prompt, seed) for prompt, its in zip(prompts, seeds, strict=True) for seed in its]
        generate_batch = self._beam_search if config.beams else self._sample
        results: list[GeneratedText] = []
        for start in range(0, len(rows), batch_size):
            results += generate_batch(rows[start : start + batch_size], config)
        return results

    @document_options
    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """Yield the continuation of one prompt in parts, as it comes.

        A part is never half a character, and nothing is taken back. Joined they are ``generate``'s text with the same
        seed; but rounding can change that, in float16 often.

        Raises:
            OptionError, TokenizerError: as ``generate``; at once, before the first part is asked for.
        """
        config = self.requests.resolve(**options)
        check_stream(config)
        if len(as_prompts(prompt)) != 1:
            raise TokenizerError("a stream continues one prompt: call stream once for each, or generate for all")
        return self.stream_encoded(self.requests.encode(prompt, config), config)

    def stream_encoded(self, prompt: EncodedPrompt, config: TextConfig) -> Iterator[str]:
        """Yield the continuation of a prompt that ``requests`` has encoded, as ``stream`` does."""
        builder = ResultBuilder(config)
        text = builder.stream(prompt)
        ((seed,),) = _seeds(config, 1, 1)
        for new in self._decode(list(prompt.ids), builder.new_tokens(prompt), config, seed):
            ended = builder.has_ended(new)
            for token in new[: len(new) - ended]:
                if part := text.push(token):
                    yield part
            if ended or text.stopped:
                break
        if part := text.finish():
            yield part

    def score(self, texts: str | Sequence[str], *, batch_size: int = 8) -> list[Score]:
        """Return how probable the model finds texts of any length, token by token.

        Raises:
            OptionError: ``batch_size`` is less than 1.
            TokenizerError: a text without tokens, or that is no text.
        """
        return list(self.score_each(texts, batch_size=batch_size))

    def score_each(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = 8,
        on_progress: Callable[[int], object] | None = None,
    ) -> Iterator[Score]:
        """Yield the score of each text, as ``score`` does; ``batch_size`` texts at a time are in memory.

        Args:
            on_progress: called with the bytes of all texts so far, in UTF-8, that are scored.
        """
        check_batch_size(batch_size)
        return self._scorer.score([texts] if isinstance(texts, str) else texts, batch_size, on_progress)

    def perplexity(self, texts: str | Iterable[str], *, batch_size: int = 8) -> float:
        """Return the perplexity of one text, or of several together; NaN where no token has a probability.

        Raises:
            OptionError, TokenizerError: as ``score``.
        """
        return CorpusScore.of(self.score_each(texts, batch_size=batch_size)).perplexity

    def choose(self, prompt: str, candidates: Sequence[str], *, text: str | None = None, batch_size: int = 8) -> Choice:
        """Return the most probable of ``candidates``, by the mean log-probability of their tokens after ``prompt``.

        With ``text``, ``prompt`` has a ``{}`` that each candidate is put into, and the text after it is scored: CPM's
        zero-shot classification, as in ``choose("这是关于{}的文章：", ["体育", "财经"], text=article)``.

        Raises:
            OptionError: no candidates, or no ``{}`` where one is needed.
            TokenizerError: a candidate or text without tokens, or a prompt that fills the model's positions.
        """
        check_batch_size(batch_size)
        if isinstance(candidates, str):
            raise OptionError(f"candidates is the text {candidates[:20]!r}: expected a list of texts")
        return self._scorer.choose(prompt, list(candidates), text, batch_size)

    def _inputs(self, config: TextConfig) -> dict[str, Any]:
        inputs = config.inputs()
        unwanted = [token for token in self._no_text if token not in inputs["eos_token_id"]]
        return {**inputs, "suppress_tokens": (*inputs["suppress_tokens"], *unwanted)}

    def _sample(self, rows: Sequence[_Row], config: TextConfig) -> list[GeneratedText]:
        builder = ResultBuilder(config)
        prompts = [row.prompt for row in rows]
        options = {
            **self._inputs(config),
            "max_new_tokens": [builder.new_tokens(prompt) for prompt in prompts],
            "seed": [row.seed for row in rows],
        }
        output = self.model.call("generate", [prompt.ids for prompt in prompts], **options)
        results = []
        for i, prompt in enumerate(prompts):
            new = output["sequences"][i, len(prompt.ids) : output["lengths"][i]].tolist()
            results.append(builder.build(prompt, new, output["logprobs"][i]))
        return results

    def _beam_search(self, rows: Sequence[_Row], config: TextConfig) -> list[GeneratedText]:
        builder = ResultBuilder(config)
        prompts = [row.prompt for row in rows]
        most = [builder.new_tokens(prompt) for prompt in prompts]
        self._check_room(prompts, most)
        options = {**self._inputs(config), "max_new_tokens": most}
        output = self.model.call("beam_search", [prompt.ids for prompt in prompts], **options)
        results = []
        for i, prompt in enumerate(prompts):
            size = len(prompt.ids)
            for beam, score in enumerate(output["scores"][i].tolist()):
                new = output["sequences"][i, beam, size : output["lengths"][i, beam]].tolist()
                (logprobs,) = self.model.logprobs([[*prompt.ids, *new]])
                results.append(builder.build(prompt, new, logprobs[size:], score))
        return results

    def _check_room(self, prompts: Sequence[EncodedPrompt], new: Sequence[int]) -> None:
        limit = self.config.n_positions
        for prompt, number in zip(prompts, new, strict=True):
            if len(prompt.ids) + number > limit:
                raise OptionError(
                    f"a prompt of {len(prompt.ids)} tokens and {number} new ones exceed the model's {limit} positions, "
                    "and beam search has no window that moves: give fewer max_new_tokens"
                )

    def _decode(self, ids: list[int], most: int, config: TextConfig, seed: int) -> Iterator[list[int]]:
        """Yield up to ``most`` new tokens after ``ids``, a few at a time, until an end of text or none can follow."""
        inputs = self._inputs(config)
        minimum, limit, size = config.values["min_new_tokens"], len(ids) + most, _FIRST_TOKENS
        state = self.model.prefill(ids, inputs) if most else {}
        while len(ids) < limit:
            number = min(size, limit - len(ids))
            options = {**inputs, "seed": seed, "max_new_tokens": number, "min_new_tokens": minimum}
            new, state = self.model.decode(ids, state, options)
            if not new:  # the constraints leave no token
                return
            yield new
            ids, minimum, size = [*ids, *new], max(0, minimum - len(new)), min(2 * size, _MOST_TOKENS)


def check_stream(config: TextConfig) -> None:
    """Raise ``OptionError`` where the options ask for more than the one text of a stream."""
    if config.beams or config.values["num_return_sequences"] != 1:
        raise OptionError(
            "a stream is one text, and beam search knows none before its end: num_beams and num_return_sequences have "
            "to be 1"
        )


def check_batch_size(value: Any) -> None:
    """Raise ``OptionError`` unless ``value`` is a whole number, 1 or more."""
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise OptionError(f"batch_size is {value!r}: expected a whole number, 1 or more")


def _seeds(config: TextConfig, prompts: int, each: int) -> list[list[int]]:
    """Return the seeds of each prompt's results."""
    if config.seeds is not None and len(config.seeds) != prompts:
        raise OptionError(f"seed has {len(config.seeds)} values for {prompts} prompts: expected one for each, or one")
    first = config.seeds or [config.values["seed"]] * prompts
    return [[_seed_of_result(seed, n) for n in range(each)] for seed in first]


def _seed_of_result(seed: int, number: int) -> int:
    return secrets.randbits(63) if seed < 0 else (seed + number) % 2**63
