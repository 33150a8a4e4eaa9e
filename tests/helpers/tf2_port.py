"""SavedModels and weights with the layout of CPM-LM-TF2, and what its model computes, in float64 NumPy.

The names are those that its notebooks print, the formulas those of its model; nothing is taken from the project's code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Tensors = dict[str, np.ndarray]

V, S, H, L, HEADS = 61, 20, 32, 3, 4
IDS = np.random.default_rng(5).integers(0, V, 17)
LINEAR = (
    ("attention/query_layer", H, H), ("attention/key_layer", H, H), ("attention/value_layer", H, H),
    ("attention/context_projection_layer", H, H), ("intermediate", H, 4 * H), ("output", 4 * H, H),
)  # fmt: skip


def random_tensors(seed: int = 0, layers: int = L, dtype: str = "float32") -> Tensors:
    """Under the names of the port's variables. No bias is zero, no layer norm trivial; logits are of order 10."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.2, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * rng.standard_normal(shape)).astype(dtype)

    tensors = {"gpt/embedding/embeddings": normal(V, H, scale=0.7), "position_embeddings": normal(S, H)}
    for i in range(layers):
        for linear, inputs, out in LINEAR:
            tensors[f"gpt/layer{i:02d}/{linear}/kernel"] = normal(inputs, out, scale=1 / math.sqrt(inputs))
            tensors[f"gpt/layer{i:02d}/{linear}/bias"] = normal(out)
        for norm in ("LayerNorm_mlp_ln0", "LayerNorm_mlp_ln1"):
            tensors[f"gpt/layer{i:02d}/{norm}/gamma"] = normal(H, mean=1)
            tensors[f"gpt/layer{i:02d}/{norm}/beta"] = normal(H)
    return tensors | {"gpt/LayerNorm_final_norm/gamma": normal(H, mean=1), "gpt/LayerNorm_final_norm/beta": normal(H)}


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def expected_logits(tensors: Tensors, gelu: Callable[[np.ndarray], np.ndarray], ids: np.ndarray = IDS) -> np.ndarray:
    """float64 logits of one text, by the port's formulas."""
    w = {name.removeprefix("gpt/"): value.astype(np.float64) for name, value in tensors.items()}
    n, layers = len(ids), sum(name.endswith("/intermediate/bias") for name in tensors)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w[f"{name}/gamma"] + w[f"{name}/beta"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(n, HEADS, H // HEADS).transpose(1, 0, 2)

    x = w["embedding/embeddings"][ids] + w["position_embeddings"][:n]
    for i in range(layers):
        normed = norm(x, f"layer{i:02d}/LayerNorm_mlp_ln0")
        q, k, v = (heads(dense(normed, f"layer{i:02d}/attention/{p}_layer")) for p in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) * (1 / math.sqrt(H // HEADS))
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -1e10)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + dense(mixed.transpose(1, 0, 2).reshape(n, H), f"layer{i:02d}/attention/context_projection_layer")
        inner = gelu(dense(norm(x, f"layer{i:02d}/LayerNorm_mlp_ln1"), f"layer{i:02d}/intermediate"))
        x = x + dense(inner, f"layer{i:02d}/output")
    return norm(x, "LayerNorm_final_norm") @ w["embedding/embeddings"].T


def signature(model: Any) -> Any:
    """A ``serving_default`` with the arguments that the port's has, which uses every variable."""
    variables = getattr(model, "gpt", model).variables

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.int64, "inp"),
            tf.TensorSpec([None], tf.int64, "length"),
            tf.TensorSpec([None], tf.float32, "top_p"),
            tf.TensorSpec([None], tf.float32, "temperature"),
        ]
    )
    def sample(inp: Any, length: Any, top_p: Any, temperature: Any) -> dict[str, Any]:
        total = tf.add_n([tf.reduce_sum(tf.cast(variable, tf.float32)) for variable in variables])
        return {"output_0": tf.cast(tf.cast(inp, tf.float32) + 0 * (total + top_p[0] + temperature[0]), tf.int64)}

    return sample


class Plain(tf.Module):
    """Variables in a list: their keys are ``tensors/0``, and nothing but their names says which is which."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = [tf.Variable(value, name=name) for name, value in tensors.items()]


OBJECTS = {
    "gpt/embedding": "token_emb", "gpt/LayerNorm_final_norm": "final_norm", "attention": "attn", "query_layer": "query",
    "key_layer": "key", "value_layer": "value", "context_projection_layer": "proj", "LayerNorm_mlp_ln0": "ln0",
    "LayerNorm_mlp_ln1": "ln1", "intermediate": "intermediate_layer", "output": "output_layer",
    "position_embeddings": "pos_emb/emb",
}  # fmt: skip


class Objects(tf.Module):
    """Variables where the port's classes have them, whose names say nothing, as Keras 3 saves them."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.transformers = [tf.Module() for _ in range(L)]
        for name, value in tensors.items():
            for theirs, attribute in OBJECTS.items():
                name = name.replace(theirs, attribute)
            *path, last = re.sub(r"gpt/layer0(\d)", r"transformers/\1", name).split("/")
            owner: Any = self
            for part in path:
                if not part.isdecimal() and not hasattr(owner, part):
                    setattr(owner, part, tf.Module())
                owner = owner[int(part)] if part.isdecimal() else getattr(owner, part)
            setattr(owner, last, tf.Variable(value, name=last))


def save(model: Any, folder: Path) -> Path:
    tf.saved_model.save(model, str(folder), signatures={"serving_default": signature(model)})
    return folder


def keras_model(tensors: Tensors) -> Any:
    """A Keras model whose layers have the port's names and attributes, with ``tensors`` as weights."""
    keras = tf.keras

    class Attention(keras.layers.Layer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.query, self.key, self.value = (
                keras.layers.Dense(H, name=f"{name}_layer") for name in ("query", "key", "value")
            )
            self.proj = keras.layers.Dense(H, name="context_projection_layer")

        def call(self, x: Any) -> Any:
            return self.proj(self.query(x) + self.key(x) + self.value(x))

    class Block(keras.layers.Layer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.attn = Attention(name="attention")
            self.ln0 = keras.layers.LayerNormalization(epsilon=1e-5, name="LayerNorm_mlp_ln0")
            self.ln1 = keras.layers.LayerNormalization(epsilon=1e-5, name="LayerNorm_mlp_ln1")
            self.intermediate_layer = keras.layers.Dense(4 * H, name="intermediate")
            self.output_layer = keras.layers.Dense(H, name="output")

        def call(self, x: Any) -> Any:
            x = x + self.attn(self.ln0(x))
            return x + self.output_layer(self.intermediate_layer(self.ln1(x)))

    class Positions(keras.layers.Layer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.emb = self.add_weight(name="position_embeddings", shape=[S, H])

        def call(self, x: Any) -> Any:
            return x + self.emb[: tf.shape(x)[1]]

    class GPT(keras.Model):
        def __init__(self, layers: int, **options: Any) -> None:
            super().__init__(**options)
            self.token_emb = keras.layers.Embedding(V, H, name="embedding")
            self.pos_emb = Positions(name="position_embedding")
            self.transformers = [Block(name=f"layer{i:02d}") for i in range(layers)]
            self.final_norm = keras.layers.LayerNormalization(epsilon=1e-5, name="LayerNorm_final_norm")

        def call(self, x: Any) -> Any:
            x = self.pos_emb(self.token_emb(x))
            for block in self.transformers:
                x = block(x)
            return self.final_norm(x)

    model = GPT(L, name="gpt")
    model(tf.constant([[1, 2]]))
    for variable in model.variables:
        name = "position_embeddings" if "position" in variable.path else variable.path
        variable.assign(tensors[name])
    return model
