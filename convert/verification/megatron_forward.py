"""CPM's forward pass as Megatron runs it: p ranks, each with its own shard, and a sum over them. An oracle.

Source: ``mpu/transformer.py``, ``mpu/layers.py`` and ``model/gpt2_modeling.py`` of CPM-1-Generate, in float32 PyTorch.
The shards are never merged: this file says a second time, in another way, what the converter says about names, splits
and mathematics, so that a mistake there is not made here too. Of the project it knows how to open a ``.pt`` file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import layer_norm, linear

from convert.torch_format.reader import Storage, TensorRef, load
from support.errors import CheckpointError

_TOKENS, _POSITIONS, _FINAL = "word_embeddings.weight", "position_embeddings.weight", "transformer.final_layernorm"
_EPSILON = 1.0e-5  # of layer norms: transformer.py passes it, whatever the option of the training script says
_HIDDEN = -10000.0  # what stands in the place of the score of a position that must not be seen
_MOST_DICTS = 500
"""Of one file that are looked at."""
_WRAPPERS = ("module", "model", "state_dict", "model_state_dict", "state")
_BLOCK = 1 << 22
"""Elements of the token embedding that are float32 at a time as the output matrix: 16 MB."""


class MegatronReference:
    """What a checkpoint computes. A weight is read when its layer is due, one rank's tensor at a time.

    Attributes:
        n_layer, n_positions, hidden_size, vocab_size: as the shards say.
    """

    def __init__(self, files: Sequence[Path], n_head: int, *, block: int = _BLOCK) -> None:
        """Read the headers.

        Args:
            files: the shards, rank 0 first.
            n_head: attention heads of all ranks together; the files do not say.
            block: elements of the token embedding that are float32 at a time.

        Raises:
            CheckpointError: a file is no such shard, or the heads cannot be shared out.
        """
        self._files, self._block = list(files), block
        self._shards = [_shard(file) for file in files]
        ranks = len(self._files)
        self.n_positions, self.hidden_size = self._ref(0, _POSITIONS).shape
        self.vocab_size = sum(self._ref(rank, _TOKENS).shape[0] for rank in range(ranks))
        self.n_layer = sum(name.endswith(".input_layernorm.weight") for name in self._shards[0])
        if n_head < 1 or n_head % ranks or self.hidden_size % n_head:
            raise CheckpointError(f"{self._files[0]}: {n_head} heads for {ranks} ranks, hidden size {self.hidden_size}")
        self._heads_per_rank, self._head_size = n_head // ranks, self.hidden_size // n_head
        self._intact: set[tuple[Path, str]] = set()

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits float32 ``[S, V]`` of one prompt of S token ids."""
        return self.logits_of([ids])[0]

    def logits_of(self, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Logits float32 ``[S, V]`` of each prompt; for many or long ones ``rows_of`` and ``project`` need less."""
        return [self.project(rows) for rows in self.rows_of(prompts)]

    @torch.inference_mode()
    def rows_of(
        self, prompts: Sequence[Sequence[int]], on_layer: Callable[[], object] = lambda: None
    ) -> list[torch.Tensor]:
        """Return the last layer's output, float32 ``[S, h]`` for each prompt: each weight is read once for all.

        Args:
            prompts: token ids, each prompt 1 to ``n_positions`` of them.
            on_layer: called after each layer.
        """
        sizes = [len(prompt) for prompt in prompts]
        x = self._embed(np.concatenate([np.asarray(prompt, np.int64) for prompt in prompts]), sizes)
        for layer in range(self.n_layer):
            x = x + self._attention(f"transformer.layers.{layer}", x, sizes)
            x = x + self._mlp(f"transformer.layers.{layer}", x)
            on_layer()
        return list(torch.split(x, sizes))

    @torch.inference_mode()
    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits float32 ``[N, V]`` of rows ``[N, h]``: each rank's part of the vocabulary, side by side."""
        parts = []
        step = max(1, self._block // self.hidden_size)
        for rank in range(len(self._files)):
            normed = self._norm(rank, _FINAL, rows)
            table = self._read(rank, _TOKENS)
            parts += [linear(normed, _float32(table[at : at + step])) for at in range(0, len(table), step)]
        return torch.cat(parts, dim=-1)

    def _ref(self, rank: int, name: str) -> TensorRef:
        ref = self._shards[rank].get(name)
        if not isinstance(ref, TensorRef):
            raise CheckpointError(f"{self._files[rank]}: {name}: expected a tensor, found none")
        return ref

    def _read(self, rank: int, name: str) -> np.ndarray[Any, Any]:
        """Return a rank's tensor as the file has it, mapped; its storage has been compared with its CRC-32."""
        storage: Storage = self._ref(rank, name).storage
        if (key := (storage.file, storage.key)) not in self._intact:
            storage.check()
            self._intact.add(key)
        return self._ref(rank, name).numpy()

    def _weight(self, rank: int, name: str) -> torch.Tensor:
        return _float32(self._read(rank, name))

    def _norm(self, rank: int, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (self._weight(rank, f"{name}.{kind}") for kind in ("weight", "bias"))
        return layer_norm(x, (self.hidden_size,), weight, bias, _EPSILON)

    def _embed(self, ids: np.ndarray[Any, Any], sizes: Sequence[int]) -> torch.Tensor:
        """``[N, h]``: a rank that does not have a token's row contributes zeros."""
        total = torch.zeros(len(ids), self.hidden_size)
        start = 0
        for rank in range(len(self._files)):
            table = self._read(rank, _TOKENS)
            elsewhere = (ids < start) | (ids >= start + len(table))
            rows = _float32(table[np.where(elsewhere, 0, ids - start)])
            rows[torch.from_numpy(elsewhere)] = 0.0
            total += rows
            start += len(table)
        positions = self._weight(0, _POSITIONS)
        return total + torch.cat([positions[:size] for size in sizes])

    def _attention(self, layer: str, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Return the sum over the ranks of what each makes of its own heads, then the bias, once."""
        total = torch.zeros_like(x)
        name = f"{layer}.attention"
        for rank in range(len(self._files)):
            normed = self._norm(rank, f"{layer}.input_layernorm", x)
            qkv = linear(
                normed, self._weight(rank, f"{name}.query_key_value.weight"),
                self._weight(rank, f"{name}.query_key_value.bias"),
            )  # fmt: skip
            context = torch.cat([self._heads(part) for part in torch.split(qkv, list(sizes))])
            total += linear(context, self._weight(rank, f"{name}.dense.weight"))
        return total + self._weight(0, f"{name}.dense.bias")

    def _heads(self, qkv: torch.Tensor) -> torch.Tensor:
        """Causal attention of a rank's heads over one prompt: ``[S, 3h/p]``, thirds Q, K, V -> ``[S, h/p]``."""
        size = len(qkv)
        query, key, value = (
            third.reshape(size, self._heads_per_rank, self._head_size) for third in qkv.tensor_split(3, dim=-1)
        )
        mask = torch.ones(size, size).tril()
        context = torch.empty(size, self._heads_per_rank, self._head_size)
        for head in range(self._heads_per_rank):
            scores = query[:, head] @ key[:, head].T / math.sqrt(self._head_size)
            scores = scores * mask + _HIDDEN * (1.0 - mask)
            context[:, head] = torch.softmax(scores, dim=-1) @ value[:, head]
        return context.reshape(size, -1)

    def _mlp(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        """As ``_attention``: the ranks share out the inner features."""
        total = torch.zeros_like(x)
        for rank in range(len(self._files)):
            normed = self._norm(rank, f"{layer}.post_attention_layernorm", x)
            inner = linear(
                normed, self._weight(rank, f"{layer}.mlp.dense_h_to_4h.weight"),
                self._weight(rank, f"{layer}.mlp.dense_h_to_4h.bias"),
            )  # fmt: skip
            for rows in torch.split(inner, 256):
                rows.copy_(_gelu(rows))
            total += linear(inner, self._weight(rank, f"{layer}.mlp.dense_4h_to_h.weight"))
        return total + self._weight(0, f"{layer}.mlp.dense_4h_to_h.bias")


def _gelu(x: torch.Tensor) -> torch.Tensor:
    """Return the tanh form, as ``gelu_impl`` of ``mpu/transformer.py`` writes it."""
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x)))


def _float32(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a float32 tensor in memory of its own; bfloat16 is passed on as bits, which NumPy lacks."""
    own = np.array(values, order="C")
    if own.dtype.name == "bfloat16":
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16).to(torch.float32)
    return torch.from_numpy(own).to(torch.float32)


def _shard(file: Path) -> Mapping[str, Any]:
    """Return a rank's tensors under Megatron's names, without what wrappers put before them, such as ``module.``."""
    state = next(_dicts_of_positions(load(file), set()), None)
    if state is None:
        raise CheckpointError(f"{file}: expected a dict with the weights under 'module' or 'model'")
    prefix = next(str(name) for name in state if str(name).endswith(_POSITIONS)).removesuffix(_POSITIONS)
    return {str(name).removeprefix(prefix): value for name, value in state.items()}


def _dicts_of_positions(value: Any, seen: set[int]) -> Iterator[dict[Any, Any]]:
    """Yield the dicts that have a position embedding, those under the usual keys first; each dict is looked at once."""
    if type(value) is not dict or id(value) in seen or len(seen) > _MOST_DICTS:
        return
    seen.add(id(value))
    if any(str(name).endswith(_POSITIONS) for name in value):
        yield value
    for key in (*(key for key in _WRAPPERS if key in value), *(key for key in value if key not in _WRAPPERS)):
        yield from _dicts_of_positions(value[key], seen)
