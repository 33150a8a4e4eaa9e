"""A model of given sizes with random weights, as a checkpoint: what a training from nothing begins with."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from convert.checkpoint import CheckpointInfo
from convert.formats.uer_layer_norm import EPSILONS
from convert.tensors import Array, DType, assign, empty
from support.errors import UserError
from support.messages import short_repr
from tf_model.config import UER, ConfigError, GPT2Config
from tokenization.special_tokens import SpecialTokens

_STDDEV = 0.02
_SIZES = {"layers": "n_layer", "hidden": "n_embd", "heads": "n_head", "positions": "n_positions", "inner": "n_inner"}
_CHOICES = {"activation": "activation_function", "layer_norm": "layer_norm"}
_REQUIRED = ("layers", "hidden", "heads", "positions")


def parse_sizes(text: str, vocab_size: int) -> GPT2Config:
    """Read ``layers=4,hidden=208,heads=4,positions=256``; ``inner``, ``activation`` and ``layer_norm`` may follow.

    Args:
        text: what a user gives as ``--init``.
        vocab_size: the tokenizer's.

    Raises:
        UserError: a word that is not ``name=value``, a name that is unknown, twice there or missing, or sizes that do
            not make a GPT-2.
    """
    values: dict[str, int | str | float] = {}
    known = {**_SIZES, **_CHOICES}
    for word in text.split(","):
        name, _, value = (part.strip() for part in word.partition("="))
        if name not in known or not value:
            raise UserError(f"--init: {short_repr(word.strip())}: expected name=value, of {', '.join(known)}")
        if known[name] in values:
            raise UserError(f"--init: {name} is there twice: expected one value")
        if name in _SIZES and not re.fullmatch(r"[1-9][0-9]{0,9}", value):
            raise UserError(f"--init: {name} is {short_repr(value)}: expected a whole number above 0")
        values[known[name]] = int(value) if name in _SIZES else value
    if missing := [name for name in _REQUIRED if _SIZES[name] not in values]:
        raise UserError(f"--init: {missing[0]} is missing: expected {', '.join(f'{name}=N' for name in _REQUIRED)}")
    if values.get("layer_norm") == UER:
        values["layer_norm_epsilon"] = EPSILONS[UER]  # UER-py has no other
    try:
        return GPT2Config(vocab_size=vocab_size, **values)  # type: ignore[arg-type]
    except ConfigError as error:
        raise UserError(f"--init: {error}") from error


class NewModel:
    """A ``Checkpoint`` of GPT-2's random weights: N(0, 0.02), output projections of blocks by 1 / sqrt(2 L) smaller.

    Biases are 0, layer norms 1 and 0. Each tensor is drawn when it is read, from the seed and its place in the model.
    Source: ``_init_weights`` of transformers' ``modeling_gpt2.py``; OpenAI's paper, section 2.3.

    Args:
        config: the sizes.
        seed: 0 or more.
        tokens: the end of a text and the padding.
        tokenizer: the folder of the tokenizer.
    """

    def __init__(
        self, config: GPT2Config, seed: int, tokens: SpecialTokens | None = None, tokenizer: Path | None = None
    ) -> None:
        self.config = config
        self.seed = seed
        self.tokens, self.tokenizer = tokens, tokenizer
        self.info = CheckpointInfo("training", details={"seed": seed})
        self._places = {name: place for place, name in enumerate(config.tensor_shapes())}
        self.dtypes: dict[str, DType] = dict.fromkeys(self._places, np.dtype(np.float32))

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """Draw a tensor as ``Checkpoint.read``."""
        shape = self.config.tensor_shapes()[name]
        out = empty(shape, dtype, buffer)
        if len(shape) == 1:
            out[...] = name.endswith(".weight")
            return out
        drawn = np.random.default_rng([self.seed, self._places[name]]).standard_normal(shape, np.float32)
        drawn *= _STDDEV * ((2 * self.config.n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1)
        assign(out, drawn)
        return out
