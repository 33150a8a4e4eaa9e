"""The configuration of a LoRA adapter, ``adapter_config.json`` of peft: checked, and applied to the adapter's tensors.

Sources: ``tuners/lora/config.py``, ``tuners/lora/layer.py`` and ``tuners/tuners_utils.py`` of peft 0.21. Every option
that changes a result is used, or refused by its name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.formats.name_patterns import TooComplicatedError, has_whole_match
from convert.formats.tensor_map import LazyTensor
from support.errors import CheckpointError
from support.messages import list_names, short_repr

CONFIG = "adapter_config.json"
_NEEDED: Mapping[str, Any] = {
    "use_qalora": False,
    "layer_replication": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "use_bdlora": None,
    "arrow_config": None,
    "monteclora_config": None,
    "kasa_config": None,
    "megatron_config": None,
    "enable_lora": None,
}
"""What makes the adapter another one, and the value where it is switched off."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights``, beside true and false, that leave the base model as it is."""
_USED = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "lora_bias"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "use_dora", "init_lora_weights"),
    *("trainable_token_indices", "bias", "ensure_weight_tying"),
}
_OF_TRAINING = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "velora_config", "qalora_group_size", "runtime_config", "merge_weights"),
}
"""What changes no result once the adapter is trained. ``fan_in_fan_out`` is about the base's own matrices."""

_PLAIN = re.compile(r"\^?(?:\w|\.|\\\.){1,300}")
"""Names of modules as they are: an expression without repetitions, which ends soon."""
_MAX_PATTERNS, _MAX_EXPRESSIONS = 2000, 50
"""Patterns in one option, and those of them that are no plain names."""
_LINEAR = ("c_attn", "c_fc", "c_proj")
"""The linear layers in a block of a GPT-2."""
_DEFAULT_TARGETS = ["c_attn"]
"""What peft changes in a GPT-2 where nobody has said what (``TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING``)."""
LOW_RANK = frozenset({"A", "B", "B bias", "magnitude"})
"""What the tensors of an adapter are to their module."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one matrix: ``scale * B A``.

    Attributes:
        a, b: the two factors; of an embedding, the product is the transpose of what is added.
        scale: ``alpha / r``, or ``alpha / sqrt(r)`` where the adapter says rslora.
        magnitude: DoRA's lengths of the rows of the sum; None: the sum stays as it is.
        bias: what is added to the layer's bias, before it is multiplied by ``scale``.
    """

    a: LazyTensor
    b: LazyTensor
    scale: float
    magnitude: LazyTensor | None = None
    bias: LazyTensor | None = None


@dataclasses.dataclass(frozen=True)
class AdapterModule:
    """The tensors that an adapter has for one module.

    Attributes:
        name: canonical, such as ``h.0.attn.c_attn``.
        key: as peft and the patterns of its configuration call it, such as ``transformer.h.0.attn.c_attn``.
        tensors: by what they are to the module, a key of ``_KINDS``.
    """

    name: str
    key: str
    tensors: dict[str, LazyTensor]


class AdapterOptions:
    """The configuration of an adapter: checked, and applied to its tensors.

    Raises:
        CheckpointError: it has an option that cannot be merged, or an unknown one.
    """

    def __init__(self, where: Path, values: Mapping[str, Any]) -> None:
        self._where, self._values = where, values
        if values.get("peft_type") != "LORA":
            raise self._error("peft_type", "only LORA can be merged")
        for key, value in values.items():
            if key in _NEEDED and value != _NEEDED[key] and value:
                raise self._error(key, "cannot be merged here: merge it with peft (merge_and_unload)")
            if key not in _NEEDED and key not in _USED and key not in _OF_TRAINING and value:
                raise self._error(key, "unknown, it may change the result: merge it with peft (merge_and_unload)")
        start = values.get("init_lora_weights", True)
        if not isinstance(start, (bool, type(None))) and start not in _PLAIN_STARTS:
            raise self._error(
                "init_lora_weights", "it changes the base model: merge it with peft, or save it there as a plain LoRA"
            )
        self._patterns = {key: self._read_patterns(key) for key in ("rank_pattern", "alpha_pattern")}
        for key in ("use_dora", "use_rslora", "lora_bias"):
            if not isinstance(values.get(key), (bool, type(None))):
                raise self._error(key, "expected true or false")

    def _error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {key} is {short_repr(self._values.get(key))}: {problem}")

    def low_rank(self, module: AdapterModule) -> LowRank:
        """Return what an adapter adds to the matrix of a module.

        Raises:
            CheckpointError: a factor is missing, or the two do not fit each other or the rank.
        """
        tensors, use_dora = module.tensors, self._values.get("use_dora", False)
        needed = {"A", "B", *(["magnitude"] if use_dora else ())}
        needed |= {"B bias"} if self._values.get("lora_bias") else set()
        if needed != tensors.keys() & LOW_RANK:
            found = list_names(sorted(tensors.keys() & LOW_RANK), 4)
            raise CheckpointError(
                f"{self._where}: {module.key}: expected the tensors {list_names(sorted(needed), 4)} of its adapter, "
                f"found {found}"
            )
        a, b = tensors["A"], tensors["B"]
        r = self._number("r", "rank_pattern", module.key)
        if type(r) is not int or r < 1 or len(a.shape) != 2 or len(b.shape) != 2 or (a.shape[0], b.shape[1]) != (r, r):
            raise CheckpointError(
                f"{a.file}: {module.key}: shapes {list(a.shape)} and {list(b.shape)} do not have the rank {r} that "
                f"{CONFIG} says"
            )
        if "embedding" in a.name and use_dora:
            raise self._error("use_dora", f"of {module.key} cannot be merged here: merge it with peft")
        alpha = self._number("lora_alpha", "alpha_pattern", module.key)
        scale = alpha / (math.sqrt(r) if self._values.get("use_rslora") else r)
        return LowRank(a, b, scale, tensors.get("magnitude"), tensors.get("B bias"))

    def _number(self, key: str, patterns_key: str, module: str) -> Any:
        """Return a number for a module: that of the first pattern that fits, else the one for all."""
        patterns = self._patterns[patterns_key]
        fitting = (value for pattern, value in patterns if self._is_like(patterns_key, pattern, module))
        number = next(fitting, self._values.get(key, 8))  # peft's default of both
        if type(number) not in (int, float) or not 0 < abs(number) < 1e9:
            raise CheckpointError(f"{self._where}: {key} of {module} is {short_repr(number)}: expected a number")
        return number

    def _read_patterns(self, key: str) -> list[tuple[re.Pattern[str] | str, Any]]:
        """Return the names and regular expressions of modules, and the number of each; plain names are compiled."""
        patterns = self._values.get(key) or {}
        if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
            raise self._error(key, f"expected an object of {_MAX_PATTERNS:,} names and numbers at most")
        read: list[tuple[re.Pattern[str] | str, Any]] = []
        for name, value in patterns.items():
            read.append((re.compile(rf"(.*\.)?({name})$") if _PLAIN.fullmatch(name) else name, value))
        if sum(isinstance(pattern, str) for pattern, _ in read) > _MAX_EXPRESSIONS:
            raise self._error(key, f"expected {_MAX_EXPRESSIONS} regular expressions at most: give whole names")
        return read

    def _is_like(self, key: str, pattern: re.Pattern[str] | str, name: str) -> bool:
        """Whether a pattern with a number of its own means a module: the end of its name, as peft has it."""
        if isinstance(pattern, re.Pattern):
            return pattern.match(name) is not None
        return self._matches(key, rf"(.*\.)?({pattern})", name)

    def _matches(self, key: str, expression: str, name: str) -> bool:
        """Whether a regular expression matches the whole of a module's name."""
        try:
            return has_whole_match(expression, name)
        except re.error as error:
            raise self._error(key, f"{short_repr(expression)} is no regular expression") from error
        except TooComplicatedError as error:
            advice = "give a list of names" if key in ("target_modules", "exclude_modules") else "give whole names"
            problem = f"the pattern {short_repr(expression)} is too complicated to be tried here: {advice}"
            raise CheckpointError(f"{self._where}: {key}: {problem}") from error

    def is_saved(self, module: AdapterModule) -> bool:
        """Whether a module was trained as a copy of its own."""
        return any(module.key == name or module.key.endswith(f".{name}") for name in self._names("modules_to_save"))

    def _names(self, key: str) -> list[str]:
        values = self._values.get(key) or []
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
            raise self._error(key, "expected a list of names")
        return values

    def _is_named(self, key: str, name: str) -> bool:
        """Whether an option, a list of names or a regular expression, means a module."""
        wanted = self._values.get(key)
        if isinstance(wanted, str):
            return self._matches(key, wanted, name)
        if wanted is None and key == "target_modules":
            return name.rpartition(".")[2] in _DEFAULT_TARGETS
        return any(name == entry or name.endswith(f".{entry}") for entry in self._names(key))

    def is_target(self, name: str) -> bool:
        """Whether the configuration means a module, by its name in peft."""
        wanted, layers = self._values.get("target_modules"), self._values.get("layers_to_transform")
        if wanted == "all-linear":
            return name.rpartition(".")[2] in _LINEAR and not self._is_named("exclude_modules", name)
        is_meant = self._is_named("target_modules", name)
        layer = re.match(r".*?\.[^.]*\.(\d+)\.", name)
        if layers not in (None, []) and not isinstance(wanted, str):
            is_meant &= layer is not None and int(layer[1]) in (layers if isinstance(layers, list) else [layers])
        return is_meant and not self._is_named("exclude_modules", name)

    def check_targets(self, modules: Sequence[AdapterModule]) -> None:
        """Check that the modules with an adapter are some that the configuration means.

        Raises:
            CheckpointError: one is not: peft would leave its adapter out.
        """
        for module in modules:
            if not self.is_target(module.key):
                raise CheckpointError(
                    f"{self._where}: {module.key} has an adapter, but is none of the modules that target_modules and "
                    f"its kin name: peft would leave it out: {self._targets_hint()}"
                )

    def _targets_hint(self) -> str:
        """Say what to do about an adapter of a module that is no target."""
        if self._values.get("target_modules") is None:
            return f"null means {_DEFAULT_TARGETS[0]} alone: name all of them"
        return "correct the file"

    def check_saved(self, modules: Sequence[AdapterModule], replaced: Collection[str]) -> None:
        """Check that what was trained whole is there: modules of ``modules_to_save``, and biases.

        Raises:
            CheckpointError: it is not, or ``bias`` is an unknown word.
        """
        touched = {"wte", "lm_head"} & {module.name for module in modules}
        if self._values.get("ensure_weight_tying") and touched:
            raise self._error("ensure_weight_tying", f"of {touched.pop()} cannot be merged here: merge it with peft")
        bias = self._values.get("bias", "none")
        if bias not in ("none", "all", "lora_only"):
            raise self._error("bias", "expected none, all or lora_only")
        if bias != "none" and not any(name.endswith(".bias") for name in replaced):
            raise self._error("bias", "the adapter holds no bias: save it again")
        for name in {"wte", "wpe", "ln_f", "lm_head"} & {*self._names("modules_to_save")}:
            if not any(module.name == name and "weight" in module.tensors for module in modules):
                raise self._error("modules_to_save", f"the adapter holds no {name}.weight: save it again")

    def tokens(self, trained: Sequence[LazyTensor]) -> tuple[tuple[int, ...], LazyTensor] | None:
        """Return the tokens whose embeddings were trained, and the tensor with their rows.

        Raises:
            CheckpointError: they do not fit each other, or another module has such rows.
        """
        wanted = self._values.get("trainable_token_indices")
        if not wanted and not trained:
            return None
        if isinstance(wanted, dict) and len(wanted) == 1:
            ((name, wanted),) = wanted.items()
            if name.split(".")[-1] != "wte":
                wanted = None
        tokens = wanted if isinstance(wanted, list) else []
        is_list = bool(tokens) and all(type(token) is int and token >= 0 for token in tokens)
        if not is_list or len(trained) != 1 or trained[0].shape[:1] != (len(tokens),):
            raise self._error("trainable_token_indices", "expected a row of wte for each of these tokens")
        return tuple(tokens), trained[0]
