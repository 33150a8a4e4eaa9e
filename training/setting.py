"""One setting: the values that it can have, and the message for any other."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from support.errors import UserError
from support.messages import short_repr

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False", Path: "a path"}


class SettingError(UserError, ValueError):
    """A setting that does not exist, cannot have its value, or contradicts another one; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The values of one setting.

    Attributes:
        help: one line for the command's help, without the default.
        kind: the type of a value.
        low, high: the least and the greatest number.
        above: the number that a value must exceed.
        choices: all values, where only some are possible.
        is_list: whether the setting is a tuple of such values.
        metavar: the name of a value in the help.
        shown_default: the default in the help, where that of the field says too little.
        may_change: whether a run that was stopped can go on with another value.
    """

    help: str
    kind: type = str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    is_list: bool = False
    metavar: str | None = None
    shown_default: str | None = None
    may_change: bool = False

    def check(self, name: str, value: Any) -> Any:
        """Return ``value`` as it is kept: a whole number where a float is expected becomes one, a list a tuple.

        Raises:
            SettingError: the setting cannot have this value.
        """
        if self.is_list:
            values = [value] if isinstance(value, str) else value
            if not isinstance(values, (list, tuple)):
                raise SettingError(f"{flag(name)} {short_repr(value)}: expected a list")
            return tuple(self._check_one(name, one) for one in values)
        return self._check_one(name, value)

    def _check_one(self, name: str, value: Any) -> Any:
        if self.kind is float and type(value) is int:
            value = float(value)
        if self.kind is Path and isinstance(value, (str, Path)):
            return Path(value)
        if type(value) is not self.kind or (isinstance(value, float) and not math.isfinite(value)):
            raise SettingError(f"{flag(name)} {short_repr(value)}: expected {_KINDS[self.kind]}")
        if self.choices and value not in self.choices:
            raise SettingError(f"{flag(name)} {short_repr(value)}: expected one of {', '.join(self.choices)}")
        if isinstance(value, (int, float)) and not self._is_within(value):
            raise SettingError(f"{flag(name)} {value}: expected {_KINDS[self.kind]} {self._limits()}")
        return value

    def _is_within(self, value: float) -> bool:
        low = self.low is None or value >= self.low
        high = self.high is None or value <= self.high
        return low and high and (self.above is None or value > self.above)

    def _limits(self) -> str:
        limits = {"of at least": self.low, "above": self.above, "of at most": self.high}
        return " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)


def round_up(share: float, steps: int) -> int:
    """Return how many steps ``share`` times ``steps`` are, the last one begun.

    1.1 times 50 is 55, although floating point has a little more.
    """
    return math.ceil(share * steps * (1 - 1e-12))


def flag(name: str) -> str:
    """Return the option of a setting on the command line."""
    return f"--{name.replace('_', '-')}"


def row(default: Any, help: str, kind: type = str, **limits: Any) -> Any:
    """Return a field of a dataclass whose metadata has the ``Setting``: a row of a table."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help, kind, **limits)})
