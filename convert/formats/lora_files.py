"""The files of a LoRA adapter, as peft's ``save_pretrained`` writes them: what each tensor changes, and by how much.

    adapter_config.json               rank, alpha, and which modules have an adapter
    adapter_model.safetensors         or adapter_model.bin

Source: ``utils/save_and_load.py`` of peft 0.21. An adapter of a
linear layer is A ``[r, in]`` and B ``[out, r]``, whatever order the layer's own matrix has; one of an embedding is A
``[r, V]`` and B ``[h, r]``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convert.formats import safetensors_file
from convert.formats.lora_options import CONFIG, LOW_RANK, AdapterModule, AdapterOptions, LowRank
from convert.formats.tensor_map import LazyTensor
from convert.tensors import FLOATS
from convert.torch_format.reader import read_torch_file
from support.errors import CheckpointError
from support.files import read_json_object
from support.messages import list_names, short_repr

SAFETENSORS, TORCH = "adapter_model.safetensors", "adapter_model.bin"

_PART = re.compile(
    r"(?:.*\.)?(?P<part>wte|wpe|ln_f|lm_head|h\.\d{1,4}\.(?:ln_[12]|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj))"
    r"\.(?P<rest>[^.]+(?:\.[^.]+){0,3})"
)
"""The module of a tensor by its canonical name, and what the tensor is to it."""
_KINDS = {
    "A": r"lora_A(\.[^.]+)?\.weight|lora_embedding_A(\.[^.]+)?",
    "B": r"lora_B(\.[^.]+)?\.weight|lora_embedding_B(\.[^.]+)?",
    "B bias": r"lora_B(\.[^.]+)?\.bias",
    "magnitude": r"lora_magnitude_vector(\.[^.]+)?(\.weight)?",
    "tokens": r"token_adapter\.trainable_tokens_delta(\.[^.]+)?",
    "weight": r"(base_layer\.|modules_to_save\.([^.]+\.)?)?weight",
    "bias": r"(base_layer\.|modules_to_save\.([^.]+\.)?)?bias",
    "original": r"original_module\.(weight|bias)",
}
_ADAPTER_NAME = re.compile(
    r"(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save|token_adapter\.trainable_tokens_delta)"
    r"\.((?!weight$|bias$)[^.]+)(?:\.weight|\.bias)?"
)
"""What a tensor is to its module, with the name of the adapter in it, which peft's own files do not have."""
_OTHER_HEAD = re.compile(r"(.*\.)?(score|classifier|v_head|multiple_choice_head|qa_outputs)(\.[^.]+)*")
"""Heads of other tasks, which no text is generated with."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter's files, read.

    Attributes:
        folder: where they are.
        files: the configuration and the weights.
        low_rank: canonical module, such as ``h.0.attn.c_attn`` -> what is added to its matrix.
        replaced: canonical tensor -> the whole tensor that takes its place.
        tokens: rows of the token embedding that are replaced, and their values.
        saved: those of ``wte`` and ``lm_head`` that were trained as a copy of their own, which is tied to nothing.
        left_out: heads of other tasks.
        options: the configuration.
        prefix: what the adapter's names have in front of the names of blocks: ``transformer.`` or nothing.
    """

    folder: Path
    files: tuple[Path, ...]
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, LazyTensor]
    tokens: tuple[tuple[int, ...], LazyTensor] | None
    saved: frozenset[str]
    left_out: tuple[str, ...]
    options: AdapterOptions
    prefix: str

    def untouched(self, modules: Iterable[str]) -> list[str]:
        """Return those of ``modules`` that the configuration means, but nothing is here for: a part may be missing."""
        touched = {*self.low_rank, *(name.rpartition(".")[0] for name in self.replaced)}
        return [name for name in modules if name not in touched and self.options.is_target(self._key(name))]

    def _key(self, name: str) -> str:
        return name if name == "lm_head" else f"{self.prefix}{name}"


def read_adapter(path: Path) -> Adapter:
    """Read the files of the adapter in the folder ``path``; of the weights only the headers.

    Raises:
        CheckpointError: it is no LoRA adapter, it has something that cannot be merged, or it contradicts itself.
    """
    folder = path.parent if path.is_file() else path
    options = AdapterOptions(folder / CONFIG, _read_config(folder))
    weights = next((file for file in (folder / SAFETENSORS, folder / TORCH) if file.exists()), None)
    if weights is None:
        raise CheckpointError(f"{folder}: expected {SAFETENSORS} or {TORCH} with the weights: neither is here")
    modules, left_out = _sort_tensors(weights, _read_tensors(weights))
    low_rank = {module.name: options.low_rank(module) for module in modules if module.tensors.keys() & LOW_RANK}
    options.check_targets([module for module in modules if module.name in low_rank])
    replaced = {
        f"{module.name}.{kind}": tensor
        for module in modules
        for kind, tensor in module.tensors.items()
        if kind in ("weight", "bias")
    }
    options.check_saved(modules, replaced)
    trained = [module.tensors["tokens"] for module in modules if "tokens" in module.tensors and module.name == "wte"]
    return Adapter(
        folder,
        (folder / CONFIG, weights),
        low_rank,
        replaced,
        options.tokens(trained),
        frozenset(module.name for module in modules if options.is_saved(module)),
        tuple(left_out),
        options,
        next((module.key.removesuffix(module.name) for module in modules if module.name != "lm_head"), "transformer."),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    where = folder / CONFIG
    if not where.exists():
        inside = [file.parent.name for file in folder.glob(f"*/{CONFIG}")] if folder.is_dir() else []
        inside.sort(key=lambda name: (int("".join(re.findall(r"[0-9]", name))[:18] or 0), name))
        hint = f": {inside[-1]} in it is one: give that" if inside else ": give the folder that peft wrote"
        raise CheckpointError(f"{folder}: no LoRA adapter: has no {CONFIG}{hint}")
    return read_json_object(where, CheckpointError)


def _read_tensors(file: Path) -> dict[str, LazyTensor]:
    """Return the tensors by their names in the file."""
    tensors: dict[str, LazyTensor] = {}
    if file.name == SAFETENSORS:
        tensors.update(safetensors_file.read_header(file))
    else:
        found = read_torch_file(file)
        if not isinstance(found.value, dict):
            raise CheckpointError(f"{file}: expected a dict of tensors, found {short_repr(found.value)}")
        tensors.update(found.tensors(found.value))
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or 0 in tensor.shape:
            what = f"{tensor.dtype} {list(tensor.shape)}"
            raise CheckpointError(f"{file}: {list_names([name])}: expected weights, found {what}: save it again")
    return tensors


def _sort_tensors(file: Path, tensors: Mapping[str, LazyTensor]) -> tuple[list[AdapterModule], list[str]]:
    """Return the modules with their tensors, and the names of what belongs to heads of other tasks.

    Raises:
        CheckpointError: a name is none of a GPT-2's, or two tensors are the same thing.
    """
    modules: dict[str, AdapterModule] = {}
    others: list[str] = []
    unknown: list[str] = []
    adapters: dict[str, str] = {}
    for name, tensor in tensors.items():
        match = _PART.fullmatch(name)
        kind = next((kind for kind, rest in _KINDS.items() if match and re.fullmatch(rest, match["rest"])), None)
        if match is None or kind is None:
            (others if _OTHER_HEAD.fullmatch(name) else unknown).append(name)
            continue
        if (wrapped := _ADAPTER_NAME.fullmatch(match["rest"])) is not None:
            adapters.setdefault(wrapped[1], name)
        key = name[: match.start("rest") - 1].removeprefix("base_model.").removeprefix("model.")
        module = modules.setdefault(match["part"], AdapterModule(match["part"], key, {}))
        if kind in module.tensors:
            raise CheckpointError(f"{file}: {list_names([name])}: two adapters in one file: save one of them alone")
        if kind != "original":
            module.tensors[kind] = tensor
    if len(adapters) > 1:
        names = list_names([f"{adapter} ({name})" for adapter, name in adapters.items()], 2)
        raise CheckpointError(f"{file}: several adapters in one file: {names}: save one of them alone")
    if unknown:
        raise CheckpointError(f"{file}: no part of a GPT-2, or of no LoRA adapter of one: {list_names(unknown)}")
    return list(modules.values()), others
