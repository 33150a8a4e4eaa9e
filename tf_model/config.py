"""What a GPT-2 model consists of, in the words of Hugging Face's GPT2Config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from support.errors import UserError
from support.messages import short_repr

ACTIVATIONS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "relu", "silu", "tanh")
"""transformers' names; ``gelu`` is the exact one with erf."""
TANH_GELU = ACTIVATIONS[:3]
"""The tanh form of gelu, of CPM, UER and OpenAI, by all its names."""

STANDARD, UER = "standard", "uer"
LAYER_NORMS = (STANDARD, UER)
"""``standard``: (x - mean) / sqrt(variance + epsilon), with the biased variance, as everywhere. ``uer``: (x - mean) /
(deviation + epsilon), with the unbiased deviation, as UER-py (``uer/layers/layer_norm.py``)."""

LINEAR_LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""The four matrices of a block, by their canonical names, in the order of the forward pass."""

MAX_SIZE, MAX_LAYERS = 2**31 - 1, 10_000
"""What a config may say: more is a damaged file."""


_FLAGS = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings")
_UNUSUAL = ("layer_norm", *_FLAGS)


class ConfigError(UserError, ValueError):
    """Sizes that do not make a GPT-2; the message is one line."""


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2 and the choices of its maths.

    Attributes:
        vocab_size: rows of the token embedding, V.
        n_positions: longest sequence that the learned positions cover, S.
        n_embd: hidden size, h.
        n_layer: number of blocks, L.
        n_head: attention heads; they divide ``n_embd``.
        n_inner: width of the feed-forward layer; 4 * n_embd when 0.
        activation_function: one of ``ACTIVATIONS``.
        layer_norm_epsilon: added to the variance, inside the root; to the deviation in UER's.
        layer_norm: one of ``LAYER_NORMS``.
        scale_attn_weights: whether attention scores are divided by the root of ``head_dim``.
        scale_attn_by_inverse_layer_idx: whether block i divides its attention scores by i + 1, too.
        tie_word_embeddings: whether the output matrix is the token embedding; else it is ``lm_head.weight``.

    Raises:
        ConfigError: a size that is not positive, heads that do not divide the hidden size, an unknown activation.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int = 0
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    layer_norm: str = STANDARD
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if not self.n_inner:
            object.__setattr__(self, "n_inner", 4 * self.n_embd)
        for field in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, field)
            if type(value) is not int or not 1 <= value <= MAX_SIZE:
                raise ConfigError(f"{field} is {short_repr(value)}: expected a whole number from 1 to {MAX_SIZE:,}")
        if self.n_layer > MAX_LAYERS:
            raise ConfigError(f"n_layer is {self.n_layer}: expected {MAX_LAYERS:,} at most")
        if type(self.layer_norm_epsilon) is not float or not 0 <= self.layer_norm_epsilon < 1:
            raise ConfigError(
                f"layer_norm_epsilon is {short_repr(self.layer_norm_epsilon)}: expected a number from 0 to 1"
            )
        if self.n_embd % self.n_head:
            raise ConfigError(f"{self.n_head} heads do not divide the hidden size {self.n_embd}")
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"activation_function {short_repr(self.activation_function)}: known are {', '.join(ACTIVATIONS)}"
            )
        if self.layer_norm not in LAYER_NORMS:
            raise ConfigError(f"layer_norm {short_repr(self.layer_norm)}: known are {', '.join(LAYER_NORMS)}")
        for field in _FLAGS:
            if type(getattr(self, field)) is not bool:
                raise ConfigError(f"{field} is {short_repr(getattr(self, field))}: expected true or false")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    def attention_scale(self, layer: int) -> float:
        """Return what the attention scores of block ``layer`` are multiplied by; source: ``modeling_gpt2.py``."""
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1 if self.scale_attn_by_inverse_layer_idx else 1)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight, in the order of the forward pass.

        These are the project's *canonical* tensors: the names are Hugging Face's, a matrix is ``[out, in]`` as PyTorch
        holds it, ``c_attn`` is all of Q, then all of K, then all of V. The output matrix is ``wte.weight`` where that
        is tied, else ``lm_head.weight``.
        """
        h, inner = self.n_embd, self.n_inner
        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (self.vocab_size, h), "wpe.weight": (self.n_positions, h)}
        block: dict[str, tuple[int, ...]] = {
            "ln_1.weight": (h,),
            "ln_1.bias": (h,),
            "attn.c_attn.weight": (3 * h, h),
            "attn.c_attn.bias": (3 * h,),
            "attn.c_proj.weight": (h, h),
            "attn.c_proj.bias": (h,),
            "ln_2.weight": (h,),
            "ln_2.bias": (h,),
            "mlp.c_fc.weight": (inner, h),
            "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (h, inner),
            "mlp.c_proj.bias": (h,),
        }
        for layer in range(self.n_layer):
            shapes.update({f"h.{layer}.{name}": shape for name, shape in block.items()})
        shapes.update({"ln_f.weight": (h,), "ln_f.bias": (h,)})
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, h)
        return shapes

    @property
    def parameter_count(self) -> int:
        """Weights in all, the tied output matrix counted once: 2,597,073,920 for CPM-Generate."""
        v, s, h, inner = self.vocab_size, self.n_positions, self.n_embd, self.n_inner
        v = v if self.tie_word_embeddings else 2 * v
        return (v + s) * h + self.n_layer * (4 * h * h + 4 * h + 2 * h * inner + inner + h + 4 * h) + 2 * h

    def to_dict(self) -> dict[str, Any]:
        """``config.json`` as transformers writes it, without what has no meaning here or is as it mostly is."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _UNUSUAL or getattr(self, field.name) != field.default
        }
        return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPT2Config:
        """Make a config of what ``to_dict`` returns; other keys are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{key: value for key, value in values.items() if key in known and value is not None})
        except (TypeError, ConfigError) as error:
            raise ConfigError(f"config.json: {error}") from error
