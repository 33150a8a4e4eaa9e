"""Where Megatron and DeepSpeed put a model's shards: the tracker file, the iteration's folder, the ranks' files."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from convert.torch_format.reader import saved_name
from support.errors import CheckpointError
from support.messages import list_names

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
DEEPSPEED_NAME = "mp_rank_{:02d}_model_states.pt"
"""Of the file of a rank, in DeepSpeed's layout and CPM's releases."""
_DEEPSPEED_FILE = re.compile(r"mp_rank_([0-9]+)_model_states\.pt")
_MEGATRON_FOLDER, MEGATRON_FILE = re.compile(r"mp_rank_([0-9]+)"), "model_optim_rng.pt"
_ITERATION_FOLDER = re.compile(r"(?:iter_)?\d+|release")


@dataclasses.dataclass(frozen=True)
class RankFile:
    """The file of one rank. ``pattern`` makes another rank's file name; it is empty when this one's says no rank."""

    rank: int
    path: Path
    pattern: str


def _rank_file(path: Path) -> RankFile | None:
    """The rank that the name of ``path`` says: of a shard, or of the folder that plain Megatron puts a shard in."""
    if (match := _DEEPSPEED_FILE.fullmatch(path.name)) and path.is_file():
        return RankFile(int(match[1]), path, DEEPSPEED_NAME)
    if (match := _MEGATRON_FOLDER.fullmatch(path.name)) and (path / MEGATRON_FILE).is_file():
        return RankFile(int(match[1]), path / MEGATRON_FILE, f"mp_rank_{{:02d}}/{MEGATRON_FILE}")
    return None


def _rank_files(folder: Path) -> list[RankFile]:
    """The shards in ``folder``, by rank; no other file counts.

    Raises:
        CheckpointError: two files of one rank, or a rank below the highest has none.
    """
    by_rank: dict[int, RankFile] = {}
    for path in sorted(folder.iterdir()):
        if (file := _rank_file(path)) is None:
            continue
        if (other := by_rank.setdefault(file.rank, file)) is not file:
            names = " and ".join(sorted(str(f.path.relative_to(folder)) for f in (file, other)))
            raise CheckpointError(f"{folder}: two files of rank {file.rank}: {names}: remove one")
    files = [by_rank[rank] for rank in sorted(by_rank)]
    for expected, file in enumerate(files):
        if file.rank != expected:
            missing = file.pattern.format(expected)
            raise CheckpointError(
                f"{folder}: {missing} is missing: the ranks found are {list_names(sorted(by_rank), 9)}"
            )
    return files


def is_one(path: Path) -> bool:
    """Whether ``path`` looks like a checkpoint of this layout: any file, or a folder with ranks or iterations in it."""
    if path.is_file() or (path / TRACKER).exists() or any(map(_rank_file, path.iterdir())):
        return True
    folders = (child for child in path.iterdir() if child.is_dir() and _ITERATION_FOLDER.fullmatch(child.name))
    return any(any(map(_rank_file, folder.iterdir())) for folder in folders)


def _available(root: Path) -> str:
    """The end of a message about an iteration that was not found: which ones there are."""
    if any(map(_rank_file, root.iterdir())):
        return "it is the folder of an iteration itself"
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and _ITERATION_FOLDER.fullmatch(path.name)]
    names = [path.name for path in folders if any(map(_rank_file, path.iterdir()))]
    return (
        f"it has the iterations {list_names(names, 9)}" if names else "it has no iteration folder with mp_rank_* files"
    )


def parse_iteration(text: str) -> int | str | None:
    """A number above 0 or ``release``; None for anything else."""
    if text == RELEASE:
        return text
    number = int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0
    return number or None


def tracked_iteration(root: Path) -> int | str:
    """The iteration that the tracker file of ``root`` names.

    Upstream goes on with random weights when the file is missing; here that is an error.
    """
    tracker = root / TRACKER
    advice = f"give one as iteration (--iteration), or its folder as the path; {_available(root)}"
    if tracker.exists() and not tracker.is_file():
        raise CheckpointError(f"{tracker}: expected a text file, found something else: {advice}")
    if not tracker.exists():
        raise CheckpointError(f"{root}: neither mp_rank_* files nor {TRACKER} here: {advice}")
    try:
        with tracker.open("rb") as file:
            text = file.read(200).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{tracker}: not a text file: {advice}") from error
    except OSError as error:
        raise CheckpointError(f"{tracker}: cannot be read: {error.strerror}: {advice}") from error
    iteration = parse_iteration(text)
    if iteration is None:
        found = ascii(text if len(text) <= 40 else f"{text[:37]}...") if text else "an empty file"
        raise CheckpointError(f"{tracker}: expected a number above 0 or {RELEASE}, found {found}: {advice}")
    return iteration


def _iteration_files(root: Path, iteration: int | str) -> list[RankFile]:
    """The shards of ``iteration`` below ``root``, in whichever folder they are."""
    names = [RELEASE] if iteration == RELEASE else [f"{iteration}", f"iter_{iteration:07d}"]
    found = [(name, files) for name in names if (root / name).is_dir() and (files := _rank_files(root / name))]
    if len(found) != 1:
        where = f"{' and '.join(names)}: give one as the path" if found else f"{' or '.join(names)}: {_available(root)}"
        count = "are there twice, in" if found else "are not there, in"
        raise CheckpointError(f"{root}: mp_rank_* files of iteration {iteration} {count} {where}")
    return found[0][1]


def find(path: Path, iteration: str | None) -> list[RankFile]:
    """The shards that ``path`` stands for: a root, the folder of an iteration, or one file."""
    wanted = None if iteration is None else parse_iteration(iteration.strip())
    if iteration is not None and wanted is None:
        raise CheckpointError(f"iteration {iteration!a}: expected a number above 0 or {RELEASE}")
    if path.is_file():
        if wanted is not None:
            raise CheckpointError(f"{path}: a file has no iterations to choose from: leave out iteration {wanted}")
        named = _rank_file(path) or (_rank_file(path.parent) if path.name == MEGATRON_FILE else None)
        return [named or RankFile(0, path, "")]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder")
    if wanted is None:
        return _rank_files(path) or _iteration_files(path, tracked_iteration(path))
    return _iteration_files(path, wanted)


def iteration_of(file: Path) -> int | str | None:
    """The iteration that the folder of a rank's file is named after, a number or ``release``; None for other names.

    It is what the tracker file has to say for upstream to find that folder; an ``iteration`` inside may differ.
    """
    file = Path(os.path.abspath(file))
    folder = file.parent
    if file.name == MEGATRON_FILE and _MEGATRON_FOLDER.fullmatch(folder.name):
        folder = folder.parent
    elif not _DEEPSPEED_FILE.fullmatch(file.name):
        return None
    return parse_iteration(folder.name.removeprefix("iter_"))


def check_saved_ranks(files: list[RankFile]) -> None:
    """Checks that no file has taken another rank's name: shards in another order fit together just as well.

    Raises:
        CheckpointError: one was saved under another rank than its name says now.
    """
    for file in files:
        saved = _DEEPSPEED_FILE.fullmatch(f"{saved_name(file.path)}.pt")
        if saved and int(saved[1]) != file.rank:
            raise CheckpointError(f"{file.path}: is the shard of rank {int(saved[1])}, renamed: give it its name back")
