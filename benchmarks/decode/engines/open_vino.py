"""OpenVINO: the graph that its exporters make of such a model, built from its operations.

Keys and values are a state of the model (ReadValue, Gather by row, Concat, Assign around the attention operation) that
its CPU plugin keeps in place; a weight is an int8 constant times a scale per output, which it multiplies with as it is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode.engines import Base, Rows, Timed
from benchmarks.decode.weights import Array, Weights
from tf_model.config import GPT2Config


def _quantized(value: Array) -> tuple[Array, Array]:
    """int8 ``[out, in]`` and scales ``[out, 1]``."""
    levels, scales = np.empty(value.shape, np.int8), np.empty((len(value), 1), np.float32)
    for at in range(0, len(value), 512):
        part = value[at : at + 512].astype(np.float32)
        scale = np.maximum(np.abs(part).max(1, keepdims=True) / 127, 1e-12)
        levels[at : at + 512], scales[at : at + 512] = np.rint(part / scale), scale
    return levels, scales


class Adapter(Base):
    def prepare(self, weights: Weights, folder: Path) -> None:
        import openvino as ov

        ov.save_model(_Graph(weights).model(), folder / "model.xml", compress_to_fp16=False)

    def start(self, threads: int) -> None:
        import openvino

        self._openvino, self._threads = openvino, threads

    def load(self, folder: Path, config: GPT2Config) -> None:
        core = self._openvino.Core()
        options = {"INFERENCE_NUM_THREADS": self._threads, "PERFORMANCE_HINT": "LATENCY"}
        self._request = core.compile_model(folder / "model.xml", "CPU", options).create_infer_request()

    def _feed(self, ids: Array, position: int) -> Array:
        positions = np.tile(np.arange(position, position + ids.shape[1]), (len(ids), 1))
        inputs = {"input_ids": ids, "position_ids": positions, "beam_idx": np.arange(len(ids), dtype=np.int32)}
        logits = self._request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        return logits.argmax(-1).astype(np.int64).reshape(-1, 1)

    def decode(self, rows: Rows, steps: int) -> Timed:
        self._request.reset_state()
        started = time.perf_counter()
        ids = self._feed(np.array(rows, np.int64), 0)
        tokens, first = [int(ids[0, 0])], time.perf_counter() - started
        for step in range(steps):
            ids = self._feed(ids, len(rows[0]) + step)
            tokens.append(int(ids[0, 0]))
        return first, time.perf_counter() - started - first, tokens


class _Graph:
    """``input_ids`` and ``position_ids`` ``[B, S]``, ``beam_idx`` ``[B]`` -> the logits of the last tokens."""

    def __init__(self, weights: Weights) -> None:
        from openvino import opset13

        self._ops, self._weights = opset13, weights
        self._config = weights.config

    def _constant(self, value: Any, dtype: Any = np.int64) -> Any:
        return self._ops.constant(np.array(value, dtype))

    def _vector(self, name: str) -> Any:
        return self._ops.constant(self._weights.read(name).astype(np.float32))

    def _matrix(self, name: str) -> Any:
        levels, scales = _quantized(self._weights.read(name))
        return self._ops.multiply(self._ops.convert(self._ops.constant(levels), "f32"), self._ops.constant(scales))

    def _linear(self, x: Any, name: str) -> Any:
        product = self._ops.matmul(x, self._matrix(f"{name}.weight"), False, True)
        return self._ops.add(product, self._vector(f"{name}.bias"))

    def _norm(self, x: Any, name: str) -> Any:
        normal = self._ops.mvn(x, self._constant([-1]), True, self._config.layer_norm_epsilon, "inside_sqrt")
        scaled = self._ops.multiply(normal, self._vector(f"{name}.weight"))
        return self._ops.add(scaled, self._vector(f"{name}.bias"))

    def _heads(self, x: Any) -> Any:
        """``[B, S, h]`` -> ``[B, n, S, h / n]``."""
        shape = self._constant([0, 0, self._config.n_head, self._config.head_dim])
        return self._ops.transpose(self._ops.reshape(x, shape, True), self._constant([0, 2, 1, 3]))

    def _state(self, name: str, new: Any, like: Any, rows: Any) -> tuple[Any, Any]:
        """What was kept and ``new`` behind it; and the operation that keeps both."""
        from openvino import PartialShape, Type
        from openvino.op.util import Variable, VariableInfo

        ops, config = self._ops, self._config
        info = VariableInfo()
        info.data_shape = PartialShape([-1, config.n_head, -1, config.head_dim])
        info.data_type, info.variable_id = Type.f32, name
        variable = Variable(info)
        batch = ops.gather(ops.shape_of(like), self._constant([0]), self._constant(0))
        shape = ops.concat([batch, *(self._constant([n]) for n in (config.n_head, 0, config.head_dim))], 0)
        kept = ops.read_value(ops.broadcast(self._constant(0, np.float32), shape), variable)
        both = ops.concat([ops.gather(kept, rows, self._constant(0)), new], 2)
        return both, ops.assign(both, variable)

    def model(self) -> Any:
        import openvino as ov

        ops, config = self._ops, self._config
        inputs = {"input_ids": ([-1, -1], np.int64), "position_ids": ([-1, -1], np.int64), "beam_idx": ([-1], np.int32)}
        ids, positions, rows = (ops.parameter(shape, dtype, name) for name, (shape, dtype) in inputs.items())
        for node, name in zip((ids, positions, rows), inputs, strict=True):
            node.output(0).get_tensor().set_names({name})
        embedding, first = self._matrix("wte.weight"), self._constant(0)
        x = ops.add(ops.gather(embedding, ids, first), ops.gather(self._vector("wpe.weight"), positions, first))
        mask, sinks = None, []
        for layer in range(config.n_layer):
            name = f"h.{layer}"
            mixed = self._linear(self._norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn")
            parts = ops.split(mixed, self._constant(-1), 3).outputs()
            query, new_key, new_value = (self._heads(part) for part in parts)
            key, keep_key = self._state(f"{layer}.key", new_key, ids, rows)
            value, keep_value = self._state(f"{layer}.value", new_value, ids, rows)
            sinks += [keep_key, keep_value]
            if mask is None:
                total = ops.gather(ops.shape_of(key), self._constant(2), first)
                column = ops.range(self._constant(0), total, self._constant(1), "i64")
                seen = ops.less_equal(column, ops.unsqueeze(positions, self._constant([1, 3])))
                mask = ops.select(seen, self._constant(0, np.float32), self._constant(-65504, np.float32))
            attended = ops.scaled_dot_product_attention(query, key, value, mask, causal=False)
            back = ops.transpose(attended, self._constant([0, 2, 1, 3]))
            joined = ops.reshape(back, self._constant([0, 0, config.n_embd]), True)
            x = ops.add(x, self._linear(joined, f"{name}.attn.c_proj"))
            inner = ops.gelu(self._linear(self._norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"), "tanh")
            x = ops.add(x, self._linear(inner, f"{name}.mlp.c_proj"))
        last = ops.gather(self._norm(x, "ln_f"), self._constant(-1), self._constant(1))
        logits = ops.matmul(last, embedding, False, True)
        return ov.Model([ops.result(logits)], sinks, [ids, positions, rows], "gpt2")
