"""Who imports whom in this repository, read from the source."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("support", "tokenization", "tf_model", "exports", "convert", "inference", "training", "gpt2_savedmodel")


class Import(NamedTuple):
    """A module that imports another one; ``is_lazy`` if it does so in a function, and not when it is imported."""

    importer: str
    imported: str
    is_lazy: bool

    def __str__(self) -> str:
        return f"{self.importer} -> {self.imported}"


@functools.cache
def modules() -> dict[str, Path]:
    """The modules of all packages by their dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(modules()[module].read_text("utf-8"))


@functools.cache
def imports() -> tuple[Import, ...]:
    """Every import of one of our modules by another one, without those that only type checkers see."""
    found = dict.fromkeys(
        Import(importer, imported, is_lazy)
        for importer in modules()
        for imported, is_lazy in _imported(tree(importer), False)
        if imported != importer
    )
    return tuple(found)


def _imported(node: ast.AST, is_lazy: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        yield from ((name, is_lazy) for alias in node.names if (name := _module(alias.name)))
    if isinstance(node, ast.ImportFrom) and node.module:
        names = (_module(f"{node.module}.{alias.name}") or _module(node.module) for alias in node.names)
        yield from ((name, is_lazy) for name in names if name)
    is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
        yield from _imported(child, is_lazy or is_function)


def _module(name: str) -> str | None:
    return name if name in modules() else None


def cycles(edges: tuple[Import, ...]) -> list[str]:
    """The cycles that a depth-first walk finds, each as ``a -> b -> a``."""
    successors: dict[str, list[str]] = {}
    for edge in edges:
        successors.setdefault(edge.importer, []).append(edge.imported)
    found: list[str] = []
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for successor in successors.get(module, ()):
                walk(successor, [*path, module])
            done.add(module)

    for module in successors:
        walk(module, [])
    return found
