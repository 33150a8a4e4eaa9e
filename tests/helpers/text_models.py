"""Random models that have a tokenizer, and a model that says what it is told to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from convert.__main__ import main
from inference.text_generator import TextGenerator
from tests.helpers.checkpoints import State, fill_transformers, random_state, write_megatron
from tests.helpers.small_vocabularies import write_tokenizer
from tf_model.config import GPT2Config
from tokenization import Tokenizer, load_tokenizer

KINDS = ("cpm", "bert", "bpe")
PROMPTS = {"cpm": "一曲新词酒一杯", "bert": "Hello world", "bpe": "今天 hello"}
POSITIONS = 32


@dataclasses.dataclass(frozen=True)
class TextModel:
    """``prompt``: a text of its language; ``oracle``: transformers' model with the same weights."""

    kind: str
    folder: Path
    generator: TextGenerator
    oracle: transformers.GPT2LMHeadModel

    @property
    def prompt(self) -> str:
        return PROMPTS[self.kind]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.generator.tokenizer

    def logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """transformers' log-probabilities ``[S, V]`` of what follows each of at most ``POSITIONS`` tokens."""
        with torch.inference_mode():
            return torch.log_softmax(self.oracle(torch.tensor([list(ids)])).logits[0].double(), -1).numpy()


def write(kind: str, folder: Path) -> None:
    """The SavedModel ``folder/model``: its vocabulary is padded by 5 rows that mean nothing, which are kept."""
    files = write_tokenizer(kind, folder / "tokenizer")
    config, state = _model(kind, files)
    write_megatron(folder / "checkpoint", state, 1, extras=False)
    arguments = ["--checkpoint", str(folder / "checkpoint"), "--tokenizer", str(files), "--heads", "4", "--quiet"]
    arguments += ["--vocab-size", str(config.vocab_size)]
    assert main(["pytorch-to-tf", *arguments, "--output", str(folder / "model")]) == 0


def _model(kind: str, files: Path) -> tuple[GPT2Config, State]:
    size = load_tokenizer(files).vocab_size + 5
    config = GPT2Config(vocab_size=size, n_positions=POSITIONS, n_embd=24, n_layer=2, n_head=4)
    return config, random_state(config, np.random.default_rng(len(kind)))


def load(kind: str, folder: Path) -> TextModel:
    """What ``write`` wrote."""
    config, state = _model(kind, folder / "model" / "assets")
    return TextModel(kind, folder / "model", TextGenerator.load(folder / "model"), fill_transformers(state, config))


class Scripted:
    """Stands in for ``LoadedModel``: whatever it is asked, it goes on with ``tokens``, until an end of text."""

    def __init__(self, tokens: Sequence[int], vocab_size: int) -> None:
        self.config = GPT2Config(vocab_size=vocab_size, n_positions=64, n_embd=8, n_layer=1, n_head=1)
        self.tokens = list(tokens)
        self.start = 0

    def _next(self, at: int, number: int, ends: Sequence[int]) -> list[int]:
        some = self.tokens[at : at + number]
        stop = next((i for i, token in enumerate(some) if token in ends), len(some))
        return some[: stop + 1]

    def prefill(self, ids: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
        self.start = len(ids)
        return {}

    def decode(self, ids: Sequence[int], state: Any, options: dict[str, Any]) -> tuple[list[int], Any]:
        return self._next(len(ids) - self.start, options["max_new_tokens"], options["eos_token_id"]), {}

    def call(self, name: str, prompts: Sequence[Sequence[int]], **options: Any) -> dict[str, np.ndarray]:
        (ids,), (number,) = prompts, options["max_new_tokens"]
        new = self._next(0, number, options["eos_token_id"])
        return {
            "sequences": np.array([[*ids, *new]]),
            "lengths": np.array([len(ids) + len(new)]),
            "logprobs": -np.arange(1.0, len(new) + 1)[np.newaxis],
        }


def scripted(tokenizer: Tokenizer, tokens: Sequence[int]) -> TextGenerator:
    model: Any = Scripted(tokens, tokenizer.vocab_size)
    return TextGenerator(model, tokenizer, {"max_new_tokens": len(tokens)})
