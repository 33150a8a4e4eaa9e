"""The arguments of nanoGPT's models and their relatives': each that changes the maths is used, or refused by its name.

They lie in the file of the weights, as those of a model or among those of a training, and in a ``config.json`` in its
folder. Programs that grew out of nanoGPT have arguments of their own: what is not known here may make another model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.formats.huggingface_config import (
    GENERATION,
    MUST_BE_OFF,
    OTHER_NAMES,
    REASONS,
    USED,
    Fields,
    read_activation,
    read_fields,
)
from convert.formats.tensor_map import check_sizes
from convert.formats.weights import Weights
from convert.torch_format.pickle_values import Placeholder
from support.errors import CheckpointError
from support.files import read_json_object
from support.messages import list_names, short_repr

CONFIG = "config.json"
SIZES = {"n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias"}
_OF_A_MODEL = ("model_args", "model_config", "gpt_config")
ARGS = (*_OF_A_MODEL, "config", "args", "hyper_parameters", "hparams")
"""What programs call the arguments of the model in their files, and those of a training."""
_ACTIVATION, _TIED = "activation_function", "tie_word_embeddings"
_SAME = {
    _ACTIVATION: _ACTIVATION,
    **dict.fromkeys(("activation", "activation_fn", "activation_func", "activation_name"), _ACTIVATION),
    **dict.fromkeys(("activation_type", "act", "act_fn", "act_name", "hidden_act", "nonlinearity"), _ACTIVATION),
    **dict.fromkeys(("layer_norm_eps", "layernorm_eps", "layernorm_epsilon", "norm_eps"), "layer_norm_epsilon"),
    **dict.fromkeys(("norm_epsilon", "ln_eps", "ln_epsilon"), "layer_norm_epsilon"),
    **dict.fromkeys(("tie_weights", "weight_tying", "tie_embeddings", "tied_embeddings", "tie_embedding"), _TIED),
    **dict.fromkeys(("n_heads", "num_heads"), "num_attention_heads"),
}  # fmt: skip
"""Other programs' names -> Hugging Face's."""
_FIELDS_OF_SIZES = {*SIZES, *OTHER_NAMES, *OTHER_NAMES.values(), "n_inner"}
_NO_EFFECT = {*GENERATION}.union(*REASONS.values())
_OF_TRAINING = re.compile(
    r"(?:\w+_)?p?drop(?:out|_?rate|_?prob)?(?:_?(?:p|prob|rate))?|(?:use_)?flash(?:_attn|_attention)?(?:_?2)?"
    r"|(?:use_)?(?:(?:gradient|activation|grad)_)?checkpoint(?:ing)?|(?:torch_)?compiled?|device(?:_type|_map)?"
    r"|(?:torch_|param_)?dtype|init|init_(?:std|from|method|type|weights)|initializer_range|weights?_init"
    r"|(?:random_)?seed|(?:max_|min_)?lr|learning_rate|weight_decay|decay_lr|lr_decay\w*|(?:model_|run_)?name"
    r"|(?:max|loss|optim(?:izer)?|grad(?:ient)?|adamw?|wandb|lr|eval|log|train|warmup)_\w+"
)
"""Arguments that change nothing once a model is trained."""
_OF_SIZES = re.compile(
    r"n_layers|num_layers|d_model|d_ff|d_ffn|n_ff|ffn_(?:dim|mult)|hidden_dim|intermediate_size|mlp_ratio"
    r"|(?:max_)?(?:seq|sequence|context)_len(?:gth)?|ctx_len|(?:padded_|meta_)?vocab(?:_size)?"
)
"""Sizes that the tensors have as well."""
_GPT = re.compile(
    r"(?:nano|min|mini|micro|open|build-nano|openai-|gpt-)?-?gpt(?:-?2)?(?:-\w+)?|gopher-44m", re.IGNORECASE
)
"""Names for kinds of models that are all a GPT-2."""
_WHERE_A_GPT2: tuple[tuple[re.Pattern[str], tuple[Any, ...]], ...] = (
    (
        re.compile(
            r"(?:use_|with_|is_|apply_)?(?:l?rope|rotary(?:_\w+)?|alibi|rms_?norm|swiglu|geglu|qk_?(?:layer)?norm|moe|mqa"
            r"|gqa|mla|sliding_window|window(?:_size)?|parallel_(?:block|residual|attn)|post_(?:norm|ln)|n_experts?"
            r"|num_experts|relu_squared|squared_relu|relu2|bidirectional|\w*softcap\w*|value_residual|gated_\w+)"
        ),
        (False, 0, "none", ""),
    ),
    (
        re.compile(r"(?:is_)?causal|pre_(?:norm|ln)|norm_first|scale_attn|use_(?:wpe|pos_emb|position_embeddings?)"),
        (True,),
    ),
    (
        re.compile(r"pos(?:ition)?(?:al)?_?(?:emb\w*|enc\w*|init)?(?:_type)?"),
        ("absolute", "learned", "learnable", "learned_absolute"),
    ),
    (re.compile(r"norm(?:_name|_type|_layer|alization)?"), ("layernorm", "LayerNorm", "layer_norm", "ln")),
)
"""Arguments that make another model, and the values with which they do not."""
_KEY_HEADS = re.compile(r"(?:n|num)_(?:kv|key_value|query)_?(?:heads?|groups?)")
_MAY_MATTER = re.compile(
    r".*(?:activ|norm|rope(?!r)|rotary|causal|attn|attention|scale|scaling|head|gelu|relu|swish|silu|expert|resid|softcap"
    r"|alibi|window|embed).*|(?:.*_)?(?:pos\w*|tie\w*|bias\w*|eps|epsilon|rms\w*|mlp\w*|kv\w*)(?:_.*)?"
)
"""Names that sound as if they changed the maths."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What one place says of a model.

    Attributes:
        where: the file, for messages.
        sizes: by nanoGPT's names.
        fields: by the names of Hugging Face's ``config.json``.
        notes: what a user should know.
    """

    where: Path
    sizes: Mapping[str, Any]
    fields: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def read_fields(self, sizes: Mapping[str, int], *, has_heads: bool) -> Fields:
        """Check the sizes, and return what a ``GPT2Config`` needs, as ``huggingface_config`` has it.

        Raises:
            CheckpointError: the tensors have other sizes, or a field makes another model.
        """
        check_sizes(self.where, self.sizes, {"block_size": sizes["n_positions"]})
        return read_fields(self.where, self.fields, sizes, has_heads=has_heads)


def read_arguments(weights: Weights) -> list[Arguments]:
    """Return what the file of the weights and a ``config.json`` in its folder say, the nearest to the model first.

    Raises:
        CheckpointError: an argument makes another model.
    """
    found: list[Arguments] = []
    for key in ARGS:
        content = weights.beside.get(key)
        args = content.state if isinstance(content, Placeholder) else content
        if not isinstance(args, dict):
            continue
        is_of_model = key in _OF_A_MODEL or (isinstance(content, Placeholder) and content.name.startswith("GPT"))
        said = _Reader(weights.where, key, args, is_strict=is_of_model).read()
        if found:  # a training may have begun with other sizes, which are those of the model that it went on with
            fields = {field: value for field, value in said.fields.items() if field not in _FIELDS_OF_SIZES}
            said = dataclasses.replace(said, sizes={}, fields=fields)
        found.append(said)
    return [*found, *_read_config_json(weights)]


def _read_config_json(weights: Weights) -> list[Arguments]:
    """Read a ``config.json`` next to the weights, as ``PyTorchModelHubMixin`` writes the arguments, or transformers."""
    where = weights.folder / CONFIG
    values = read_json_object(where, CheckpointError) if where.is_file() else {}
    inner = values.get("config", values)
    return [_Reader(where, "", inner, is_strict=False).read()] if inner and isinstance(inner, dict) else []


class _Reader:
    """Sorts the arguments of one place.

    Args:
        where: the file.
        key: what the arguments are called in it; nothing: they are all that is in it.
        args: the arguments.
        is_strict: whether they are those of a model, and nothing else.
    """

    def __init__(self, where: Path, key: str, args: Mapping[Any, Any], *, is_strict: bool) -> None:
        self._where, self._key, self._args, self._is_strict = where, key, args, is_strict
        self._fields: dict[str, Any] = {}
        self._unknown: list[str] = []

    def read(self) -> Arguments:
        for name, value in self._args.items():
            if value is not None and (self._is_strict or isinstance(name, str)):
                self._take(str(name), value)
        notes: tuple[str, ...] = ()
        if self._unknown:
            names = list_names(self._unknown, 6)
            notes = (f"{self._where}: {self._key}: not used: {names}: not known of a GPT-2: they may change the model",)
        sizes = {size: self._args[size] for size in SIZES & self._args.keys() if self._args[size] is not None}
        return Arguments(self._where, sizes, self._fields, notes)

    def _take(self, name: str, value: Any) -> None:
        """Put an argument where it belongs.

        Raises:
            CheckpointError: it makes another model, or contradicts another one.
        """
        if name == "model_type" and isinstance(value, str) and _GPT.fullmatch(value):
            if value == "gpt2":
                self._fields[name] = value
        elif name in _SAME:
            self._use(name, _SAME[name], value)
        elif name in USED or name in MUST_BE_OFF:
            if name == "model_type" and self._key and not self._is_strict:
                self._unknown.append(name)
            else:
                self._fields[name] = value
        elif name not in SIZES and not self._changes_nothing(name, value):
            self._refuse_or_note(name, value)

    def _use(self, name: str, field: str, value: Any) -> None:
        if field == _ACTIVATION:
            value = read_activation(self._where, value, name)
        if self._fields.setdefault(field, value) != value:
            raise self._error(name, f"but {field} {short_repr(self._fields[field])}: correct one of them")

    def _changes_nothing(self, name: str, value: Any) -> bool:
        if _KEY_HEADS.fullmatch(name):
            return bool(value == self._args.get("n_head", self._args.get("num_attention_heads")))
        for pattern, values in _WHERE_A_GPT2:
            if pattern.fullmatch(name):
                return isinstance(value, (str, int)) and value in values
        return name in _NO_EFFECT or any(pattern.fullmatch(name) for pattern in (_OF_TRAINING, _OF_SIZES))

    def _refuse_or_note(self, name: str, value: Any) -> None:
        is_other = _KEY_HEADS.fullmatch(name) or any(pattern.fullmatch(name) for pattern, _ in _WHERE_A_GPT2)
        may_matter = _MAY_MATTER.fullmatch(name) is not None
        if self._is_strict or is_other or (may_matter and not self._key):
            raise self._error(name, "not known of a GPT-2: it may make another model")
        if not self._key:
            self._fields[name] = value  # read_fields says that it is not used
        elif may_matter:
            self._unknown.append(name)

    def _error(self, name: str, problem: str) -> CheckpointError:
        where = f"{self._where}: {self._key}" if self._key else f"{self._where}"
        return CheckpointError(f"{where}: {list_names([name])} is {short_repr(self._args.get(name))}: {problem}")
