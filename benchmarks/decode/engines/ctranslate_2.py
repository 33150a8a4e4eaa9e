"""CTranslate2: its converter's specification filled from the weights, and ``Generator.generate_batch``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode.engines import Base, Rows, Timed
from benchmarks.decode.weights import Weights
from tf_model.config import GPT2Config


class Adapter(Base):
    def prepare(self, weights: Weights, folder: Path) -> None:
        """As its ``OpenAIGPT2Converter`` does."""
        from ctranslate2.specs import common_spec, transformer_spec

        config = weights.config
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            config.n_layer, config.n_head, pre_norm=True, activation=common_spec.Activation.GELUTanh
        )
        decoder = spec.decoder
        decoder.scale_embeddings = False
        decoder.embeddings.weight = decoder.projection.weight = weights.read("wte.weight")
        decoder.position_encodings.encodings = weights.read("wpe.weight")

        def norm(target: Any, name: str) -> None:
            target.gamma, target.beta = weights.read(f"{name}.weight"), weights.read(f"{name}.bias")

        def linear(target: Any, name: str) -> None:
            target.weight, target.bias = weights.read(f"{name}.weight"), weights.read(f"{name}.bias")

        norm(decoder.layer_norm, "ln_f")
        for i, layer in enumerate(decoder.layer):
            norm(layer.self_attention.layer_norm, f"h.{i}.ln_1")
            linear(layer.self_attention.linear[0], f"h.{i}.attn.c_attn")
            linear(layer.self_attention.linear[1], f"h.{i}.attn.c_proj")
            norm(layer.ffn.layer_norm, f"h.{i}.ln_2")
            linear(layer.ffn.linear_0, f"h.{i}.mlp.c_fc")
            linear(layer.ffn.linear_1, f"h.{i}.mlp.c_proj")
        spec.register_vocabulary([str(token) for token in range(config.vocab_size)])
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
        spec.validate()
        spec.optimize("int8_float32" if self.dtype == "int8" else self.dtype)
        spec.save(str(folder))

    def start(self, threads: int) -> None:
        import ctranslate2

        self._ctranslate2, self._threads = ctranslate2, threads

    def load(self, folder: Path, config: GPT2Config) -> None:
        self._generator = self._ctranslate2.Generator(
            str(folder), device="cpu", inter_threads=1, intra_threads=self._threads, compute_type=self.dtype
        )

    def decode(self, rows: Rows, steps: int) -> Timed:
        seen: list[float] = []

        def token_came(result: Any) -> bool:
            if len(seen) <= result.step:
                seen.append(0.0)
            seen[result.step] = time.perf_counter()
            return False

        started = time.perf_counter()
        results = self._generator.generate_batch(
            [[str(token) for token in row] for row in rows],
            max_length=steps + 1,
            min_length=steps + 1,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=token_came,
        )
        ended = time.perf_counter()
        first = seen[0] if steps else ended
        return first - started, ended - first, np.array(results[0].sequences_ids[0]).tolist()
