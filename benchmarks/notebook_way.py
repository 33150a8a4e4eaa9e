"""The conversion as the notebooks of CPM-LM-TF2 do it, to be measured beside this project's.

All shards are loaded, all tensors are merged into copies, a model is filled with them, and the model is saved: shards,
copies and model are in memory at the same time. Written anew from a description of ``load_pytorch_v2.ipynb``, for any
number of shards and layers, with this project's Keras model and signatures, so that the results are the same.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import tensorflow as tf
import torch

from exports.shared_functions import SharedFunctions
from exports.signatures import signature_functions
from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2
from tf_model.precision import DTYPES
from tokenization.special_tokens import CPM_TOKENS

_NAMES = (
    ("word_embeddings", "wte"),
    ("position_embeddings", "wpe"),
    ("transformer.final_layernorm", "ln_f"),
    ("transformer.layers.", "h."),
    ("input_layernorm", "ln_1"),
    ("attention.query_key_value", "attn.c_attn"),
    ("attention.dense", "attn.c_proj"),
    ("post_attention_layernorm", "ln_2"),
    ("mlp.dense_h_to_4h", "mlp.c_fc"),
    ("mlp.dense_4h_to_h", "mlp.c_proj"),
)


def merged(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """The whole tensor of its shards, rank 0 first: a copy, also where there is one shard."""
    if "query_key_value" in name:
        return torch.cat([part.chunk(3)[i] for i in range(3) for part in parts])
    if "word_embeddings" in name or "dense_h_to_4h" in name:
        return torch.cat(parts)
    if re.search(r"dense(_4h_to_h)?\.weight$", name):
        return torch.cat(parts, dim=1)
    return parts[0].clone()


def convert(folder: Path, output: Path, heads: int, dtype: str) -> None:
    """Converts the shards in ``folder`` to a SavedModel at ``output``."""
    files = sorted(folder.glob("mp_rank_*_model_states.pt"))
    shards = [torch.load(file, map_location="cpu", weights_only=True)["module"] for file in files]
    weights = {name: merged(name, [shard[name] for shard in shards]) for name in shards[0]}
    vocabulary, hidden = weights["word_embeddings.weight"].shape
    positions = len(weights["position_embeddings.weight"])
    layers = sum(name.endswith("query_key_value.bias") for name in weights)
    model = GPT2(GPT2Config(vocabulary, positions, hidden, layers, heads), dtype=dtype)
    variables = model.canonical_variables()
    for name, tensor in weights.items():
        for theirs, ours in _NAMES:
            name = name.replace(theirs, ours)
        variables[name].assign(tf.cast(tensor.float().numpy(), variables[name].dtype))
    shared = SharedFunctions(model, CPM_TOKENS)
    shared.stacks.assign()
    root = tf.Module()
    root.weights, root.stacks = shared.weights, shared.stacks.variables
    tf.saved_model.save(root, str(output), signatures=signature_functions(shared, ["serving_default"]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.notebook_way", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="the folder of the shards")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--heads", type=int, required=True, metavar="N")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    args: Any = parser.parse_args(argv)
    convert(args.checkpoint, args.output, args.heads, args.dtype)


if __name__ == "__main__":
    main()
