"""What the files of Megatron's ranks hold: the names of tensors, how each one is split, the order of Q, K and V.

The readers and the writers of both formats use these tables. Sources: ``mpu/`` and ``model/`` of CPM-1-Generate;
``megatron/model/language_model.py`` and ``megatron/checkpointing.py`` (``fix_query_key_value_ordering``) of
Megatron-LM. The rows of a rank's fused projection are, by ``checkpoint_version``: 0 ``[3, heads, head_dim]``, 1.0
``[heads, head_dim, 3]``, 2.0 and 3.0 ``[heads, 3, head_dim]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.formats.megatron.sharding import COLUMN, QKV, REPLICATED, ROW, ShardSpec
from convert.formats.tensor_map import layer_template
from convert.tensors import Array

CPM, MEGATRON_LM = "megatron", "megatron-lm"
"""The names of the two formats."""

CPM_NAMES: Mapping[str, str] = {
    "wte.weight": "word_embeddings.weight",
    "wpe.weight": "position_embeddings.weight",
    "h.{}.ln_1.weight": "transformer.layers.{}.input_layernorm.weight",
    "h.{}.ln_1.bias": "transformer.layers.{}.input_layernorm.bias",
    "h.{}.attn.c_attn.weight": "transformer.layers.{}.attention.query_key_value.weight",
    "h.{}.attn.c_attn.bias": "transformer.layers.{}.attention.query_key_value.bias",
    "h.{}.attn.c_proj.weight": "transformer.layers.{}.attention.dense.weight",
    "h.{}.attn.c_proj.bias": "transformer.layers.{}.attention.dense.bias",
    "h.{}.ln_2.weight": "transformer.layers.{}.post_attention_layernorm.weight",
    "h.{}.ln_2.bias": "transformer.layers.{}.post_attention_layernorm.bias",
    "h.{}.mlp.c_fc.weight": "transformer.layers.{}.mlp.dense_h_to_4h.weight",
    "h.{}.mlp.c_fc.bias": "transformer.layers.{}.mlp.dense_h_to_4h.bias",
    "h.{}.mlp.c_proj.weight": "transformer.layers.{}.mlp.dense_4h_to_h.weight",
    "h.{}.mlp.c_proj.bias": "transformer.layers.{}.mlp.dense_4h_to_h.bias",
    "ln_f.weight": "transformer.final_layernorm.weight",
    "ln_f.bias": "transformer.final_layernorm.bias",
}
"""Canonical name -> the name in CPM's files; ``{}`` is the layer."""

MEGATRON_LM_NAMES: Mapping[str, str] = {
    "wte.weight": "embedding.word_embeddings.weight",
    "wpe.weight": "embedding.position_embeddings.weight",
    **{
        ours: theirs.removeprefix("transformer.")
        for ours, theirs in CPM_NAMES.items()
        if theirs.startswith("transformer.")
    },
    "lm_head.weight": "output_layer.weight",
}
"""Canonical name -> the name in newer Megatron-LM's files, below ``language_model`` and ``transformer``."""

SHARD_SPECS: Mapping[str, ShardSpec] = {
    "wte.weight": COLUMN,
    "lm_head.weight": COLUMN,
    "h.{}.attn.c_attn.weight": QKV,
    "h.{}.attn.c_attn.bias": QKV,
    "h.{}.attn.c_proj.weight": ROW,
    "h.{}.mlp.c_fc.weight": COLUMN,
    "h.{}.mlp.c_fc.bias": COLUMN,
    "h.{}.mlp.c_proj.weight": ROW,
}
"""Canonical name -> how the tensor is split; every other tensor is ``REPLICATED``."""

VERSIONS = ("0", "1.0", "2.0", "3.0")
"""The values of Megatron-LM's ``checkpoint_version``."""

_ORDERS: Mapping[str, tuple[tuple[Any, ...], int]] = {
    "0": ((3, "heads", -1), 0),
    "1.0": (("heads", -1, 3), 2),
    "2.0": (("heads", 3, -1), 1),
    "3.0": (("heads", 3, -1), 1),
}
"""``checkpoint_version`` -> the dimensions of the rows of a rank's fused projection; which of them is Q, K or V."""


def cpm_name(name: str) -> str:
    """Return the name of the canonical tensor ``name`` in CPM's files."""
    template, layer = layer_template(name)
    return CPM_NAMES[template].format(layer)


def megatron_lm_name(name: str) -> str:
    """Return the name of the canonical tensor ``name`` in newer Megatron-LM's files, as older versions spell it."""
    template, layer = layer_template(name)
    return MEGATRON_LM_NAMES[template].format(layer)


def shard_spec_of(name: str) -> ShardSpec:
    """Return how the canonical tensor ``name`` is split over the ranks."""
    return SHARD_SPECS.get(layer_template(name)[0], REPLICATED)


def qkv_view(shard: Array, version: str, heads: int) -> Array:
    """Return a rank's fused projection as a view ``[3, heads, head_dim, ...]``.

    Args:
        shard: the rank's shard of the weight ``[3 * heads * head_dim, n_embd]`` or of the bias.
        version: one of ``VERSIONS``, which decides the order of the rows.
        heads: the number of heads of this rank.
    """
    sizes, axis = _ORDERS[version]
    by_row = shard.reshape(*(heads if size == "heads" else size for size in sizes), *shard.shape[1:])
    return np.moveaxis(by_row, axis, 0)
