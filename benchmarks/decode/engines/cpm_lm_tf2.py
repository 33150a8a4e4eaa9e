"""The design of CPM-LM-TF2's SavedModel, written anew from a description of its notebooks and its model.

float32; three matrices for Q, K and V; the exact gelu; keys and values of all layers in one tensor, which a
``tf.while_loop`` makes anew for every token by a concatenation; a graph of its own for the prompt, without a cache; all
of the vocabulary sorted for every token. ``length`` gives ``length + 1`` tokens; top_p 0 is greedy.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode.engines import Base, Rows, Timed
from benchmarks.decode.engines.ours import start_tensorflow
from benchmarks.decode.weights import Weights
from tf_model.config import GPT2Config


class Adapter(Base):
    def prepare(self, weights: Weights, folder: Path) -> None:
        tf = start_tensorflow(0)
        model = _Model(tf, weights)
        root = tf.Module()
        root.weights = model.variables
        tf.saved_model.save(root, str(folder), signatures=model.signature())

    def start(self, threads: int) -> None:
        self._tf = start_tensorflow(threads)

    def load(self, folder: Path, config: GPT2Config) -> None:
        self._model = self._tf.saved_model.load(str(folder))

    def _generate(self, rows: Rows, length: int) -> tuple[float, list[int]]:
        tf = self._tf
        options = {"length": tf.constant(length, tf.int64), "top_p": tf.constant(0.0), "temperature": tf.constant(1.0)}
        ids = tf.constant(rows, tf.int64)
        started = time.perf_counter()
        found = self._model.signatures["serving_default"](inp=ids, **options)["output_0"].numpy()
        return time.perf_counter() - started, found[0, len(rows[0]) :].tolist()

    def decode(self, rows: Rows, steps: int) -> Timed:
        first, tokens = self._generate(rows, 0)
        if not steps:
            return first, 0.0, tokens
        more, tokens = self._generate(rows, steps)
        return first, more - first, tokens


class _Model:
    """Its maths; kernels are ``[in, out]`` as Keras has them."""

    def __init__(self, tf: Any, weights: Weights) -> None:
        self._tf, self._config = tf, weights.config
        self.variables: dict[str, Any] = {}
        for name in weights:
            value = weights.read(name)
            if ".c_attn." in name:
                for part, some in zip("qkv", np.split(value, 3), strict=True):
                    self._add(f"{name.replace('c_attn', part)}", some)
            else:
                self._add(name, value)

    def _add(self, name: str, value: Any) -> None:
        kernel = value.ndim == 2 and not name.startswith("w")
        values = np.ascontiguousarray(value.T if kernel else value, np.float32)
        self.variables[name] = self._tf.Variable(values, name=name)

    def _dense(self, x: Any, name: str) -> Any:
        tf, kernel = self._tf, self.variables[f"{name}.weight"]
        flat = tf.matmul(tf.reshape(x, [-1, kernel.shape[0]]), kernel)
        shape = tf.concat([tf.shape(x)[:-1], [kernel.shape[1]]], 0)
        return tf.nn.bias_add(tf.reshape(flat, shape), self.variables[f"{name}.bias"])

    def _norm(self, x: Any, name: str) -> Any:
        tf = self._tf
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        scale, shift = self.variables[f"{name}.weight"], self.variables[f"{name}.bias"]
        return tf.nn.batch_normalization(x, mean, variance, shift, scale, self._config.layer_norm_epsilon)

    def _heads(self, x: Any) -> Any:
        tf, config = self._tf, self._config
        shape = [tf.shape(x)[0], tf.shape(x)[1], config.n_head, config.head_dim]
        return tf.transpose(tf.reshape(x, shape), [0, 2, 1, 3])

    def _step(self, ids: Any, past: Any) -> tuple[Any, Any]:
        """Logits ``[B, s, V]`` and new keys and values ``[L, B, 2, n, s, d]``; ``past`` has those before, if any."""
        tf, config = self._tf, self._config
        before = 0 if past is None else tf.shape(past)[4]
        size = tf.shape(ids)[1]
        embedding, positions = self.variables["wte.weight"], self.variables["wpe.weight"]
        x = tf.gather(embedding, ids) + positions[before : before + size][tf.newaxis]
        mask = tf.linalg.band_part(tf.ones([size, size]), -1, 0)
        new = []
        for layer in range(config.n_layer):
            name = f"h.{layer}"
            normal = self._norm(x, f"{name}.ln_1")
            query, key, value = (self._heads(self._dense(normal, f"{name}.attn.{part}")) for part in "qkv")
            new.append(tf.stack([key, value], 1))
            if past is not None:
                key = tf.concat([past[layer, :, 0], key], -2)
                value = tf.concat([past[layer, :, 1], value], -2)
            scores = tf.matmul(query, key, transpose_b=True) * (1 / np.sqrt(config.head_dim))
            attended = tf.matmul(tf.nn.softmax(scores * mask - 1e10 * (1 - mask)), value)
            joined = tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), tf.shape(x))
            x += self._dense(joined, f"{name}.attn.c_proj")
            inner = self._dense(self._norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
            inner *= 0.5 * (1 + tf.math.erf(inner / np.sqrt(2)))
            x += self._dense(inner, f"{name}.mlp.c_proj")
        x = self._norm(x, "ln_f")
        flat = tf.matmul(tf.reshape(x, [-1, config.n_embd]), tf.identity(embedding), transpose_b=True)
        return tf.reshape(flat, [tf.shape(x)[0], size, config.vocab_size]), tf.stack(new)

    def _choose(self, logits: Any, top_p: Any, temperature: Any) -> Any:
        """One token for each row, int64 ``[B, 1]``: drawn from those that together have less than ``top_p``."""
        tf = self._tf
        logits = logits[:, -1] / temperature
        order = tf.argsort(logits, direction="DESCENDING")
        ranked = tf.gather(logits, order, batch_dims=1)
        rank = tf.range(self._config.vocab_size)
        kept = (tf.cumsum(tf.nn.softmax(ranked), axis=-1) < top_p) | (rank == 0)
        place = tf.random.categorical(ranked - 1e10 * (1 - tf.cast(kept, tf.float32)), 1)
        return tf.cast(tf.gather(order, place, batch_dims=1), tf.int64)

    def signature(self) -> Any:
        tf, config = self._tf, self._config

        def serving_default(inp: Any, length: Any, top_p: Any, temperature: Any) -> dict[str, Any]:
            logits, past = self._step(inp, None)
            last = self._choose(logits, top_p, temperature)

            def body(number: Any, last: Any, past: Any, found: Any) -> tuple[Any, ...]:
                logits, new = self._step(last, past)
                last = self._choose(logits, top_p, temperature)
                return number + 1, last, tf.concat([past, new], -2), tf.concat([found, last], 1)

            cache = tf.TensorShape([config.n_layer, None, 2, config.n_head, None, config.head_dim])
            state = (tf.constant(0, tf.int64), last, past, tf.concat([inp, last], 1))
            shapes = (tf.TensorShape([]), tf.TensorShape([None, 1]), cache, tf.TensorShape([None, None]))
            *_, found = tf.while_loop(lambda number, *_: number < length, body, state, shape_invariants=shapes)
            return {"output_0": found}

        number = tf.TensorSpec([], tf.float32)
        inputs = [tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([], tf.int64), number, number]
        names = ("inp", "length", "top_p", "temperature")
        named = [tf.TensorSpec(spec.shape, spec.dtype, name) for spec, name in zip(inputs, names, strict=True)]
        return tf.function(serving_default, input_signature=named, autograph=False)
