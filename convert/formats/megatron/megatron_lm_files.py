"""Where newer Megatron-LM puts its shards: a folder for each tensor-parallel rank and pipeline stage."""

from __future__ import annotations

import re
from pathlib import Path

from convert.formats.megatron.rank_files import MEGATRON_FILE, RELEASE, TRACKER, parse_iteration, tracked_iteration
from support.errors import CheckpointError
from support.messages import list_names

_FOLDER = re.compile(r"mp_rank_(\d{2,4})(?:_(\d{3}))?")


def _ranks(folder: Path) -> dict[tuple[int, int], Path]:
    """(stage, rank) -> file, of the folders in ``folder``.

    Raises:
        CheckpointError: two folders are the same rank.
    """
    ranks: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.iterdir()):
        if (match := _FOLDER.fullmatch(path.name)) and (path / MEGATRON_FILE).is_file():
            other = ranks.setdefault((int(match[2] or 0), int(match[1])), path / MEGATRON_FILE)
            if other.parent != path:
                raise CheckpointError(
                    f"{folder}: {other.parent.name} and {path.name} are the same rank: of two checkpoints, keep one"
                )
    return ranks


def first_file(path: Path) -> Path | None:
    """Any file of a rank, to see what it is; None where there is none."""
    if path.is_file():
        return path
    for folder in (path, *sorted(path.iterdir())):
        if folder.is_dir() and (ranks := _ranks(folder)):
            return next(iter(ranks.values()))
    return None


def find(path: Path, iteration: str | None) -> list[list[Path]]:
    """The files that ``path`` stands for: a root, the folder of an iteration, or one file; stage by stage.

    Raises:
        CheckpointError: there are none, or one is missing.
    """
    wanted = None if iteration is None else parse_iteration(iteration.strip())
    if iteration is not None and wanted is None:
        raise CheckpointError(f"iteration {iteration!a}: expected a number above 0 or {RELEASE}")
    if path.is_file():
        if wanted is not None:
            raise CheckpointError(f"{path}: a file has no iterations to choose from: leave out iteration {wanted}")
        return [[path]]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder")
    folder, ranks = path, _ranks(path) if wanted is None else {}
    if not ranks:  # upstream would go on with random weights
        number = tracked_iteration(path) if wanted is None else wanted
        names = [RELEASE] if number == RELEASE else [f"iter_{number:07d}", f"{number}"]
        folder = next((path / name for name in names if (path / name).is_dir()), path / names[0])
        ranks = _ranks(folder) if folder.is_dir() else {}
        if not ranks:
            by = TRACKER if wanted is None else "--iteration"
            raise CheckpointError(f"{folder}: no mp_rank_*/{MEGATRON_FILE}: expected iteration {number} there, by {by}")
    stages, size = (1 + max(place[i] for place in ranks) for i in (0, 1))
    for stage in range(stages):
        for rank in range(size):
            if (stage, rank) not in ranks:
                name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
                raise CheckpointError(
                    f"{folder}: {name}/{MEGATRON_FILE} is missing: found {list_names(_names(ranks), 9)}"
                )
    return [[ranks[stage, rank] for rank in range(size)] for stage in range(stages)]


def _names(ranks: dict[tuple[int, int], Path]) -> list[str]:
    return [file.parent.name for file in ranks.values()]
