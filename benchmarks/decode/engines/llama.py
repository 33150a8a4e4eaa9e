"""llama.cpp through llama-cpp-python's C functions: the class above them needs a tokenizer and is slower."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode.engines import Base, Rows, Timed
from benchmarks.decode.weights import Array, Weights
from tf_model.config import GPT2Config

_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_ROWS = 512
_BATCH = 16
"""Rows at once, at most."""


def _name(name: str) -> str:
    stem, end = name.rsplit(".", 1)
    if stem.startswith("h."):
        _, layer, rest = stem.split(".", 2)
        return f"blk.{layer}.{_NAMES[rest]}.{end}"
    return f"{_NAMES[stem]}.{end}"


def _bfloat16(values: Array, kind: Any) -> Array:
    """As ``gguf.quantize`` does, which takes minutes for 2.6 billion of them."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16)


class Adapter(Base):
    def prepare(self, weights: Weights, folder: Path) -> None:
        import gguf

        config = weights.config
        writer = gguf.GGUFWriter(folder / "model.gguf", "gpt2")
        writer.add_context_length(config.n_positions)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(config.n_inner)
        writer.add_block_count(config.n_layer)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("none")
        wanted = gguf.GGMLQuantizationType[self.dtype]

        def kind(name: str, shape: tuple[int, ...]) -> Any:
            return wanted if len(shape) == 2 and name != "wpe.weight" else gguf.GGMLQuantizationType.F32

        for name, shape in config.tensor_shapes().items():
            size, block = gguf.GGML_QUANT_SIZES[kind(name, shape)]
            count = int(np.prod(shape))
            writer.add_tensor_info(_name(name), shape, np.dtype(np.float32), count // size * block, kind(name, shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, shape in config.tensor_shapes().items():
            value = weights.read(name)
            quantize = _bfloat16 if kind(name, shape).name == "BF16" else gguf.quantize
            parts: list[Array] = [
                quantize(value[at : at + _ROWS].astype(np.float32), kind(name, shape))
                for at in range(0, len(value), _ROWS)
            ]
            writer.write_tensor_data(np.concatenate(parts))
        writer.close()

    def start(self, threads: int) -> None:
        import llama_cpp

        self._llama, self._threads = llama_cpp, threads
        llama_cpp.llama_backend_init()
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, None)

    def load(self, folder: Path, config: GPT2Config) -> None:
        llama = self._llama
        model = llama.llama_model_load_from_file(
            str(folder / "model.gguf").encode(), llama.llama_model_default_params()
        )
        if not model:
            raise RuntimeError("the GGUF file cannot be loaded")
        self._model, self._config, self._context, self._cells = model, config, None, 0
        self._resize(128)

    def _resize(self, cells: int) -> None:
        """A context with room for so many tokens: attention may look at all of it."""
        llama, config = self._llama, self._config
        if self._context is not None:
            if cells == self._cells:
                return
            llama.llama_batch_free(self._batch)
            llama.llama_free(self._context)
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = cells, max(512, cells), 512
        params.n_seq_max, params.kv_unified = _BATCH, True
        params.n_threads = params.n_threads_batch = self._threads
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"no context of {cells} tokens for {config.n_layer} layers")
        self._batch, self._cells = llama.llama_batch_init(max(512, cells), 0, 1), cells

    def _feed(self, rows: Rows, position: int) -> list[int]:
        """Reads ``rows``, as long as each other, from ``position`` on; the most probable token behind each."""
        batch, n = self._batch, 0
        for sequence, row in enumerate(rows):
            for i, token in enumerate(row):
                batch.token[n], batch.pos[n] = token, position + i
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                batch.logits[n] = i == len(row) - 1
                n += 1
        batch.n_tokens = n
        if (code := self._llama.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode: {code}")
        size, found, at = self._config.vocab_size, [], -1
        for row in rows:
            at += len(row)
            logits = self._llama.llama_get_logits_ith(self._context, at)
            found.append(int(np.ctypeslib.as_array(logits, (size,)).argmax()))
        return found

    def decode(self, rows: Rows, steps: int) -> Timed:
        length = len(rows[0])
        self._resize(-(-len(rows) * (length + steps + 1) // 256) * 256)
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        started = time.perf_counter()
        found = self._feed(rows, 0)
        tokens, first = found[:1], time.perf_counter() - started
        for step in range(steps):
            found = self._feed([[token] for token in found], length + step)
            tokens.append(found[0])
        return first, time.perf_counter() - started - first, tokens
