"""Hugging Face's GPT-2: a folder with ``config.json`` and the weights.

    config.json
    model.safetensors                 or model.safetensors.index.json and the files that it names
    pytorch_model.bin                 or pytorch_model.bin.index.json and the files that it names

Sources: ``modeling_gpt2.py`` and ``configuration_gpt2.py`` of transformers. Its linear layers are ``Conv1D``, whose
weights are ``[in, out]``. A folder of ``GPT2Model`` has names without ``transformer.`` and no head.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats import safetensors_file as safetensors
from convert.formats.heads import resolve_head_count
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    check_tensors,
    copy_transposed,
    copy_whole,
    count_layers,
    matrix_shape,
    torch_tensors,
)
from convert.formats.tokenizer_files import has_tokenizer
from convert.tensors import Array, DType, same_values, transposed_blocks
from convert.torch_format.reader import load
from exports.generation_config import OptionError, read_defaults
from exports.saved_model_folder import CONFIG, GENERATION_CONFIG
from support.errors import CheckpointError
from support.messages import list_names, short_repr
from tf_model.config import STANDARD, ConfigError, GPT2Config
from tokenization.special_tokens import NO_TOKENS, SpecialTokens

NAME = "huggingface"
SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
HEADER_BYTES = 1 << 20
"""Room for the header of the weights, the configuration and a tokenizer."""
WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, TORCH, TORCH + INDEX)
"""The first that is there is read, as transformers does."""
_GPT2_END = 50256
"""What transformers takes where no file says the end of a text."""
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
"""One file of several, which an index names: it stands for all of them."""
_PREFIX = "transformer."
_HEAD = "lm_head.weight"
_MASKS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")
"""Causal masks, which older versions of transformers stored."""
_LINEAR = re.compile(r"h\.\d+\.(attn|mlp)\.c_\w+\.weight")
_ALIASES = {"swish": "silu", "gelu_python": "gelu", "gelu_python_tanh": "gelu_new", "gelu_accurate": "gelu_new"}
"""Activations that transformers has under two names."""
_OTHER_NAMES = {
    "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}  # fmt: skip
"""What transformers takes for the same (``GPT2Config.attribute_map``)."""
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_UNSUPPORTED = {"scale_attn_weights": True, "add_cross_attention": False}
"""What changes the maths in a way that no GPT-2 of these ecosystems uses, and what it has to be."""


def find(path: Path) -> tuple[Path, str] | None:
    """The folder that ``path`` stands for, itself or the one of a file of weights, and its weights' name."""
    if path.is_file() and _SHARD.fullmatch(path.name):
        path = path.parent
    elif path.is_file() and (path.name in WEIGHTS or path.suffix == ".safetensors"):
        return path.parent, path.name
    if not path.is_dir():
        return None
    return next(((path, name) for name in WEIGHTS if (path / name).is_file()), None)


def open_huggingface(
    path: Path, *, n_head: int | None = None, iteration: str | None = None, allow_unknown_heads: bool = False
) -> Checkpoint:
    """The checkpoint in the folder ``path``; see ``open_megatron``.

    Raises:
        CheckpointError: anything that keeps the files from being one whole model.
    """
    found = find(path)
    if found is None:
        raise CheckpointError(f"{path}: expected {CONFIG} and {list_names(WEIGHTS, 9)}: none is here")
    folder, weights = found
    if iteration is not None:
        raise CheckpointError(f"{path}: a Hugging Face folder has no iterations: leave out --iteration {iteration}")
    try:
        values = read_json(folder / CONFIG) if os.path.lexists(folder / CONFIG) else {}
        sources = _sources(folder / weights)
        return _open(folder, values, sources, n_head, allow_unknown_heads)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {str(error).removeprefix('config.json: ')}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is none.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path}: expected a file, found something else")
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON: {short_repr(str(error))}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {short_repr(values)}")
    return values


def _sources(weights: Path) -> dict[str, LazyTensor]:
    """All tensors of a folder by name."""
    header = safetensors.read_header if ".safetensors" in weights.name else _torch_header
    return safetensors.read_index(weights, header) if weights.name.endswith(INDEX) else header(weights)


def _torch_header(file: Path) -> dict[str, LazyTensor]:
    """The tensors of a file of ``torch.save``, by name."""
    state = load(file)
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: expected a dict of tensors, found {short_repr(state)}")
    return torch_tensors(file, state)


def _open(
    folder: Path,
    values: Mapping[str, Any],
    sources: dict[str, LazyTensor],
    n_head: int | None,
    allow_unknown_heads: bool,
) -> Checkpoint:
    where = folder / CONFIG
    prefix = _PREFIX if f"{_PREFIX}wte.weight" in sources else ""
    config = _config(folder, values, sources, prefix, n_head, allow_unknown_heads)
    expected = {
        _name(name, prefix): shape[::-1] if _LINEAR.fullmatch(name) else shape
        for name, shape in config.tensor_shapes().items()
    }
    is_copy = config.tie_word_embeddings and _HEAD in sources
    if is_copy:
        expected[_HEAD] = (config.vocab_size, config.n_embd)
    check_tensors(folder, sources, ExpectedTensors(expected, lambda name: _MASKS.fullmatch(name) is not None))
    recipes = {
        name: TensorRecipe([sources[_name(name, prefix)]], copy_transposed if _LINEAR.fullmatch(name) else copy_whole)
        for name in config.tensor_shapes()
    }
    notes = [] if values else [f"{folder}: no {CONFIG}: taken for a GPT-2 with the tanh gelu and an epsilon of 1e-5"]
    if adapter := next((folder / name for name in _ADAPTERS if (folder / name).exists()), None):
        notes.append(f"{adapter}: an adapter, which is left out: merge it before (peft's merge_and_unload)")
    check = None
    if is_copy:
        embedding, copy = sources[_name("wte.weight", prefix)], sources[_HEAD]
        check = lambda: _check_tied(where, embedding, copy)  # noqa: E731
    return TensorMapCheckpoint(
        config,
        recipes,
        CheckpointInfo(NAME, notes=tuple(notes)),
        tokens=tokens_of(folder, values, config.vocab_size),
        tokenizer=folder if has_tokenizer(folder) else None,
        check=check,
    )


def _config(
    folder: Path, values: Mapping[str, Any], sources: Mapping[str, LazyTensor], prefix: str, n_head: int | None,
    allow_unknown_heads: bool,
) -> GPT2Config:  # fmt: skip
    """The sizes by the tensors, everything else by ``config.json``, which must not say other sizes.

    Raises:
        CheckpointError: it does, or it is of another model.
        ConfigError: no GPT-2 has what it says.
    """
    where = folder / CONFIG
    values = {**{ours: values[theirs] for theirs, ours in _OTHER_NAMES.items() if theirs in values}, **values}
    if values.get("model_type", "gpt2") != "gpt2":
        raise CheckpointError(f"{where}: model_type is {short_repr(values['model_type'])}: expected gpt2")
    for key, needed in _UNSUPPORTED.items():
        if values.get(key, needed) is not needed:
            raise CheckpointError(
                f"{where}: {key} is {short_repr(values[key])}: only {str(needed).lower()} is supported"
            )
    vocab_size, n_embd = matrix_shape(folder, sources, f"{prefix}wte.weight")
    n_positions, _ = matrix_shape(folder, sources, f"{prefix}wpe.weight")
    _, n_inner = matrix_shape(folder, sources, f"{prefix}h.0.mlp.c_fc.weight")
    sizes = {
        "vocab_size": vocab_size, "n_positions": n_positions, "n_embd": n_embd,
        "n_layer": count_layers(folder, sources, f"{prefix}h."), "n_inner": n_inner,
    }  # fmt: skip
    for key, size in sizes.items():
        if values.get(key) not in (None, size):
            raise CheckpointError(f"{where}: {key} is {short_repr(values[key])}, but the tensors have {size}")
    stored, activation = values.get("n_head"), values.get("activation_function")
    if stored is not None and type(stored) is not int:
        raise CheckpointError(f"{where}: n_head is {short_repr(stored)}: expected a number")
    heads = resolve_head_count(where if values else folder, n_embd, 1, n_head, allow_unknown_heads, stored)
    if isinstance(activation, str):
        activation = _ALIASES.get(activation, activation)
    changed = {**sizes, "n_head": heads, "activation_function": activation, "layer_norm": STANDARD}
    return GPT2Config.from_dict({**values, **changed})


def _name(canonical: str, prefix: str) -> str:
    return canonical if canonical == _HEAD else f"{prefix}{canonical}"


def _check_tied(where: Path, embedding: LazyTensor, head: LazyTensor) -> None:
    """The copy of a tied output matrix has to be one: which of the two was meant, nothing else would tell."""
    if not same_values(embedding.numpy(), head.numpy()):
        raise CheckpointError(
            f"{head.file}: {_HEAD} differs from {embedding.name}, but {where.name} does not say that it may: give it "
            '"tie_word_embeddings": false if the head is its own'
        )


def tokens_of(folder: Path, values: Mapping[str, Any], vocab_size: int) -> SpecialTokens:
    """What ``config.json`` says, and over it ``generation_config.json``, as transformers has it.

    Only where it can be: a copy of CPM on the hub says 50256, which its vocabulary has not.

    Raises:
        CheckpointError: ``generation_config.json`` has a value that an option cannot have.
    """
    defaults: dict[str, Any] = {}
    if os.path.lexists(folder / GENERATION_CONFIG):
        said = read_json(folder / GENERATION_CONFIG)
        values = {**values, **{key: value for key, value in said.items() if value is not None}}
        try:
            defaults = read_defaults(folder / GENERATION_CONFIG)
        except OptionError as error:
            raise CheckpointError(str(error)) from error
    ends = values.get("eos_token_id", _GPT2_END)
    is_token = lambda i: type(i) is int and 0 <= i < vocab_size  # noqa: E731
    eos = list(filter(is_token, ends if isinstance(ends, list) else [ends]))
    bos, pad = ([*filter(is_token, [values.get(key)]), None][0] for key in ("bos_token_id", "pad_token_id"))
    defaults.pop("eos_token_id", None)
    if len(eos) > 1:
        defaults["eos_token_id"] = eos
    if pad is None:
        pad = eos[0] if eos else NO_TOKENS.pad_token_id
    return SpecialTokens(eos[0] if eos else None, pad, bos, defaults)


def write_huggingface(
    folder: Path,
    checkpoint: Checkpoint,
    dtypes: Mapping[str, DType],
    read: Callable[[str, DType], Array],
    tokens: SpecialTokens,
) -> list[Path]:
    """Writes ``config.json``, ``generation_config.json`` and ``model.safetensors`` into ``folder``; gives the last.

    Raises:
        OSError: a file cannot be written. What ``read`` raises comes through, too.
    """
    config = checkpoint.config
    shapes = config.tensor_shapes()
    tensors = {
        _name(name, _PREFIX): (shape[::-1] if _LINEAR.fullmatch(name) else shape, dtypes[name])
        for name, shape in shapes.items()
    }
    with safetensors.writing(folder / SAFETENSORS, tensors) as writer:
        for name in shapes:
            values = read(name, dtypes[name])
            for block in transposed_blocks(values) if _LINEAR.fullmatch(name) else (values,):
                writer.write(block)
    special = tokens.to_dict()
    write_json(folder / CONFIG, {**config.to_dict(), **special, "torch_dtype": dtypes["wte.weight"].name})
    write_json(folder / GENERATION_CONFIG, {**special, **tokens.defaults})
    return [folder / SAFETENSORS]


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
