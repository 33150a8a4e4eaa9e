"""How two records of what decides the trained weights differ: of a run and its continuation, of two workers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def find_differences(old: Mapping[str, Any], new: Mapping[str, Any], was: str = "was") -> list[str]:
    """Return how two records differ, as ``learning_rate is 0.001, was 0.0005``; a hash is too long to be shown."""
    before, after = _flat(old), _flat(new)
    found = []
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            found.append(f"{name} is missing, {was} {_shown(before[name])}")
        elif name not in before:
            found.append(f"{name} is new")
        elif before[name] != after[name]:
            known = not _is_hash(before[name])
            found.append(
                f"{name} is {_shown(after[name])}, {was} {_shown(before[name])}" if known else f"{name} has changed"
            )
    return found


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested objects under names as ``files.songs.txt``."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
