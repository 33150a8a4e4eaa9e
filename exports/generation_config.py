"""Options of generation as Python and ``generation_config.json`` have them, checked before the graph sees them."""

from __future__ import annotations

import dataclasses
import difflib
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exports.generation_options import BEAM_OPTIONS, COMMON_OPTIONS, SAMPLING_OPTIONS, Option
from support.errors import UserError
from support.files import read_json_object
from tf_model.config import GPT2Config


class OptionError(UserError, ValueError):
    """An option that does not exist, or a value that it cannot have; the message is one line."""


ALL_OPTIONS: Mapping[str, Option] = {
    **COMMON_OPTIONS,
    **SAMPLING_OPTIONS,
    **BEAM_OPTIONS,
    "num_beams": dataclasses.replace(BEAM_OPTIONS["num_beams"], default=1),
}
"""Options that go into the graph; one beam is no beam search."""

_EARLY_STOPPING = {False: 0, True: 1, "never": 2}

PIECE_OPTIONS: Mapping[str, Option] = {
    "start_token_ids": Option((), -1, 2**31 - 1, "token ids in front of every prompt; -1 is none"),
    "line_token_id": Option(-1, -1, 2**31 - 1, "the token that a line ends with: typed and shown as a line feed"),
}
"""Options of reading and showing texts, which the graph does not have; left out, they are as the tokenizer says."""

PIECE_NAMES = (*PIECE_OPTIONS, "special_pieces")


@dataclasses.dataclass(frozen=True)
class PieceOptions:
    """Which pieces begin the texts of a model and end their lines, and whether a prompt may name pieces.

    Attributes:
        start_token_ids: in front of every prompt, and of every text that is scored; None: those of the tokenizer.
        line_token_id: what a line feed stands for; None: what the tokenizer makes of one.
        special_pieces: whether the special pieces in a prompt become their ids; None: as the vocabulary's programs do.
    """

    start_token_ids: tuple[int, ...] | None = None
    line_token_id: int | None = None
    special_pieces: bool | None = None


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How texts are generated.

    Attributes:
        values: one for each option of the graph; lists of tokens are tuples.
        max_length: most tokens of prompt and continuation together, instead of ``max_new_tokens``; None for no limit.
        truncate: the text ends before the first of these strings.
        seeds: one per prompt, instead of ``seed``.
        pieces: how prompts are read and texts are shown.
    """

    values: Mapping[str, Any]
    max_length: int | None = None
    truncate: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    pieces: PieceOptions = PieceOptions()

    @property
    def beams(self) -> bool:
        return bool(self.values["num_beams"] > 1)

    def inputs(self) -> dict[str, Any]:
        """Return the options that the signature in question has."""
        return {
            name: self.values[name] for name in (*COMMON_OPTIONS, *(BEAM_OPTIONS if self.beams else SAMPLING_OPTIONS))
        }


NAMES = (*ALL_OPTIONS, "do_sample", "max_length", "truncate", *PIECE_NAMES)
"""All options of ``TextGenerator``."""


OPTION_ALIASES = {
    "number": "num_return_sequences",
    "n": "num_return_sequences",
    "nsamples": "num_return_sequences",
    "length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "stop": "truncate",
    "stop_strings": "truncate",
    "window": "window_line_token_id",
    "beam_size": "num_beams",
    "random_seed": "seed",
    "topk": "top_k",
    "topp": "top_p",
}
"""What other programs call an option, this one's command line among them."""


def read_defaults(path: Path) -> dict[str, Any]:
    """Return the options in a SavedModel's ``generation_config.json``; what is not an option here is left out.

    Raises:
        OptionError: not such a file, or a value that an option cannot have.
    """
    values = read_json_object(path, OptionError)
    known = {name: value for name, value in values.items() if name in NAMES and value is not None}
    try:
        resolve({}, known)  # as defaults: transformers writes max_length beside max_new_tokens, and other idle options
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    return known


def resolve(given: Mapping[str, Any], defaults: Mapping[str, Any], model: GPT2Config | None = None) -> GenerationConfig:
    """``given`` options over ``defaults`` over the table's own; None stands for "as by default".

    Args:
        given: by the user.
        defaults: as ``read_defaults`` gives them.
        model: the sizes that the values must fit; None leaves that out.

    Raises:
        OptionError: an unknown name, with the one that was probably meant; a bad value; options that contradict.
    """
    for name in given:
        if name not in NAMES:
            plain = name.lower().replace("-", "_")
            close = (
                [OPTION_ALIASES[plain]] if plain in OPTION_ALIASES else difflib.get_close_matches(plain, NAMES, 1, 0.6)
            )
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(NAMES))}"
            raise OptionError(f"unknown option {name!r}: {hint}")
    given = {name: _plain(value) for name, value in given.items() if value is not None}
    _check_contradictions(given, {**defaults, **given})
    if "max_length" in given:
        defaults = {name: value for name, value in defaults.items() if name != "max_new_tokens"}
    elif "max_new_tokens" in given:
        defaults = {name: value for name, value in defaults.items() if name != "max_length"}
    if "temperature" in given:  # says by itself whether to sample
        defaults = {name: value for name, value in defaults.items() if name != "do_sample"}
    merged = {**defaults, **given}
    seeds = None
    if isinstance(given.get("seed"), (list, tuple)):
        seeds = tuple(int(_number("seed", ALL_OPTIONS["seed"], seed)) for seed in merged.pop("seed"))
    values = {name: _value(name, option, merged.get(name, option.default)) for name, option in ALL_OPTIONS.items()}
    if not _flag("do_sample", merged.get("do_sample", True)):
        values["temperature"] = 0.0
    pieces = resolve_pieces(merged)
    if "eos_token_id" not in given:  # by default the end of a line is not that of the text
        values["eos_token_id"] = tuple(token for token in values["eos_token_id"] if token != pieces.line_token_id)
    config = GenerationConfig(values, _max_length(merged), _strings(merged.get("truncate", ())), seeds, pieces)
    if config.beams and values["num_return_sequences"] > values["num_beams"]:
        raise OptionError(
            f"num_return_sequences is {values['num_return_sequences']}: beam search with num_beams "
            f"{values['num_beams']} finds no more than that"
        )
    if model is not None:
        _check_sizes({**values, **{name: getattr(pieces, name) for name in PIECE_OPTIONS}}, model)
    return config


def resolve_pieces(values: Mapping[str, Any]) -> PieceOptions:
    """Select the options of ``PieceOptions`` among ``values``; None stands for "as by default".

    Raises:
        OptionError: a value that an option cannot have.
    """
    found: dict[str, Any] = {name: _plain(values[name]) for name in PIECE_NAMES if values.get(name) is not None}
    for name, option in PIECE_OPTIONS.items():
        if name in found:
            found[name] = _value(name, option, found[name])
    if "start_token_ids" in found:
        found["start_token_ids"] = tuple(token for token in found["start_token_ids"] if token >= 0)
    if found.get("line_token_id") == -1:
        del found["line_token_id"]
    if "special_pieces" in found:
        _flag("special_pieces", found["special_pieces"])
    return PieceOptions(**found)


def _check_sizes(values: Mapping[str, Any], model: GPT2Config) -> None:
    last = model.vocab_size - 1
    for name in ("eos_token_id", "suppress_tokens", "window_line_token_id", *PIECE_OPTIONS):
        found = () if values[name] is None else values[name]
        tokens = found if isinstance(found, tuple) else (found,)
        if tokens and max(tokens) > last:
            raise OptionError(f"{name}: {max(tokens)} is outside the vocabulary (0 to {last})")
    for name, limit, what in (
        ("window_tokens", model.n_positions, "positions"),
        ("num_beams", model.vocab_size, "tokens in its vocabulary"),
    ):
        if values[name] > limit:
            raise OptionError(f"{name} is {values[name]}: the model has {limit} {what}")


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy's as Python's own; anything else as it is."""
    if not isinstance(value, (bool, int, float, str)) and hasattr(value, "tolist"):
        return value.tolist()
    return value


def _check_contradictions(given: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Between what is ``given`` and, for beam search, what the model does by default."""
    if "max_length" in given and "max_new_tokens" in given:
        raise OptionError("max_length and max_new_tokens exclude each other: give one of them")
    beams = merged.get("num_beams", 1)
    if isinstance(beams, int) and beams > 1:
        for name in (*SAMPLING_OPTIONS, "do_sample"):
            if name in given and not (name == "do_sample" and given[name] is False):
                instead = "" if "num_beams" in given else ", or set num_beams to 1 (the model's default is beam search)"
                raise OptionError(f"beam search (num_beams {beams}) does not sample: leave out {name}{instead}")
    else:
        for name in ("length_penalty", "early_stopping"):
            if name in given:
                raise OptionError(f"{name} is an option of beam search: give num_beams, 2 or more, too")
    if given.get("do_sample") is False and given.get("temperature", 0) != 0:
        raise OptionError("do_sample is False, so temperature has no effect: leave out one of them")


def _value(name: str, option: Option, value: Any) -> Any:
    if name == "early_stopping" and isinstance(value, (bool, str)):
        if value not in _EARLY_STOPPING:
            raise OptionError(f"early_stopping is {_short(value)}: expected False, True or 'never'")
        value = _EARLY_STOPPING[value]
    if not option.is_list:
        return _number(name, option, value)
    tokens = [value] if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) else value
    kind = dataclasses.replace(option, default=0)
    return tuple(_number(name, kind, token) for token in tokens)


def _number(name: str, option: Option, value: Any) -> int | float:
    value = _plain(value)
    right = isinstance(value, (int, float) if option.is_real else int) and not isinstance(value, bool)
    kind = "a number" if option.is_real else "a whole number"
    if not right:
        raise OptionError(f"{name} is {_short(value)}: expected {kind}, {option.expected}")
    graph = _float32(value) if option.is_real else value
    above = all(option.low < x if option.exclusive_low else option.low <= x for x in (value, graph))
    if not above or value > option.high or (option.is_real and not math.isfinite(graph)):
        raise OptionError(f"{name} is {_short(value)}: expected {option.expected}")
    return float(value) if option.is_real else int(value)


_SMALLEST = 2.0**-126
"""Of float32's normal numbers: TensorFlow computes with smaller ones as if they were 0."""


def _float32(value: float) -> float:
    """Return what the graph makes of a number: too large becomes infinite, too small becomes 0."""
    try:
        single = float(struct.unpack("f", struct.pack("f", value))[0])
        return single if abs(single) >= _SMALLEST else 0.0
    except (OverflowError, struct.error):
        return math.inf


def _short(value: Any) -> str:
    """Show a value in a message of one line."""
    try:
        text = repr(value)
    except Exception:  # Python refuses to write a number of more than 4,300 digits, and a class may refuse anything
        text = f"an unprintable {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:50]}..."


def _max_length(merged: Mapping[str, Any]) -> int | None:
    if "max_length" not in merged or "max_new_tokens" in merged:
        return None
    return int(
        _number("max_length", dataclasses.replace(COMMON_OPTIONS["max_new_tokens"], low=1), merged["max_length"])
    )


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {_short(value)}: expected True or False")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(string, str) and string for string in strings):
        raise OptionError(f"truncate is {_short(value)}: expected a text, or several")
    return tuple(strings)
