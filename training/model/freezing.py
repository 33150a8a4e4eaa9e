"""Which tensors of a model are not trained: ``embeddings``, ``blocks:0-15``. No TensorFlow."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from support.errors import UserError
from tf_model.config import GPT2Config

EMBEDDINGS, BLOCKS = "embeddings", "blocks"
_RANGE = re.compile(rf"{BLOCKS}:(\d{{1,6}})(?:-(\d{{1,6}}))?")


def frozen_tensors(config: GPT2Config, names: Sequence[str]) -> set[str]:
    """Return the canonical names of the tensors that ``names`` freeze.

    Args:
        config: the sizes.
        names: ``embeddings``: tokens and positions, and the output matrix where that is the token embedding;
            ``blocks:0-15``, ``blocks:3``.

    Raises:
        UserError: a name means nothing, or blocks that the model lacks.
    """
    prefixes = tuple(prefix for name in names for prefix in _prefixes(config, name))
    return {name for name in config.tensor_shapes() if name.startswith(prefixes)}


def count_weights(config: GPT2Config, names: set[str]) -> int:
    """Return how many weights the tensors with these names have."""
    return sum(math.prod(shape) for name, shape in config.tensor_shapes().items() if name in names)


def _prefixes(config: GPT2Config, name: str) -> list[str]:
    if name == EMBEDDINGS:
        return ["wte.", "wpe."]
    match = _RANGE.fullmatch(name)
    if match is None:
        raise UserError(f"--freeze {name!r}: expected {EMBEDDINGS}, {BLOCKS}:0-15 or {BLOCKS}:3")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < config.n_layer:
        raise UserError(f"--freeze {name}: expected blocks from 0 to {config.n_layer - 1}, which the model has")
    return [f"h.{block}." for block in range(first, last + 1)]
