"""The one kind of error that a user of the command sees."""

from __future__ import annotations


class ConvertError(Exception):
    """Input, options or surroundings that cannot be used. The message is one line: what, where, expected, found.

    Attributes:
        exit_code: what the command ends with.
    """

    exit_code = 2
