"""A converted and loaded SavedModel, and what it must generate: texts by transformers, token by token, without a cache.

The reference is made of transformers' own forward pass, logits processors and warpers, of the published random numbers
and of a sum in float64. It encodes a row's whole window again for every token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import torch
import transformers

from convert.__main__ import main
from tests.helpers.checkpoints import State, fill_transformers, random_state, write_megatron
from tests.tf_model.test_beam import vivid
from tests.tf_model.test_sampling import splitmix
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=60, n_positions=32, n_embd=24, n_layer=2, n_head=3)
PAD = 5
"""CPM's padding id, which a checkpoint without a tokenizer gets."""

Tensors = dict[str, np.ndarray]
Lists = Sequence[Sequence[int]]


def write(folder: Path, state: State, dtype: str = "float32", config: GPT2Config = CONFIG) -> None:
    """The SavedModel ``folder/model`` of the checkpoint ``state``."""
    write_megatron(folder / "checkpoint", state, 1)
    arguments = ["--checkpoint", str(folder / "checkpoint"), "--output", str(folder / "model"), "--dtype", dtype]
    assert main(["pytorch-to-tf", *arguments, "--heads", str(config.n_head), "--quiet"]) == 0


def write_usual(folder: Path) -> None:
    """The one that ``Loaded(folder)`` has by default."""
    write(folder, vivid(random_state(CONFIG, np.random.default_rng(0))))


class Loaded:
    """A SavedModel as its users have it, and transformers' model with the same weights."""

    def __init__(self, folder: Path, dtype: str = "float32", config: GPT2Config = CONFIG) -> None:
        state = vivid(random_state(config, np.random.default_rng(0)))
        self.folder = folder / "model"
        if not self.folder.exists():
            write(folder, state, dtype, config)
        self.theirs = fill_transformers(state, config)
        self.model = tf.saved_model.load(str(self.folder))

    def tensors(self, name: str, values: dict[str, Any]) -> dict[str, tf.Tensor]:
        """Plain numbers in the types of the signature's inputs."""
        specs = self.model.signatures[name].structured_input_signature[1]
        return {key: tf.constant(value, specs[key].dtype) for key, value in values.items()}

    def call(self, name: str, **inputs: Any) -> Tensors:
        """The attached function of a signature, in which options may be left out."""
        outputs = getattr(self.model, name)(**self.tensors(name, inputs))
        return {key: tensor.numpy() for key, tensor in outputs.items()}

    def __call__(self, name: str, prompts: Lists, *, padding: int = 3, width: int = 0, **options: Any) -> Tensors:
        """As ``call``, for prompts of any lengths."""
        lengths = [len(prompt) for prompt in prompts]
        ids = matrix(prompts, padding, width)
        if name in ("generate", "decode", "beam_search"):
            options.setdefault("eos_token_id", -1)
        return self.call(name, input_ids=ids, input_lengths=lengths, **options)

    def logits(self, text: Sequence[int]) -> torch.Tensor:
        """After each token of a text, float32 ``[S, V]``."""
        with torch.inference_mode():
            return self.theirs(torch.tensor([text])).logits[0]


def matrix(rows: Lists, fill: int, width: int = 0) -> np.ndarray:
    """Ragged rows, right-padded."""
    width = max(width, *map(len, rows))
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows])


def texts(result: Tensors) -> list[list[int]]:
    """The rows of a result of ``generate`` or ``decode``, whose padding is looked at too."""
    found = []
    for sequence, length, logprobs in zip(result["sequences"], result["lengths"], result["logprobs"], strict=True):
        assert (sequence[length:] == PAD).all()
        assert sequence.dtype == length.dtype == np.int64
        assert logprobs.dtype == np.float32
        found.append(sequence[:length].tolist())
    return found


def slide(text: Sequence[int], start: int, keep: int, line: int, limit: int) -> int:
    """Where the window starts: at the first line of the newest ``keep`` tokens, once the positions are used up."""
    if len(text) - start <= limit:
        return start
    oldest = len(text) - min(keep, limit)
    return next((i for i in range(max(oldest, 1), len(text)) if text[i - 1] == line), oldest)


def constraints(
    size: int, *, repetition_penalty: float = 1.0, no_repeat_ngram_size: int = 0, min_new_tokens: int = 0,
    eos_token_id: Iterable[int] = (), suppress_tokens: Iterable[int] = (),
) -> transformers.LogitsProcessorList:  # fmt: skip
    """transformers' processors for a prompt of ``size`` tokens, in the order of its ``generate``."""
    processors = transformers.LogitsProcessorList([transformers.RepetitionPenaltyLogitsProcessor(repetition_penalty)])
    if no_repeat_ngram_size:
        processors.append(transformers.NoRepeatNGramLogitsProcessor(no_repeat_ngram_size))
    if eos := [*eos_token_id]:
        processors.append(transformers.MinNewTokensLengthLogitsProcessor(size, min_new_tokens, eos))
    if suppressed := [*suppress_tokens]:
        processors.append(transformers.SuppressTokensLogitsProcessor(suppressed))
    return processors


def warpers(
    *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, typical_p: float = 1.0
) -> transformers.LogitsProcessorList:
    """transformers' sampling filters in the order of its ``generate``."""
    result = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(float(temperature))])
    if top_k:
        result.append(transformers.TopKLogitsWarper(int(top_k)))
    if top_p < 1:
        result.append(transformers.TopPLogitsWarper(float(np.float32(top_p))))
    if min_p:
        result.append(transformers.MinPLogitsWarper(float(np.float32(min_p))))
    if typical_p < 1:
        result.append(transformers.TypicalLogitsWarper(float(np.float32(typical_p))))
    return result


FILTERS = ("top_k", "top_p", "min_p", "typical_p")


def reference(
    loaded: Loaded, prompt: Sequence[int], *, max_new_tokens: int = 20, temperature: float = 1.0, seed: int = 0,
    window_tokens: int = 0, window_line_token_id: int = -1, limit: int = CONFIG.n_positions,
    eos_token_id: Iterable[int] = (), **options: Any,
) -> tuple[list[int], list[float]]:  # fmt: skip
    """A row's text and the log-probabilities of its new tokens."""
    ends = {token for token in eos_token_id if token >= 0}
    filters = {name: options.pop(name) for name in FILTERS if name in options}
    processors = constraints(len(prompt), eos_token_id=ends, **options)
    filtered = warpers(temperature=temperature, **filters) if temperature > 0 else None
    text, logprobs, start = [*prompt], [], 0
    for _ in range(max_new_tokens):
        start = slide(text, start, window_tokens or CONFIG.n_positions // 2, window_line_token_id, limit)
        logits = loaded.logits(text[start:])[-1:]
        ids = torch.tensor([text])
        scores = processors(ids, logits.clone())
        if filtered is None:
            token = int(scores.argmax())
        else:
            cumulated = torch.softmax(filtered(ids, scores).double(), dim=-1)[0].cumsum(dim=-1).numpy()
            token = int(np.searchsorted(cumulated, splitmix(seed, len(text)) * cumulated[-1], side="right"))
        text.append(token)
        logprobs.append(float(torch.log_softmax(logits.double(), dim=-1)[0, token]))
        assert math.isfinite(logprobs[-1])
        if token in ends:
            break
    return text, logprobs


def random_prompts(rng: np.random.Generator, rows: int, longest: int) -> list[list[int]]:
    return [rng.integers(0, CONFIG.vocab_size, rng.integers(1, longest + 1)).tolist() for _ in range(rows)]


def random_options(rng: np.random.Generator, rows: int) -> dict[str, list[Any]]:
    """Options for every row, greedy and sampled, with any of the filters and constraints."""

    def tokens() -> list[list[int]]:
        return [rng.integers(-1, CONFIG.vocab_size, 3).tolist() for _ in range(rows)]

    def choice(*values: float) -> list[Any]:
        return rng.choice(values, rows).tolist()

    return {
        "max_new_tokens": rng.integers(0, 24, rows).tolist(),
        "min_new_tokens": choice(0, 4, 30),
        "temperature": choice(0.0, 0.7, 1.0, 1.5),
        "top_k": choice(0, 0, 5, 40),
        "top_p": choice(1.0, 0.9, 0.5),
        "min_p": choice(0.0, 0.0, 0.05),
        "typical_p": choice(1.0, 1.0, 0.9),
        "repetition_penalty": choice(1.0, 1.0, 1.3),
        "no_repeat_ngram_size": choice(0, 0, 2, 3),
        "suppress_tokens": tokens(),
        "eos_token_id": tokens(),
        "seed": rng.integers(0, 2**62, rows).tolist(),
        "window_tokens": rng.integers(0, CONFIG.n_positions + 1, rows).tolist(),
        "window_line_token_id": choice(-1, 7, 32),
    }


def row_of(options: dict[str, list[Any]], row: int) -> dict[str, Any]:
    """One row's options, for the reference: without the -1 that stand for no token."""
    own = {name: values[row] for name, values in options.items()}
    return {
        name: [token for token in value if token >= 0] if isinstance(value, list) else value
        for name, value in own.items()
    }
