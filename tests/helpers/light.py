"""Commands whose SavedModels have the signature ``logits`` alone.

A graph with all signatures takes seconds to make, this one a quarter of them, and none the second time: it depends on
the sizes, the dtype and the tokens alone. Conversions are about weights; what the other signatures do is the subject of
``tests/exports``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from convert import __main__
from exports import saved_model
from tf_model import layers
from tf_model.config import GPT2Config
from tokenization.special_tokens import SpecialTokens

_write_graph = saved_model._write_graph
_GRAPHS: dict[Any, tuple[dict[Path, bytes], Any]] = {}
"""Files and result of ``_write_graph``, by all that it depends on; tests change the activations."""


def _write_graph_once(folder: Path, config: GPT2Config, dtype: str, tokens: SpecialTokens, names: Any) -> Any:
    activations = tuple(layers.ACTIVATION_FUNCTIONS.items())
    key = (config, dtype, tokens.eos_token_id, tokens.pad_token_id, activations)
    if key not in _GRAPHS:
        result = _write_graph(folder, config, dtype, tokens, ("logits",))
        _GRAPHS[key] = {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}, result
    files, result = _GRAPHS[key]
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return result


@contextmanager
def logits_alone() -> Iterator[None]:
    """SavedModels that are written here have one signature."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_model, "_write_graph", _write_graph_once)
        yield


def main(arguments: list[str]) -> int:
    """``python -m convert`` in this process."""
    with logits_alone():
        return __main__.main(arguments)


def run(*words: object) -> None:
    """A command that succeeds."""
    assert main([*map(str, words), "--quiet"]) == 0
