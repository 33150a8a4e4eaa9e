"""Errors that a user can fix: one line that says what, where, expected, found and what to do."""

from __future__ import annotations


class UserError(Exception):
    """The base of every error whose message is for the user; commands print it as one line.

    Attributes:
        exit_code: the exit code of a command that ends with this error.
    """

    exit_code = 2

    def __str__(self) -> str:
        """Return the message on one line, also where it names a path with a line feed in it."""
        return " ".join(super().__str__().splitlines())


class ConvertError(UserError):
    """Input, options or an environment that a conversion cannot use."""


class CheckpointError(ConvertError):
    """A checkpoint that cannot be read, or is not one whole model."""
