"""The keys of Hugging Face's ``config.json``: each that changes what a GPT-2 computes is used, or refused by name.

Sources: ``configuration_gpt2.py``, ``modeling_gpt2.py``, ``configuration_utils.py`` and ``activations.py`` of
transformers 2 to 5, and ``modeling.py`` of pytorch-pretrained-bert, its name of 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.formats.tensor_map import check_sizes, stored_heads
from support.errors import CheckpointError
from support.messages import list_names, short_repr
from tf_model.config import ACTIVATIONS, STANDARD

_ALIASES = {"swish": "silu", "gelu_python": "gelu", "gelu_python_tanh": "gelu_new", "gelu_accurate": "gelu_new"}
"""Activations that transformers has under two names."""
HEAD_BIASES = {"lm_head.bias", "lm_head.decoder.bias"}
"""Tensors that no GPT-2 has, and that change nothing where they are zero."""
OTHER_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "vocab_size_or_config_json_file": "vocab_size",
}
"""What transformers takes for the same (``GPT2Config.attribute_map``), and took in 2019."""
_HEADS = 12
"""The heads that ``GPT2Config`` has where a file of transformers does not name any."""
USED = {
    *("model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function"),
    *("layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", *OTHER_NAMES),
}
MUST_BE_OFF = {
    "add_cross_attention": "only false is supported",
    "pruned_heads": "expected whole layers: save the model without pruned heads",
    "per_layer_config": "expected layers that are all alike",
    "quantization_config": "expected floats: save the model after dequantize(), or remove the key if they are some",
    "compression_config": "expected weights as they were trained: decompress the model before",
    "n_special": "expected 0: the rows after the vocabulary belong to it in newer files",
}
"""What makes another model where it is neither missing nor null, false, 0 or empty; and what a message says then."""
_CAUSAL = "is_causal"
"""False and null make attention look ahead (``masking_utils.py`` of transformers 5)."""
REASONS: Mapping[str, tuple[str, ...]] = {
    "of a training": (
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout", "initializer_range"),
        *("gradient_checkpointing", "finetuning_task", "problem_type", "xla_device", "unsloth_version"),
    ),
    "of other heads": (
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "predict_special_tokens"),
        *("num_labels", "_num_labels", "id2label", "label2id"),
    ),
    "the same maths": (
        *("use_cache", "reorder_and_upcast_attn", "chunk_size_feed_forward", "attn_implementation", "use_bfloat16"),
        *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "torch_dtype"),
        *("dtype", "torchscript", "tf_legacy_loss", "experts_implementation", "_flash_attn_2_enabled"),
    ),
    "of an encoder and decoder": (
        *("is_decoder", "is_encoder_decoder", "cross_attention_hidden_size", "tie_encoder_decoder"),
        *("decoder_start_token_id",),
    ),
    "what a call returns": (
        *("output_attentions", "output_hidden_states", "output_past", "return_dict", "keys_to_ignore_at_inference"),
        *("output_scores", "return_dict_in_generate", "tie_last_hidden_states"),
    ),
    "older causal masks, which n_positions limits as well": ("n_ctx",),
    "where the file is from": (
        *("architectures", "_name_or_path", "name_or_path", "_commit_hash", "transformers_version"),
        *("custom_pipelines", "license"),
    ),
    "of the texts": (
        "tokenizer_class",
        "prefix",
        "task_specific_params",
        "sep_token_id",
        "unk_token_id",
        "eos_token_ids",
    ),
}
"""Keys that the logits do not depend on, by the reason."""
GENERATION = {
    "max_length": 20, "min_length": 0, "do_sample": False, "early_stopping": False, "num_beams": 1, "temperature": 1.0,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
    "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "num_return_sequences": 1, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "remove_invalid_values": False, "exponential_decay_length_penalty": None, "suppress_tokens": None,
    "begin_suppress_tokens": None,
}  # fmt: skip
"""How to generate, as transformers 2 to 4 wrote it into every ``config.json``; 5 reads ``generation_config.json``."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """What ``config.json`` says of a model.

    Attributes:
        values: the fields of ``GPT2Config`` that it says, but for the sizes.
        heads: the number of attention heads; None where it is not said.
        notes: what a user should know.
    """

    values: Mapping[str, Any]
    heads: int | None
    notes: tuple[str, ...]


def read_fields(path: Path, values: Mapping[str, Any], sizes: Mapping[str, int], *, has_heads: bool) -> Fields:
    """Check what ``config.json`` says, and choose what a ``GPT2Config`` needs of it.

    Args:
        path: the file, for messages.
        values: its content; nothing where there is none.
        sizes: field of ``GPT2Config`` -> what the tensors have: ``vocab_size``, ``n_positions``, ``n_embd``,
            ``n_layer``, ``n_inner``.
        has_heads: whether the user gives the number of attention heads.

    Raises:
        CheckpointError: it says other sizes, is of another model, or has a key that makes one.
    """
    if values.get(_CAUSAL, True) is not True:
        found = short_repr(values[_CAUSAL])
        raise CheckpointError(f"{path}: {_CAUSAL} is {found}: only true is supported: no text is generated otherwise")
    values = {key: value for key, value in values.items() if value is not None}
    if values.get("model_type", "gpt2") != "gpt2":
        raise CheckpointError(f"{path}: model_type is {short_repr(values['model_type'])}: expected gpt2")
    for key, words in MUST_BE_OFF.items():
        if values.get(key):
            raise CheckpointError(f"{path}: {key} is {_shown(values[key])}: {words}")
    check_sizes(path, values, sizes)
    check_sizes(path, values, {theirs: sizes[ours] for theirs, ours in OTHER_NAMES.items() if ours in sizes})
    heads, notes = _heads(path, values, sizes["n_embd"], has_heads=has_heads)
    kept = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings")
    fields = {"layer_norm": STANDARD, **{key: values[key] for key in kept if key in values}}
    if "layer_norm_epsilon" in values:
        epsilon = values["layer_norm_epsilon"]
        fields["layer_norm_epsilon"] = float(epsilon) if type(epsilon) is int else epsilon
    if "activation_function" in values:
        fields["activation_function"] = read_activation(path, values["activation_function"])
    return Fields(fields, heads, (*notes, *_notes(path, values)))


def _shown(value: object) -> str:
    """Show a value of ``MUST_BE_OFF``: of a quantization its method."""
    if isinstance(value, dict) and isinstance(value.get("quant_method"), str):
        return short_repr(value["quant_method"])
    return short_repr(value)


def _heads(path: Path, values: Mapping[str, Any], n_embd: int, *, has_heads: bool) -> tuple[int | None, list[str]]:
    """Return the number of heads that the file says or means, and what a user should know of it."""
    theirs, ours = "num_attention_heads", "n_head"
    found = {key: heads for key in (ours, theirs) if (heads := stored_heads(path, values, key)) is not None}
    if len(set(found.values())) > 1:
        raise CheckpointError(f"{path}: {ours} is {found[ours]}, but {theirs} is {found[theirs]}: correct one of them")
    if found:
        return next(iter(found.values())), []
    if has_heads or values.get("model_type") != "gpt2" or n_embd % _HEADS:
        return None, []
    return _HEADS, [f"{path}: no {ours}: {_HEADS} heads, as transformers takes it; --heads says otherwise"]


def read_activation(path: Path, name: object, key: str = "activation_function") -> str:
    """Return an activation by our name for it.

    Args:
        path: the file, for messages.
        name: what the file says.
        key: the key that says it.

    Raises:
        CheckpointError: it is none of those that are known.
    """
    if not isinstance(name, str) or _ALIASES.get(name, name) not in ACTIVATIONS:
        known = list_names([*ACTIVATIONS, *_ALIASES], 20)
        raise CheckpointError(f"{path}: {key} {short_repr(name)}: known are {known}")
    return _ALIASES.get(name, name)


def _notes(path: Path, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is said and not used, but for keys that have no effect."""
    if "auto_map" in values:
        yield f"{path}: auto_map names a program of the model's own, which is not run: read as GPT-2 of transformers"
    if changed := [key for key, default in GENERATION.items() if values.get(key, default) != default]:
        yield f"{path}: not used: {list_names(changed, 9)}: transformers 5 reads them of generation_config.json only"
    irrelevant = {"auto_map", _CAUSAL, *USED, *GENERATION, *MUST_BE_OFF}.union(*REASONS.values())
    if unknown := [key for key in values if key not in irrelevant]:
        yield f"{path}: not used: {list_names(unknown, 9)}: no keys of a GPT-2, transformers does not use them either"
