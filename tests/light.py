"""Commands whose SavedModels have the signature ``logits`` alone.

A graph with all signatures takes seconds to make, this one a quarter of them. Conversions are about weights; what the
other signatures do is the subject of ``tests/exports``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from convert import __main__
from exports.signatures import Signatures


class _LogitsAlone(Signatures):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.functions = {"logits": self.functions["logits"]}


@contextmanager
def logits_alone() -> Iterator[None]:
    """SavedModels that are written here have one signature."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exports.saved_model.Signatures", _LogitsAlone)
        yield


def main(arguments: list[str]) -> int:
    """``python -m convert`` in this process."""
    with logits_alone():
        return __main__.main(arguments)


def run(*words: object) -> None:
    """A command that succeeds."""
    assert main([*map(str, words), "--quiet"]) == 0
