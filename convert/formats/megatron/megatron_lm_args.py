"""The ``args`` in newer Megatron-LM's files: what a reader takes from them, and what a writer puts there.

Source: ``megatron/arguments.py`` of Megatron-LM. Old files have none, and no file has all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.torch_format.pickle_values import Placeholder
from support.errors import CheckpointError
from support.messages import short_repr
from tf_model.config import TANH_GELU, GPT2Config

_OF_A_GPT2 = {
    "position_embedding_type": "learned_absolute",
    "swiglu": False,
    "normalization": "LayerNorm",
    "group_query_attention": False,
    "apply_residual_connection_post_layernorm": False,
    "apply_layernorm_1p": False,
    "num_experts": None,
    "multi_query_attention": False,
    "squared_relu": False,
    "add_bias_linear": True,
}
"""Arguments that make another model than a GPT-2, and the values that they have for one."""


@dataclasses.dataclass(frozen=True)
class SavedArgs:
    """The arguments that a file was saved with.

    Attributes:
        file: the file, for messages.
        values: those that the file has; empty where it has none.
    """

    file: Path
    values: Mapping[str, Any]

    @classmethod
    def of(cls, file: Path, args: object) -> SavedArgs:
        """Take the arguments out of what a pickle has under ``args``: a namespace, a dict, or something else."""
        values = args.state if isinstance(args, Placeholder) else args
        return cls(file, values if isinstance(values, dict) else {})

    def check_is_gpt2(self) -> None:
        """Check that no argument makes another model than a GPT-2.

        Raises:
            CheckpointError: one does.
        """
        for name, value in _OF_A_GPT2.items():
            found = self.values.get(name, value)
            if found != value:
                raise CheckpointError(
                    f"{self.file}: args.{name} is {short_repr(found)}: no GPT-2, where it is {value!r}"
                )

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Check that the arguments say no other sizes than the files have.

        Raises:
            CheckpointError: they do.
        """
        for name, size in sizes.items():
            found = self.values.get(name)
            if found not in (None, size):
                raise CheckpointError(f"{self.file}: args.{name} is {short_repr(found)}, but the files have {size}")

    def check_head(self, *, untied: bool) -> None:
        """Check that the arguments say the same about an output matrix of its own as the files.

        Raises:
            CheckpointError: they do not.
        """
        if self.values.get("untie_embeddings_and_output_weights") not in (None, untied):
            raise CheckpointError(
                f"{self.file}: args.untie_embeddings_and_output_weights is {short_repr(not untied)}: whether there is "
                f"an output_layer.weight, but {'there is one' if untied else 'there is none'}"
            )

    def vocab_size(self, rows: int) -> int:
        """Return the number of tokens: ``rows`` of the embedding, unless the arguments say that some are padding.

        Raises:
            CheckpointError: they say more tokens than there are rows.
        """
        for name in ("true_vocab_size", "vocab_size"):
            size = self.values.get(name)
            if type(size) is int:
                if not 0 < size <= rows:
                    raise CheckpointError(
                        f"{self.file}: args say a vocabulary of {size}, but the files have {rows} rows"
                    )
                return size
        return rows

    def n_head(self) -> int | None:
        """Return the number of attention heads; None where the arguments do not say it.

        Raises:
            CheckpointError: it is not an integer.
        """
        heads: int | None = self._number(int, "num_attention_heads")
        return heads

    def layer_norm_epsilon(self) -> float:
        """Return the epsilon of the layer norms; Megatron-LM's default where the arguments do not say it.

        Raises:
            CheckpointError: it is not a float, or the arguments say two different ones.
        """
        epsilon: float | None = self._number(float, "layernorm_epsilon", "norm_epsilon")
        return 1e-5 if epsilon is None else epsilon

    def _number(self, kind: type, *names: str) -> Any:
        """Return the number that is said under one name or more of ``names``; None where none of them is there."""
        found = {name: self.values[name] for name in names if self.values.get(name) is not None}
        for name, value in found.items():
            if type(value) is not kind:
                raise CheckpointError(
                    f"{self.file}: args.{name} is {short_repr(value)}: expected a plain {kind.__name__}"
                )
        if len(set(found.values())) > 1:
            (one, value), (other, differing) = found.items()
            raise CheckpointError(f"{self.file}: args.{other} is {differing}, but args.{one} {value}")
        return next(iter(found.values()), None)

    def activation_function(self) -> str:
        """Return the gelu that the model computes.

        The fused kernel and OpenAI's gelu have the tanh form, PyTorch's has the exact one (``ParallelMLP``).
        """
        is_exact = self.values.get("bias_gelu_fusion") is False and not self.values.get("openai_gelu")
        return "gelu" if is_exact else "gelu_new"


def args_of(config: GPT2Config, p: int, rows: int, divisible_by: int) -> argparse.Namespace:
    """Return what Megatron-LM and its tools ask a checkpoint's ``args`` for.

    Args:
        config: the model.
        p: the number of tensor-parallel ranks.
        rows: rows of the embedding of all ranks, padding included.
        divisible_by: what the rows of each rank are a multiple of.
    """
    is_tanh = config.activation_function in TANH_GELU
    return argparse.Namespace(
        num_layers=config.n_layer,
        hidden_size=config.n_embd,
        ffn_hidden_size=config.n_inner,
        num_attention_heads=config.n_head,
        kv_channels=config.head_dim,
        seq_length=config.n_positions,
        max_position_embeddings=config.n_positions,
        vocab_size=config.vocab_size,
        padded_vocab_size=rows,
        make_vocab_size_divisible_by=divisible_by,
        layernorm_epsilon=config.layer_norm_epsilon,
        position_embedding_type="learned_absolute",
        add_position_embedding=True,
        tensor_model_parallel_size=p,
        pipeline_model_parallel_size=1,
        untie_embeddings_and_output_weights=not config.tie_word_embeddings,
        openai_gelu=False,
        bias_gelu_fusion=is_tanh,
        apply_residual_connection_post_layernorm=False,
    )
