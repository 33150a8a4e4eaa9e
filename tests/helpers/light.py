"""Commands whose SavedModels have the signature ``logits`` alone.

A graph with all signatures takes seconds to make, this one half a second. Conversions are about weights; what the other
signatures do is the subject of ``tests/exports``.
"""

from __future__ import annotations

from collections.abc import Sequence

from convert import cli

_TO_SAVED_MODEL = ("pytorch-to-tf", "tf-to-tf", "to-tf")


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m convert`` in this process and return its exit code."""
    is_to_saved_model = arguments[0] in _TO_SAVED_MODEL if arguments else False
    return cli.main([*arguments, *(["--signatures", "logits"] if is_to_saved_model else [])])


def run(*words: object) -> None:
    """Run a command that succeeds."""
    assert main([*map(str, words), "--quiet"]) == 0
