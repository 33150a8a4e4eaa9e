"""How messages name several things on one line."""

from __future__ import annotations

from collections.abc import Iterable


def some(values: Iterable[object], limit: int = 3) -> str:
    """The first of ``values`` and how many more there are, on one line whatever a file called them."""
    texts = [text if text.isprintable() else ascii(text) for text in map(str, values)]
    texts = [text if len(text) <= 100 else f"{text[:97]}..." for text in texts]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s'[: count != 1]}"
