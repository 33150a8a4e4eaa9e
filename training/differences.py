"""How two records of what decides the trained weights differ: of a run and its continuation, of two workers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from support.messages import list_names
from training.setting import flag

FILES, TEXTS = "files", "texts"
"""What a record calls the hashes of its text files, by path, and the hash of all that is learned of them."""
_DERIVED = ("evaluate_every", "steps", "micro_batch", TEXTS)
"""Values that may follow from another one that is in the record, too."""
_NOTHING: tuple[Any, ...] = (None, [], "")


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


def find_changed_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return how two records of a run differ, as ``--batch-size 8, was 4``.

    What follows from another option is left out where one differs: a run with other batches has other steps, too. The
    files of the texts count only where the texts have changed: a copy elsewhere is the same text.
    """
    differing = {name for name in old.keys() | new.keys() if name != FILES and old.get(name) != new.get(name)}
    files = _changed_files(old, new) if TEXTS in differing else []
    causes = {name for name in differing if name not in _DERIVED or (name == TEXTS and files)}
    return [_changed_option(name, old, new, files) for name in sorted(causes or differing)]


def _changed_option(name: str, old: Mapping[str, Any], new: Mapping[str, Any], files: list[str]) -> str:
    before, after = old.get(name), new.get(name)
    if name == TEXTS:
        return f"the text has changed: {list_names(files)}" if files else "the texts have changed"
    if _is_hash(before) or _is_hash(after):
        return f"the {name} has changed"
    given = "left out" if after in _NOTHING else _words(after)
    return f"{flag(name)} {given}, was {'left out' if before in _NOTHING else _words(before)}"


def _changed_files(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the files of the texts whose content is in one record only."""
    before, after = old.get(FILES, {}), new.get(FILES, {})
    changed = {path for path, sha256 in after.items() if sha256 not in before.values()}
    return sorted(changed | {path for path, sha256 in before.items() if sha256 not in after.values()}) if before else []


def _words(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
