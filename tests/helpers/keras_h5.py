"""HDF5 files as transformers' TensorFlow GPT-2 and Keras 2 wrote them, from the state dict of a PyTorch GPT-2.

Neither the names nor the layout come from the project's code: the sources are ``modeling_tf_gpt2.py`` of transformers
3.5 and 4.30 and ``hdf5_format.py`` of Keras 2.4 and 2.9.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

NORMS = {"weight": "gamma", "bias": "beta"}


@dataclasses.dataclass(frozen=True)
class KerasH5:
    """How a file is laid out.

    Attributes:
        model: what stands in front of ``transformer/`` in the names of the variables.
        group: the group of the layer that has them all; none where datasets are in the root, as in shards.
        inside: a group that all groups are in, as ``model.save`` writes it.
        token_embedding: ``weight`` of ``TFSharedEmbeddings``, ``embeddings`` of Keras's layer.
        ending: what follows a variable's name.
        storage: options of ``create_dataset``.
        user_block: bytes in front of the file.
    """

    model: str = "tfgpt2lm_head_model/"
    group: str = "transformer"
    inside: str = ""
    token_embedding: str = "weight"
    ending: str = ":0"
    storage: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    user_block: int = 0

    def variable(self, name: str) -> str:
        """The variable's name of an entry ``transformer.h.0.ln_1.weight`` of the state dict."""
        parts = name.split(".")
        if parts[1] == "h":
            parts[1:3] = [f"h_._{parts[2]}"]
        if parts[1] == "wte":
            parts[-1] = self.token_embedding
        elif parts[1] == "wpe":
            parts[-1] = "embeddings"
        elif parts[-2].startswith("ln_"):
            parts[-1] = NORMS[parts[-1]]
        return f"{self.model}{'/'.join(parts)}{self.ending}"

    def write(self, file: Path, state: Mapping[str, np.ndarray], extra: Mapping[str, np.ndarray] | None = None) -> None:
        """Write ``state``, and ``extra`` by whole paths of datasets."""
        with h5py.File(file, "w", userblock_size=self.user_block) as opened:
            top = opened.require_group(self.inside) if self.inside else opened
            group = top.require_group(self.group) if self.group else top
            for name, value in state.items():
                is_row = name.endswith(".bias") and ".ln_" not in name  # of TFConv1D
                options = dict(self.storage) if value.ndim > 1 else {}
                group.create_dataset(self.variable(name), data=value[np.newaxis] if is_row else value, **options)
            names = [self.variable(name).encode() for name in state]
            if self.group:
                group.attrs["weight_names"] = names
                top.attrs["layer_names"] = [self.group.encode()]
                top.attrs["backend"], top.attrs["keras_version"] = b"tensorflow", b"2.4.0"
            else:
                top.attrs["layer_names"] = names
            for path, value in (extra or {}).items():
                opened.create_dataset(path, data=value)


def numpy_state(model: Any, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The state of a ``GPT2LMHeadModel`` without its tied head, as TensorFlow's models have it."""
    return {f"transformer.{k}": v.numpy().astype(dtype) for k, v in model.transformer.state_dict().items()}


def write_shards(folder: Path, state: Mapping[str, np.ndarray], count: int) -> Path:
    """Write ``tf_model-00001-of-0000N.h5`` and their index, as transformers 4.21 to 4.57 do with large models."""
    layout = KerasH5(model="", group="")
    weight_map = {}
    for number in range(count):
        name = f"tf_model-{number + 1:05d}-of-{count:05d}.h5"
        part = dict(list(state.items())[number::count])
        layout.write(folder / name, part)
        weight_map.update({f"tfgpt2lm_head_model/{layout.variable(key)}": name for key in part})
    index = folder / "tf_model.h5.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index
