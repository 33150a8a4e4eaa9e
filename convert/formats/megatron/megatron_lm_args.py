"""The ``args`` in newer Megatron-LM's files: what a reader takes from them, and what a writer puts there.

Source: ``megatron/arguments.py`` of Megatron-LM. Old files have none, and no file has all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.torch_format.pickle_values import Placeholder
from support.errors import CheckpointError
from support.messages import list_names, short_repr
from tf_model.config import TANH_GELU, GPT2Config

_OF_A_GPT2: Mapping[str, tuple[Any, ...]] = {
    # positions
    "position_embedding_type": ("learned_absolute", "absolute"),
    "add_position_embedding": (True,),
    "use_rotary_position_embeddings": (False,),
    "use_alibi_mask": (False,),
    "position_encoding_2d": (False,),
    # layer norms and residuals
    "normalization": ("LayerNorm", "layernorm"),
    "apply_layernorm_1p": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "embed_layernorm": (False,),
    "input_embeds_norm": (False,),
    "post_norm": (False,),
    "use_normhead": (False,),
    # attention
    "multi_query_attention": (False,),
    "attention_head_type": ("multihead",),
    "multi_latent_attention": (False,),
    "experimental_attention_variant": (None,),
    "linear_attention_type": (None,),
    "qk_layernorm": (False,),
    "qk_l2_norm": (False,),
    "attention_output_gate": (False,),
    "head_wise_attn_gate": (False,),
    "softmax_type": ("vanilla",),
    "window_size": (None, (-1, -1), [-1, -1]),
    "sliding_window": (None,),
    "attn_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "is_causal": (True,),
    "causal": (True,),
    # feed-forward layers
    "swiglu": (False,),
    "squared_relu": (False,),
    "quick_geglu": (False,),
    "glu_activation": (None,),
    "gated_linear_unit": (False,),
    "geglu": (False,),
    "use_te_activation_func": (False,),
    "activation_func_clamp_value": (None,),
    "add_bias_linear": (True,),
    "num_experts": (None, 0, [1], (1,)),
    "num_moe_experts": (None, 0),
    # embeddings, heads, the order of layers
    "use_mup": (False,),
    "scale_emb": (None,),
    "scale_depth": (None,),
    "dim_model_base": (None,),
    "output_logit_softcapping": (None,),
    "mtp_num_layers": (None, 0),
    "retro_add_retriever": (False,),
    "is_hybrid_model": (False,),
    "hybrid_override_pattern": (None,),
    "hybrid_layer_pattern": (None,),
    "heterogeneous_layers_config_path": (None,),
    "heterogeneous_layers_config_encoded_json": (None,),
    "enable_hyper_connections": (False,),
    "spec": (None, ["local"], ("local",), "local"),
}
"""Arguments that make another model than a GPT-2, and the values that they have for one, the usual value first.

None always means that nobody has said it. Left out are arguments that say how exactly something is computed, and in
which order (``apply_query_key_layer_scaling`` divides by a number and multiplies by it again, in float32), what a
training does (dropout), and what only other ones give a meaning (``rotary_base``, ``add_qkv_bias``).
"""

_MAY_MATTER = re.compile(
    r"softcap|multiplier|parallel_(?:attention|attn|residual|block|mlp)|sandwich|(?:^|_)rms(?!\w*eps)|alibi|bidirectional"
    r"|activation|gelu|geglu"
)
"""Parts of names that sound as if an argument of some program that grew out of Megatron-LM changed the maths."""
_NO_EFFECT = re.compile(
    r"checkpoint|recompute|offload|distribut|partition|memory|fusion|fp8|fp4|dtype|precision|(?:^|_)(?:lr|loss|grad)(?:_|$)"
    r"|^(?:openai_gelu|moe_\w+)$"
)
"""Names of those parts that say how a model is trained or computed, that are used, or that other arguments decide."""
_OFF: tuple[Any, ...] = (None, False, "", "none", "gelu")
"""Values with which such an argument changes nothing."""

_ABSOLUTE = ("PositionEmbeddingType", (2,))
"""The member of an enumeration, and its number, that Megatron-DeepSpeed has for learned positions."""


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
        for name, usual in _OF_A_GPT2.items():
            found = self.values.get(name)
            is_absolute = isinstance(found, Placeholder) and (found.name, found.args) == _ABSOLUTE
            is_off = found is None or (found is False and usual[0] is None)
            if not is_off and found not in usual and not is_absolute:
                raise CheckpointError(
                    f"{self.file}: args.{name} is {short_repr(found)}: no GPT-2, where it is {usual[0]!r}"
                )
        for name, found in self.values.items():
            if _is_like_another_model(name, found):
                raise CheckpointError(
                    f"{self.file}: args.{list_names([name])} is {short_repr(found)}: not known of a GPT-2: it may make "
                    "another model"
                )

    def check_attention(self, hidden: int, heads: int) -> None:
        """Check that the arguments say no other attention than that of ``heads`` heads, as wide together as ``hidden``.

        Raises:
            CheckpointError: heads share keys and values, have another width, or scores have another scale.
        """
        width, values = hidden // heads, self.values
        groups = values.get("num_query_groups") if values.get("group_query_attention") else None
        scale = values.get("softmax_scale")
        is_usual = scale is None or (isinstance(scale, float) and math.isclose(scale, width**-0.5, rel_tol=1e-6))
        for name, found, expected, is_right in (
            ("kv_channels", values.get("kv_channels"), width, values.get("kv_channels") in (None, width)),
            ("num_query_groups", groups, heads, groups in (None, heads)),
            ("num_key_value_heads", values.get("num_key_value_heads"), heads, self._has_all_keys(heads)),
            ("softmax_scale", scale, width**-0.5, is_usual),
        ):
            if not is_right:
                raise CheckpointError(
                    f"{self.file}: args.{name} is {short_repr(found)}: no GPT-2, where it is {expected:g} for "
                    f"{heads} heads of a hidden size of {hidden}"
                )

    def _has_all_keys(self, heads: int) -> bool:
        """Whether every head has keys and values of its own, as far as the arguments of Megatron-DeepSpeed say it."""
        return self.values.get("num_key_value_heads") in (None, heads)

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

    def activation_function(self, given: str | None = None) -> str:
        """Return the gelu that the model computes.

        The fused kernel and OpenAI's gelu have the tanh form, PyTorch's and ``erf_gelu`` the exact one. Since
        ``squared_relu`` is an argument, ``erf_gelu`` (``onnx_safe``) is without the fused kernel; before, the kernel
        was taken instead of it (``ParallelMLP`` of ``megatron/model/transformer.py``).

        Args:
            given: what the user says; it counts where the arguments do not say it.

        Raises:
            CheckpointError: the arguments say another one.
        """
        values = self.values
        is_fused = values.get("bias_gelu_fusion") is not False and not (
            values.get("onnx_safe") and "squared_relu" in values
        )
        found = "gelu_new" if is_fused or values.get("openai_gelu") else "gelu"
        if given is None or (given in TANH_GELU and found in TANH_GELU):
            return found
        if not self.says_activation:
            return given
        if given != found:
            raise CheckpointError(f"{self.file}: args say {found}, but --activation-function {given}: leave that out")
        return found

    @property
    def says_activation(self) -> bool:
        """Whether the arguments say which gelu is computed."""
        return "bias_gelu_fusion" in self.values or bool(self.values.get("openai_gelu"))


def _is_like_another_model(name: object, value: object) -> bool:
    """Whether an argument that nobody knows here sounds like another model's and is switched on."""
    if not isinstance(name, str) or name in _OF_A_GPT2:
        return False
    if not _MAY_MATTER.search(name) or _NO_EFFECT.search(name):
        return False
    if "multiplier" in name:
        return value is not None and value is not False and value != 1
    return not (isinstance(value, (str, bool, int, float, type(None))) and value in _OFF)


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
