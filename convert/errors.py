"""The one kind of error that a user of the command sees."""

from __future__ import annotations


class ConvertError(Exception):
    """Input, options or surroundings that cannot be used. The message is one line: what, where, expected, found."""
