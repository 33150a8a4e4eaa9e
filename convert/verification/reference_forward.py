"""A GPT-2's forward pass in PyTorch, over the tensors that any format's reader gives: the other side of ``verify``.

Float32 whatever the files hold; a weight is read when its layer is due. It shares the reader with the conversion, so a
mistake there would be on both sides: the tests of every reader compare it with its own ecosystem's maths. For CPM's
shards there is ``megatron_forward``, which shares nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from convert.checkpoint import Checkpoint
from tf_model.config import TANH_GELU, UER

_FLOAT32 = np.dtype(np.float32)

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(TANH_GELU, lambda x: functional.gelu(x, approximate="tanh")),
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class CheckpointReference:
    """What a checkpoint computes.

    Attributes:
        n_layer, vocab_size: of its config.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._config = checkpoint, checkpoint.config
        self.n_layer, self.vocab_size = self._config.n_layer, self._config.vocab_size
        self._head: torch.Tensor | None = None

    @torch.inference_mode()
    def rows_of(
        self, prompts: Sequence[Sequence[int]], on_layer: Callable[[], object] = lambda: None
    ) -> list[torch.Tensor]:
        """Return what the last layer gives, float32 ``[S, h]`` for each prompt; see ``MegatronReference.rows_of``."""
        sizes = [len(prompt) for prompt in prompts]
        ids = torch.tensor([token for prompt in prompts for token in prompt])
        positions = self._read("wpe.weight")
        x = self._read("wte.weight")[ids] + torch.cat([positions[:size] for size in sizes])
        for layer in range(self.n_layer):
            x = x + self._attention(layer, self._norm(f"h.{layer}.ln_1", x), sizes)
            inner = self._linear(f"h.{layer}.mlp.c_fc", self._norm(f"h.{layer}.ln_2", x))
            x = x + self._linear(f"h.{layer}.mlp.c_proj", ACTIVATIONS[self._config.activation_function](inner))
            on_layer()
        return list(torch.split(x, sizes))

    @torch.inference_mode()
    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits float32 ``[N, V]`` of rows ``[N, h]``."""
        if self._head is None:
            self._head = self._read("wte.weight" if self._config.tie_word_embeddings else "lm_head.weight")
        return self._norm("ln_f", rows) @ self._head.T

    def _read(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self._checkpoint.read(name, _FLOAT32))

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._read(f"{name}.weight"), self._read(f"{name}.bias"))

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._read(f"{name}.weight"), self._read(f"{name}.bias")
        epsilon = self._config.layer_norm_epsilon
        if self._config.layer_norm == UER:
            deviation, mean = torch.std_mean(x, dim=-1, keepdim=True)
            return weight * (x - mean) / (deviation + epsilon) + bias
        return functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    def _attention(self, layer: int, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Causal, of every prompt by itself; one head at a time: its scores are all that is in memory."""
        heads = self._config.n_head
        scale = 1 / math.sqrt(self._config.head_dim) if self._config.scale_attn_weights else 1.0
        if self._config.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        mixed = []
        for qkv in torch.split(self._linear(f"h.{layer}.attn.c_attn", x), list(sizes)):
            hidden = torch.ones(len(qkv), len(qkv), dtype=torch.bool).triu(1)
            query, key, value = (part.reshape(len(qkv), heads, -1) for part in qkv.chunk(3, dim=-1))
            context = torch.empty_like(query)
            for head in range(heads):
                scores = (query[:, head] @ key[:, head].T * scale).masked_fill(hidden, -math.inf)
                context[:, head] = scores.softmax(dim=-1) @ value[:, head]
            mixed.append(context.flatten(1))
        return self._linear(f"h.{layer}.attn.c_proj", torch.cat(mixed))
