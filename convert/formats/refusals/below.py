"""Folders with a checkpoint one to three levels below: a training's, the hub's cache, whatever holds several models."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from convert.formats import rows
from convert.formats.candidate import Candidate
from convert.formats.refusals.look import Look, is_regular, short_name
from support.errors import UserError
from support.messages import list_names

_MAX_FOLDERS = 300
"""How many folders are listed."""
_MAX_OPENED = 12
"""How many checkpoints are counted."""
_MAX_LOOKED_INTO = 50
"""How many folders with a file of weights are looked into by every format."""
_MODEL_FILE = re.compile(
    r".+\.(safetensors|bin|pt|pth|ckpt|h5|index|index\.json)|saved_model\.pb|mp_rank_.*|latest|"
    r"latest_checkpointed_iteration\.txt"
)
_STEP = re.compile(r"(?:checkpoint|step|epoch|global_step|model_epoch|iter|model|ckpt)[-_]?(\d+)")


def describe_below(look: Look) -> str | None:
    """Name the checkpoint below a folder, the newest or the one that ``refs/main`` names."""
    if not look.is_dir:
        return None
    if (text := _hub_cache(look)) is not None:
        return text
    found = list(_models(look.path))
    if not found:
        return _adapter_below(look)
    names = [path.relative_to(look.path).as_posix() for path in found]
    if len(found) == 1:
        return f"no checkpoint itself, but {short_name(names[0])} in it is one: give {_joined(look, names[0])}"
    steps = [(int(match[1]), name) for name in names if (match := _STEP.fullmatch(name))]
    if len(steps) == len(names):
        newest = max(steps)[1]
        what = "a training's folder" if newest.startswith("checkpoint-") else "no checkpoint itself"
        return f"{what} with {_count(found)} checkpoints, {newest} is the newest: give {_joined(look, newest)}"
    return f"no checkpoint itself, but it has {_count(found)}: {list_names(map(short_name, names))}: give one of them"


def _adapter_below(look: Look) -> str | None:
    """Name the newest adapter in a folder of a training."""
    adapters = [path for path in _folders(look.path) if is_regular(path / "adapter_config.json")]
    if not adapters:
        return None
    name = short_name(adapters[0].name)
    return f"no checkpoint, but {name} in it is an adapter: give its base model, and it as --adapter"


def _count(found: list[Path]) -> str:
    return f"{len(found)} or more" if len(found) >= _MAX_OPENED else str(len(found))


def _joined(look: Look, name: str) -> str:
    """Return the path to give, or how to find it where the path is long."""
    joined = str(look.path / name)
    return joined if len(joined) <= 80 and joined.isprintable() else f"{short_name(name)} in it"


def _hub_cache(look: Look) -> str | None:
    """Name the snapshot to give of the hub's cache, of ``models--owner--name`` in it, or of its ``snapshots``."""
    if look.path.name == "snapshots" and (chosen := _snapshot(look.path.parent)) is not None:
        path, why = chosen
        return f"snapshots in the hub's cache: give the folder {short_name(path.name)} in it ({why})"
    if look.has("snapshots") and (look.path / "snapshots").is_dir():
        if (chosen := _snapshot(look.path)) is None:
            again = "download it again (hf download OWNER/NAME --local-dir DIR)"
            return f"the hub's cache of a model, without a whole snapshot: {again}"
        path, why = chosen
        return f"the hub's cache of a model: give the folder snapshots/{short_name(path.name)} in it ({why})"
    roots = [look.path / name for name in look.matching(r"models--.+")][:_MAX_OPENED]
    found = [snapshot[0] for root in roots if (snapshot := _snapshot(root)) is not None]
    if not found:
        return None
    first = short_name(found[0].relative_to(look.path).as_posix(), 100)
    of = "" if len(found) == 1 else f" of {len(found)} models"
    return f"the hub's cache{of}: give the folder of one in it, such as {first}"


def _snapshot(root: Path) -> tuple[Path, str] | None:
    """Return the snapshot of ``models--owner--name`` that is meant, and why; None where none is a checkpoint."""
    folders = [path for path in _folders(root / "snapshots") if is_checkpoint(path)]
    if chosen := next((path for path in folders if path.name == _main_of(root)), None):
        return chosen, "which refs/main names"
    newest = max(folders, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else (newest, "the only one" if len(folders) == 1 else "the newest")


def _main_of(root: Path) -> str | None:
    """Return the snapshot that ``refs/main`` names."""
    file = root / "refs" / "main"
    try:
        return file.read_text("utf-8-sig")[:100].strip() if is_regular(file) and file.stat().st_size < 1000 else None
    except (OSError, ValueError):
        return None


def _models(folder: Path) -> Iterator[Path]:
    """Yield checkpoints one level below ``folder``; where there are none, those two or three levels below."""
    level, count, looked_into = _folders(folder), 0, 0
    for _ in range(3):
        for path in level:
            if count >= _MAX_OPENED or looked_into >= _MAX_LOOKED_INTO or not _has_model_file(path):
                continue
            looked_into += 1
            if is_checkpoint(path):
                count += 1
                yield path
        if count:
            return
        level = [path for parent in level for path in _folders(parent)][:_MAX_FOLDERS]


def _folders(folder: Path) -> list[Path]:
    """Return folders in a folder, those with the highest numbers first; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry, _ in zip(entries, range(_MAX_FOLDERS), strict=False) if entry.is_dir()]
    except OSError:
        return []
    found.sort()
    found.sort(key=lambda name: -int(match[1][:15]) if (match := re.search(r"(\d+)$", name)) else 0)
    return [folder / name for name in found]


def _has_model_file(folder: Path) -> bool:
    """Whether a folder has a file that may hold weights, by its name."""
    try:
        return any(_MODEL_FILE.fullmatch(name) for name in os.listdir(folder))
    except OSError:
        return False


def is_checkpoint(folder: Path) -> bool:
    """Whether a format recognises a folder."""
    try:
        candidate = Candidate(folder)
        return _has_model_file(folder) and any(row.load().recognise(candidate) for row in rows.ROWS)
    except (OSError, UserError):
        return False
