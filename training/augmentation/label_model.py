"""A SavedModel that was trained on texts with their label in front, as augmentation uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.results import EOS, TRUNCATE
from inference.text_generator import TextGenerator
from support.errors import UserError
from tokenization import chinese_punctuation
from training.augmentation.augmenting import Candidate


class GeneratorOfLabels:
    """Writes texts of labels as ``finetune --prefix`` has trained them: the label, a line feed, the text, its end.

    Args:
        generator: the model.
        labels: all that will be asked for.
        batch_size: texts that are scored at once.
        is_chinese: whether texts get Chinese punctuation, which CPM's tokenizer makes ASCII.
        options: of generation.

    Raises:
        UserError: a label leaves no room for a text, or the model has no end of text.
        OptionError: options that contradict.
    """

    def __init__(
        self, generator: TextGenerator, labels: Sequence[str], batch_size: int, *, is_chinese: bool, **options: Any
    ) -> None:
        self._generator, self._batch_size, self._is_chinese = generator, batch_size, is_chinese
        tokenizer = generator.requests.model_tokenizer()
        self._prompts = {label: (*tokenizer.start_token_ids, *tokenizer.encode(f"{label}\n")) for label in labels}
        room = generator.config.n_positions - max(map(len, self._prompts.values()))
        if room < 2:
            raise UserError(f"the labels leave nothing of the model's {generator.config.n_positions} positions")
        options["max_new_tokens"] = min(room, options.get("max_new_tokens") or room)
        self._options = options
        if not generator.resolve(**options).values["eos_token_id"]:
            raise UserError("the model has no end of text, so none of its texts would be whole: give --eos-token-id ID")

    def write(self, label: str, seeds: Sequence[int]) -> list[Candidate]:
        """Return a text for each seed."""
        prompts = [self._prompts[label]] * len(seeds)
        written = self._generator.generate(prompts, batch_size=self._batch_size, seed=list(seeds), **self._options)
        return [Candidate(self._shown(one.text), one.tokens, one.finish_reason in (EOS, TRUNCATE)) for one in written]

    def log_likelihoods(self, candidates: Sequence[Candidate], labels: Sequence[str]) -> NDArray[np.float64]:
        """Return the sum of the log-probabilities of each text's tokens, its end among them, after each label."""
        pairs = [(self._prompts[label], candidate.tokens) for candidate in candidates for label in labels]
        found = self._generator.model.logprobs([[*prompt, *tokens] for prompt, tokens in pairs], self._batch_size)
        sums = [values[len(prompt) :].sum(dtype=np.float64) for values, (prompt, _) in zip(found, pairs, strict=True)]
        return np.array(sums).reshape(len(candidates), len(labels))

    def _shown(self, text: str) -> str:
        return chinese_punctuation(text) if self._is_chinese else text


def loses_chinese_marks(generator: TextGenerator, texts: Sequence[str]) -> bool:
    """Whether texts have Chinese punctuation that the model's tokenizer makes ASCII, as CPM's does."""

    def is_changed(text: str) -> bool:
        read = generator.tokenizer.decode(generator.tokenizer.encode(text))
        return read != text == chinese_punctuation(read)

    return any(map(is_changed, texts))
