"""transformers on PyTorch: a safetensors file, ``from_pretrained``, and a loop of forward passes with its cache."""

from __future__ import annotations

import json
import re
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode.engines import Base, Rows, Timed
from benchmarks.decode.weights import Array, Weights
from tf_model.config import GPT2Config

_MATRIX = re.compile(r"\bc_\w+\.weight$")


class Adapter(Base):
    def prepare(self, weights: Weights, folder: Path) -> None:
        """Tensor by tensor: eight bytes of the header's length, the header, the values."""
        config = {**weights.config.to_dict(), "dtype": self.dtype}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        size, kind = (2, "BF16") if self.dtype == "bfloat16" else (4, "F32")
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in weights:
            shape = weights.read(name).shape
            end = at + size * int(np.prod(shape))
            shape = shape[::-1] if _MATRIX.search(name) else shape
            header[f"transformer.{name}"] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in weights:
                value = weights.read(name)
                self._values(value.T if _MATRIX.search(name) else value).tofile(file)

    def _values(self, value: Array) -> Array:
        value = np.ascontiguousarray(value, np.float32)
        if self.dtype == "float32":
            return value
        import ml_dtypes

        return value.astype(ml_dtypes.bfloat16).view(np.uint16)

    def start(self, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.disable_progress_bar()
        from transformers import GPT2LMHeadModel

        self._torch, self._class = torch, GPT2LMHeadModel

    def load(self, folder: Path, config: GPT2Config) -> None:
        dtype = getattr(self._torch, self.dtype)
        self._model = self._class.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()

    def decode(self, rows: Rows, steps: int) -> Timed:
        """A loop of its own: transformers' ``generate`` does the same and more for every token."""
        with self._torch.inference_mode():
            started = time.perf_counter()
            ids, cache, found = self._torch.tensor(rows), None, []
            first = 0.0
            for step in range(steps + 1):
                out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
                found.append(ids[0, 0].item())
                if not step:
                    first = time.perf_counter() - started
            return first, time.perf_counter() - started - first, found
