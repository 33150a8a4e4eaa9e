"""What a format can hold of a model, apart from its sizes: the maths that its files record, or its programs have.

What a format says nothing about has to be as in GPT-2 itself, so that what its author forgets is refused, not lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.formats.uer_layer_norm import advice
from support.errors import ConvertError
from support.messages import short_repr
from tf_model.config import STANDARD, TANH_GELU, GPT2Config

Holds = Mapping[str, tuple[Any, ...]]
"""A field of ``GPT2Config``, one of those of ``GPT2`` -> the values that a format can hold: ``ANY``, or these."""

ANY: tuple[Any, ...] = ()

GPT2: Holds = {
    "activation_function": TANH_GELU,
    "layer_norm_epsilon": (1e-5,),
    "layer_norm": (STANDARD,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
}
"""Whatever may differ between two models of the same sizes, as GPT-2 has it; ``n_inner`` is 4 times the hidden size."""


def check_holds(config: GPT2Config, holds: Holds, who: str) -> None:
    """Check that a format can hold a model.

    Args:
        config: the model's.
        holds: what the format can hold where it is not just what GPT-2 has.
        who: the format, for the message.

    Raises:
        ConvertError: it cannot; with every choice that stands in the way.
    """
    problems = []
    for key, allowed in {**GPT2, "n_inner": (4 * config.n_embd,), **holds}.items():
        found = getattr(config, key)
        if allowed != ANY and found not in allowed:
            problems.append(f"{key} is {short_repr(found)}, there it is always {' or '.join(map(str, allowed))}")
    if problems:
        raise ConvertError(f"{who} cannot hold this model: {'; '.join(problems)}: {advice(config)}")
