"""How messages show values and name several things on one line."""

from __future__ import annotations

import json
from collections.abc import Iterable


def list_names(values: Iterable[object], limit: int = 3) -> str:
    """Return the first of ``values`` and how many more there are, on one line whatever a file called them."""
    texts = [text if text.isprintable() else ascii(text) for text in map(str, values)]
    texts = [text if len(text) <= 100 else f"{text[:97]}..." for text in texts]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def pluralize(count: int, noun: str) -> str:
    """``count`` and ``noun``, which takes an s unless there is one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def show_bytes(count: int) -> str:
    """Return a number of bytes in GB, MB or kB, whichever shows more than zeros."""
    unit, size = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if count >= pair[1]), ("kB", 1e3))
    return f"{count / size:.{2 if unit == 'GB' else 1}f} {unit}"


def short_repr(value: object) -> str:
    """``value``, which came out of a file, for a message: one short line, whatever it is."""
    if isinstance(value, (str, bytes)):
        return repr(value[:80]) + ("..." if len(value) > 80 else "")
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (int, float)) or hasattr(value, "qualified_name"):  # a pickle's placeholder
        return repr(value)
    return f"a {type(value).__name__}"


def describe_json(value: object) -> str:
    """Return what a value of a JSON file is, in the words of JSON: an object with its keys, a list, ``null``."""
    if isinstance(value, dict):
        return f"an object with {list_names(map(repr, value))}" if value else "an object without anything in it"
    if isinstance(value, list):
        return f"a list of {pluralize(len(value), 'value')}" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return short_repr(value)
