"""The options of UER-py and TencentPretrain in ``config.json``: what changes the maths is used, or refused by name.

Sources: ``opts.py`` (``model_opts``), ``utils/config.py``, ``layers/``, ``encoders/transformer_encoder.py``,
``embeddings/embedding.py`` and ``models/model.py`` of both programs; ``config.json`` replaces options of their command
line. TencentPretrain has the same names of tensors and the same layer norm, whose epsilon is an option there; its
``normal_torch`` is PyTorch's own layer norm, with ``weight`` and ``bias`` for ``gamma`` and ``beta``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.formats.tensor_map import check_sizes, stored_heads
from support.errors import CheckpointError
from support.files import read_json_object
from support.messages import list_names, short_repr
from tf_model.config import STANDARD, UER

EPSILON = 1e-6
"""The epsilon of both programs where no file says another."""
ACTIVATIONS = {"gelu_fast": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}
"""Their names -> transformers'; UER-py has no silu. Their ``linear`` and ``gelu_quick`` are no GPT-2's."""
_OWN_KEYS = {
    *("emb_size", "hidden_size", "feedforward_size", "hidden_act", "heads_num", "layers_num"),
    *("layernorm_positioning", "layernorm_eps", "remove_embedding_layernorm", "data_processor"),
}
"""One of these tells the programs' ``config.json`` from others'."""
_LAYER_NORMS = {"normal": UER, "normal_torch": STANDARD}
MUST_BE: Mapping[str, Any] = {
    "encoder": "transformer",
    "decoder": None,
    "mask": "causal",
    "layernorm_positioning": "pre",
    "feed_forward": "dense",
    "remove_embedding_layernorm": True,
    "relative_position_embedding": False,
    "rotary_position_embedding": False,
    "alibi_position_embedding": False,
    "layer_number_scale": False,
    "factorized_embedding_parameterization": False,
    "parameter_sharing": False,
    "has_residual_attention": False,
    "residual_attention": False,
    "use_lora": False,
}
"""Options that make another model, and the value that they have in a GPT-2; one that is not given is as the tensors."""
IRRELEVANT = {
    **dict.fromkeys(("dropout", "attention", "pooling", "bidirectional", "relative_attention_buckets_num"), "not used"),
    **dict.fromkeys(("tgt_embedding", "share_embedding"), "of a decoder"),
    **dict.fromkeys(("has_lmtarget_bias",), "the tensors say it"),
    **dict.fromkeys(("data_processor", "tokenizer", "vocab_path", "merges_path", "spm_model_path"), "of the texts"),
    **dict.fromkeys(("do_lower_case", "max_audio_frames", "sampling_rate", "audio_preprocess"), "of the data"),
    **dict.fromkeys(("image_height", "image_width", "patch_size", "channels_num", "image_preprocess"), "of the data"),
    **dict.fromkeys(("conv_layers_num", "audio_feature_size", "conv_channels", "conv_kernel_sizes"), "of the data"),
    **dict.fromkeys(("use_mp", "fp16", "deepspeed", "deepspeed_config", "enable_zero3", "local_rank"), "of a training"),
    **dict.fromkeys(("deepspeed_checkpoint_activations", "deepspeed_checkpoint_layers_num"), "of a training"),
    **dict.fromkeys(("optimizer", "scheduler", "learning_rate", "warmup", "decay", "batch_size"), "of a training"),
    **dict.fromkeys(("seq_length", "prefix_lm_loss", "label_smoothing", "ignore_index", "seed"), "of a training"),
    **dict.fromkeys(("freeze_parameters", "freeze_exclude_by_name", "deep_init", "labels_num"), "of a training"),
}
"""Options that the logits do not depend on, and why."""
USED = {
    *("embedding", "target", "tie_weights", "layernorm", "max_seq_length", "attention_head_size", *_OWN_KEYS),
    *("remove_transformer_bias", "remove_attention_scale", "local_kv_heads_num", "tensor_model_parallel_size"),
}
_WORDS = ({"word", "pos"}, {"word_pos"})
"""The embeddings of a GPT-2, in TencentPretrain's words and in older ones."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What ``config.json`` says of a model.

    Attributes:
        fields: those of ``GPT2Config`` that it says, but for the sizes.
        heads: the number of attention heads; None where it is not said.
        is_tied: whether the output matrix is the embedding; None where it is not said.
        has_biases: whether linear layers have biases; None where it is not said.
        notes: what a user should know.
    """

    fields: Mapping[str, Any]
    heads: int | None = None
    is_tied: bool | None = None
    has_biases: bool | None = None
    notes: tuple[str, ...] = ()


def read_options(path: Path, sizes: Mapping[str, int], layer_norm: str) -> Options:
    """Read ``config.json`` and check what it says.

    Args:
        path: the file; nothing is said where it is not there.
        sizes: ``n_embd``, ``n_layer``, ``n_inner`` and ``n_positions`` that the tensors have.
        layer_norm: the kind that the tensors have by their names, of ``LAYER_NORMS``.

    Raises:
        CheckpointError: it says other sizes, or a model that is no GPT-2.
    """
    values = read_json_object(path, CheckpointError) if path.exists() else {}
    values = {key: value for key, value in values.items() if value is not None}
    fields = {"layer_norm": layer_norm, "layer_norm_epsilon": EPSILON}
    if not values.keys() & _OWN_KEYS:
        note = f"{path}: not used: none of its keys is of UER-py or TencentPretrain"
        return Options(fields, notes=(note,) if values else ())
    _check_values(path, values, sizes, layer_norm)
    fields["layer_norm_epsilon"] = _epsilon(path, values)
    fields["scale_attn_weights"] = not _flag(path, values, "remove_attention_scale", False)
    if "hidden_act" in values:
        fields["activation_function"] = _activation(path, values["hidden_act"])
    unknown = [key for key in values if key not in {*MUST_BE, *IRRELEVANT, *USED}]
    note = f"{path}: not used: {list_names(unknown, 9)}: no options of UER-py or TencentPretrain that are known"
    tied, removed = (
        _flag(path, values, key, False) if key in values else None for key in ("tie_weights", "remove_transformer_bias")
    )
    heads, has_biases = stored_heads(path, values, "heads_num"), None if removed is None else not removed
    return Options(fields, heads, tied, has_biases, (note,) if unknown else ())


def _check_values(path: Path, values: Mapping[str, Any], sizes: Mapping[str, int], layer_norm: str) -> None:
    """Check that the options are a GPT-2's, of these sizes and with layer norms of the kind that the tensors have."""
    heads = values.get("heads_num")
    n_embd, shared = sizes["n_embd"], {"feedforward_size": sizes["n_inner"], "layers_num": sizes["n_layer"]}
    check_sizes(path, values, {"emb_size": n_embd, "hidden_size": n_embd, **shared})
    check_sizes(path, values, {"max_seq_length": sizes["n_positions"]})
    if type(heads) is int and heads > 0:
        is_said = "heads_num and the tensors"
        check_sizes(path, values, {"attention_head_size": n_embd // heads, "local_kv_heads_num": heads}, is_said)
    for key, needed in MUST_BE.items():
        found = _flag(path, values, key, needed) if isinstance(needed, bool) else values.get(key, needed)
        if found != needed:
            raise _refused(path, key, short_repr(found), json.dumps(needed))
    words = values.get("embedding", ["word", "pos"])
    words = words if isinstance(words, list) else [words]
    if set(map(str, words)) not in _WORDS:
        raise _refused(path, "embedding", list_names(words, 9), "word and pos")
    targets = values.get("target", "lm")
    if "lm" not in (targets if isinstance(targets, list) else [targets]):
        raise _refused(path, "target", short_repr(targets), "lm")
    kind = values.get("layernorm", layer_norm)
    if _LAYER_NORMS.get(str(kind), kind) != layer_norm:
        raise _refused(path, "layernorm", short_repr(kind), "normal, or normal_torch with weight and bias")
    if values.get("tensor_model_parallel_size", 1) != 1:
        raise CheckpointError(f"{path}: tensor_model_parallel_size is above 1: merge the parts with TencentPretrain")


def _refused(path: Path, key: str, found: str, needed: str) -> CheckpointError:
    return CheckpointError(f"{path}: {key} is {found}: no GPT-2, where it is {needed}")


def _flag(path: Path, values: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a switch; the programs compute with it, so that 0 and 1 do as well.

    Raises:
        CheckpointError: it is something else.
    """
    value = values.get(key, default)
    if type(value) not in (bool, int) or value not in (0, 1):
        raise CheckpointError(f"{path}: {key} is {short_repr(value)}: expected true or false")
    return bool(value)


def _epsilon(path: Path, values: Mapping[str, Any]) -> float:
    epsilon = values.get("layernorm_eps", EPSILON)
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise CheckpointError(f"{path}: layernorm_eps is {short_repr(epsilon)}: expected a number from 0 to 1")
    return float(epsilon)


def _activation(path: Path, name: object) -> str:
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: hidden_act is {short_repr(name)}: expected a name")
    if name not in ACTIVATIONS:
        raise CheckpointError(f"{path}: hidden_act is {short_repr(name)}: known are {list_names(ACTIVATIONS, 9)}")
    return ACTIVATIONS[name]
