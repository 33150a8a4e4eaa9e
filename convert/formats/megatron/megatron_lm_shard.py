"""The file of one rank of newer Megatron-LM: its tensors under the names of older versions, and what is next to them.

Sources: ``megatron/model/language_model.py`` of Megatron-LM, and ``megatron/core/models/gpt/gpt_model.py``,
``transformer_layer.py`` and ``gpt_layer_specs.py`` of Megatron-Core, whose tensors have other names: Transformer
Engine's linear layers hold the layer norms before them. Rows of its fused projection are ordered as version 3.0 has it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.formats.megatron.layout import VERSIONS, megatron_lm_name
from convert.formats.megatron.megatron_lm_args import SavedArgs
from convert.formats.megatron.rank_state import RankContent, state_in, without_prefix
from convert.formats.tensor_map import LazyTensor, check_not_partitioned
from support.errors import CheckpointError
from support.messages import list_names, short_repr

HEAD = megatron_lm_name("lm_head.weight")
TIED_COPY = "word_embeddings_for_head.weight"
"""The embedding again, on the last of several stages."""

_STATE = re.compile(
    r"(?<![^.])(?:language_model\.|embedding\.word_embeddings\.|(?:encoder|decoder)\.(?:layers\.\d+|final_layernorm)\.)"
)
"""What finds a name that no other format has."""
_KNOWN = re.compile(
    rf"{_STATE.pattern}|(?<![^.])(?:embedding\.|transformer\.(?:layers\.\d+|final_layernorm)\.|output_layer\."
    r"|word_embeddings_for_head\.)"
)
"""What finds all names after the prefixes of wrappers."""
_WRAPPER = re.compile(r"^(?:language_model\.)?(?:(?:transformer|encoder|decoder)\.)?")
_CORE = re.compile(r"(?<![^.])decoder\.")
"""What finds the names of Megatron-Core."""
_CORE_PARTS: Mapping[str, str] = {
    "attention.linear_qkv.layer_norm_": "input_layernorm.",
    "attention.linear_qkv.": "attention.query_key_value.",
    "attention.linear_proj.": "attention.dense.",
    "pre_mlp_layernorm.": "post_attention_layernorm.",
    "mlp.linear_fc1.layer_norm_": "post_attention_layernorm.",
    "mlp.linear_fc1.": "mlp.dense_h_to_4h.",
    "mlp.linear_fc2.": "mlp.dense_4h_to_h.",
}
"""Parts of the names of Megatron-Core, and how older versions spell them; the first that fits counts."""
_MAX_DEPTH, _MAX_TENSORS = 6, 1_000_000
"""Of nested dicts of tensors: a pickle may have one dict in many others."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """The file of one rank of one stage.

    Attributes:
        file: the file.
        tensors: the rank's tensors, under their names as older versions spell them.
        args: what the file says about the training.
        version: one of ``VERSIONS``.
        iteration: the number of the iteration, if the file has one.
        left_out: names of what else the file holds.
    """

    file: Path
    tensors: Mapping[str, LazyTensor]
    args: SavedArgs
    version: str
    iteration: int | None
    left_out: list[str]


def is_state(values: Mapping[Any, Any]) -> bool:
    """Whether a dict has tensors with Megatron-LM's names, in nested dicts or not."""
    embedding = values.get("embedding")
    is_nested = isinstance(embedding, dict) and "word_embeddings" in embedding
    if is_nested or isinstance(values.get("language_model"), dict):
        return True
    return any(isinstance(name, str) and _STATE.search(name) for name in values)


def load_shard(file: RankContent) -> Shard:
    """Take what is known of a rank's file out of its pickle.

    Raises:
        CheckpointError: the file is not a rank's, or holds something else than tensors where the weights are.
    """
    content = file.value
    found = state_in(content, is_state)
    if found is None:
        raise CheckpointError(f"{file.path}: {_what_is_there(content)}")
    key, values = found
    flat: dict[str, Any] = {}
    _flatten(values, "", flat, file.path)
    args = SavedArgs.of(file.path, None if values is content else content.get("args"))
    is_core = any(map(_CORE.search, flat))
    state = _known_names(flat, file.path)
    if is_core and args.values.get("untie_embeddings_and_output_weights") is False and HEAD in state:
        state[TIED_COPY] = state.pop(HEAD)
    tensors = file.tensors(state)
    check_not_partitioned(file.path, tensors)
    beside = {} if values is content else content
    iteration = beside.get("iteration")
    known = {key, "args", "checkpoint_version", "iteration"}
    return Shard(
        file.path,
        tensors,
        args,
        _version(file.path, beside.get("checkpoint_version", 3.0 if is_core else 0)),
        iteration if type(iteration) is int else None,
        [str(key) for key, value in beside.items() if key not in known and value is not None],
    )


def _what_is_there(content: Any) -> str:
    """Return the end of a message about a file that has no state dict of this format."""
    if not isinstance(content, dict):
        return f"expected a dict with 'language_model' under 'model', found {short_repr(content)}"
    if isinstance(content.get("model0"), dict):
        return (
            "has several virtual stages of a pipeline (model0, model1, ...), which are not read: load it in "
            "Megatron-LM and save it without --num-layers-per-virtual-pipeline-stage"
        )
    return f"expected a dict with 'language_model' under 'model', found {list_names(content, 9)}"


def _flatten(values: Mapping[Any, Any], prefix: str, state: dict[str, Any], file: Path, depth: int = 0) -> None:
    """Put the tensors of nested dicts into ``state``, by their names joined with dots."""
    for key, value in values.items():
        if not isinstance(key, str) or depth > _MAX_DEPTH or len(state) > _MAX_TENSORS:
            raise CheckpointError(f"{file}: {short_repr(key)}: expected the name of a tensor: damaged")
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", state, file, depth + 1)
        elif not key.endswith("_extra_state"):  # what Transformer Engine keeps for 8-bit products
            state[f"{prefix}{key}"] = value


def _known_names(flat: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the tensors by their names in the older spelling, without the prefixes of wrappers.

    Raises:
        CheckpointError: two tensors have one name then.
    """
    state: dict[str, Any] = {}
    for spelled, value in without_prefix(flat, _KNOWN).items():
        name = _older_spelling(spelled)
        if name in state:
            raise CheckpointError(f"{file}: two tensors are {list_names([name])}")
        state[name] = value
    return state


def _older_spelling(name: str) -> str:
    """Return a name as versions before Megatron-Core spell it, without the names of modules above the layers."""
    name = _WRAPPER.sub("", name).replace(".self_attention.", ".attention.")
    for part, older in _CORE_PARTS.items():
        if f".{part}" in name:
            return name.replace(f".{part}", f".{older}")
    return name.replace("final_norm.", "final_layernorm.").replace("_norm.", "_layernorm.")


def _version(file: Path, value: Any) -> str:
    known = {float(version): version for version in VERSIONS}
    if type(value) not in (int, float) or value not in known:
        raise CheckpointError(
            f"{file}: checkpoint_version is {short_repr(value)}: expected one of {', '.join(VERSIONS)}"
        )
    return known[value]
