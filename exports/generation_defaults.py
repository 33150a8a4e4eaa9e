"""The defaults of generation in another program's ``generation_config.json``, as values that the graph takes.

A user's option is refused where it is wrong. In a file that comes with weights, a value that means "off" to some
program is off, a whole number may have a decimal point, and one that nobody can use is left out: the weights are worth
reading whatever stands next to them. Each change is a note. Source: ``generation/configuration_utils.py`` and
``generation/utils.py`` of transformers, which writes these files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from exports.generation_config import ALL_OPTIONS, NAMES, PIECE_OPTIONS, OptionError, resolve
from support.messages import list_names, short_repr

_OFF: Mapping[str, tuple[Callable[[float], bool], Any]] = {
    "top_p": (lambda x: x <= 0 or x > 1, 1.0),
    "typical_p": (lambda x: x <= 0 or x > 1, 1.0),
    "top_k": (lambda x: x < 0, 0),
    "min_p": (lambda x: x < 0, 0.0),
    "repetition_penalty": (lambda x: x == 0, 1.0),
    "no_repeat_ngram_size": (lambda x: x < 0, 0),
    "min_new_tokens": (lambda x: x < 0, 0),
    "num_beams": (lambda x: x == 0, 1),
    "num_return_sequences": (lambda x: x == 0, 1),
}
"""Values that switch an option off in some program, and how it is off here: top_p 0 in the scripts of transformers 2
and of CPM, and above 1 in transformers; top_k -1 in vLLM; the rest where 0 or -1 stands for "not asked for"."""
_WHOLE = {"max_length"} | {name for name, option in {**ALL_OPTIONS, **PIECE_OPTIONS}.items() if not option.is_real}
_TOKENS = ("eos_token_id", "suppress_tokens", "window_line_token_id", *PIECE_OPTIONS)
_DEFAULTS: Mapping[str, Any] = {
    "min_length": 0, "num_beam_groups": 1, "diversity_penalty": 0.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "bad_words_ids": None, "force_words_ids": None, "constraints": None, "sequence_bias": None, "stop_strings": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "begin_suppress_tokens": None, "penalty_alpha": None,
    "exponential_decay_length_penalty": None, "guidance_scale": None, "max_time": None, "watermarking_config": None,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "dola_layers": None, "top_h": None,
    "renormalize_logits": False, "remove_invalid_values": False, "token_healing": False,
}  # fmt: skip
"""What transformers has and this project lacks, and its default there: others change texts, and are named in a note."""


def select_defaults(
    values: Mapping[str, Any], path: Path, vocab_size: int | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Select the options among the ``values`` of the file ``path``, and say in a note what is not as in the file.

    Args:
        values: the content of a ``generation_config.json``.
        path: the file, for notes.
        vocab_size: the number of tokens that the model has; None leaves ids as they are.
    """
    known = {name: value for name, value in values.items() if name in NAMES and value is not None}
    defaults: dict[str, Any] = {}
    changes = []
    for name, value in known.items():
        try:
            found = _without_unknown(name, _usable(name, value), vocab_size)
            resolve({}, {name: found})
        except OptionError as error:
            changes.append(f"{name} is left out: {str(error).removeprefix(f'{name} ').removeprefix('is ')}")
            continue
        defaults[name] = found
        if repr(found) != repr(value):
            changes.append(f"{name} {_shown(value)} is read as {_shown(found)}{_why(name, value, found)}")
    changes += _contradictions(defaults)
    changes += [f"{name} is not used" for name, off in _DEFAULTS.items() if values.get(name) not in (None, off, [], {})]
    return defaults, (f"{path}: {_joined(changes)}",) if changes else ()


def plain_token(value: Any, vocab_size: int) -> int | None:
    """Return a token id that a file says, which may be a float; None where it is no token of the vocabulary."""
    number = _whole(value)
    return number if type(number) is int and 0 <= number < vocab_size else None


def _usable(name: str, value: Any) -> Any:
    """Return what a value means; one that is as it should be, or that nobody knows, stays as it is."""
    if name in ("do_sample", "special_pieces"):
        return bool(value) if type(value) in (int, float) and value in (0, 1) else value
    if isinstance(value, list):
        return [_whole(token) for token in value] if name in _WHOLE else value
    if name in _WHOLE:
        value = _whole(value)
    if name in _OFF and type(value) in (int, float):
        is_off, off = _OFF[name]
        return off if is_off(value) else value
    return value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_unknown(name: str, value: Any, vocab_size: int | None) -> Any:
    """Leave out the tokens that the model lacks: the graph would refuse every call.

    Raises:
        OptionError: nothing is left.
    """
    if name not in _TOKENS or vocab_size is None:
        return value
    if isinstance(value, list):
        return [token for token in value if type(token) is not int or token < vocab_size]
    if type(value) is int and value >= vocab_size:
        raise OptionError(f"{value} is outside the vocabulary (0 to {vocab_size - 1})")
    return value


def _contradictions(defaults: dict[str, Any]) -> Iterator[str]:
    """Take out what contradicts the other ``defaults``, and say so."""
    beams, texts = defaults.get("num_beams", 1), defaults.get("num_return_sequences", 1)
    if 1 < beams < texts:
        del defaults["num_return_sequences"]
        yield f"num_return_sequences {texts} is left out: {beams} beams find no more than that"
    if beams > 1 and defaults.get("do_sample"):
        yield f"do_sample has no effect: num_beams is {beams}, and beam search does not sample"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return f"[{list_names(value, 5)}]"
    return str(value).lower() if isinstance(value, bool) else short_repr(value)


def _why(name: str, value: Any, found: Any) -> str:
    is_off = name in _OFF and found == _OFF[name][1] and found != value
    return " (off)" if is_off else ""


def _joined(changes: Iterable[str], limit: int = 4) -> str:
    texts = list(changes)
    more = f"; and {len(texts) - limit} more" if len(texts) > limit else ""
    return "; ".join(text[:90] for text in texts[:limit]) + more
