"""Find the files of a model's ranks: the tracker file, the folder of an iteration, one file for each rank.

<root>/latest_checkpointed_iteration.txt                 "80000" or "release"
<root>/80000/mp_rank_00_model_states.pt                  CPM's releases, and DeepSpeed as CPM's programs call it
<root>/iter_0080000/mp_rank_00/model_optim_rng.pt        Megatron: tensor-parallel rank 0
<root>/iter_0080000/mp_rank_00_001/model_optim_rng.pt    Megatron: tensor-parallel rank 0 of pipeline stage 1
<root>/iter_0080000/mp_rank_00/model_rng.pt              Megatron with the distributed optimizer, which is elsewhere
<root>/latest                                            DeepSpeed: the name of a folder, such as "global_step80000"
<root>/global_step80000/mp_rank_00_model_states.pt

Sources: ``get_checkpoint_name`` of Megatron-LM's ``checkpointing.py``, which adds the rank of an expert to the folder's
name; ``_get_ckpt_name`` and ``_save_checkpoint`` of DeepSpeed's ``engine.py``. The files of optimizers do not count.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from support.errors import CheckpointError
from support.files import UTF16, is_utf16
from support.messages import list_names

if TYPE_CHECKING:
    from convert.formats.candidate import Candidate

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
LATEST = "latest"
"""DeepSpeed's tracker file."""
DEEPSPEED_NAME = "mp_rank_{rank:02d}_model_states.pt"
"""The name of a rank's file in DeepSpeed's layout and in CPM's releases."""
MEGATRON_FILE = "model_optim_rng.pt"
MEGATRON_FILES = (MEGATRON_FILE, "model_rng.pt")
"""The names of the file with the weights in a rank's folder; the second one goes with the distributed optimizer."""
_DEEPSPEED_FILE = re.compile(r"mp_rank_([0-9]+)_model_states\.pt")
_MEGATRON_FOLDER = re.compile(r"mp_rank_([0-9]+)(?:_([0-9]{3}))?(?:_([0-9]{3}))?")
_ITERATION_FOLDER = re.compile(r"(?:iter_|global_step)?\d+|release")
_TAG = re.compile(r"(?!\.{1,2}$)[^/\\\0]{1,200}")
"""What DeepSpeed's tracker file may name: a folder next to it."""


@dataclasses.dataclass(frozen=True)
class RankFile:
    """The file of one rank.

    Attributes:
        path: the file.
        rank: the tensor-parallel rank.
        stage: the pipeline stage; 0 when the name has none.
        expert: the rank of an expert; 0 when the name has none.
        name_pattern: format of another file's name, with ``rank`` and ``stage``; empty when this name has no rank.
    """

    path: Path
    rank: int = 0
    stage: int = 0
    expert: int = 0
    name_pattern: str = ""

    @property
    def label(self) -> str:
        """The rank and, where the name has one, the stage, for a list in a message."""
        return f"{self.rank:02d}_{self.stage:03d}" if "stage" in self.name_pattern else str(self.rank)

    def name_of(self, rank: int, stage: int = 0) -> str:
        """Return the name of another rank's file, below the folder of the iteration."""
        return self.name_pattern.format(rank=rank, stage=stage)


def _rank_files(path: Path) -> list[RankFile]:
    """Return the files of the rank that the name of ``path`` gives: a shard, or the folder that Megatron puts one in.

    Two of them are one too many; there is none where ``path`` is something else.
    """
    if (match := _DEEPSPEED_FILE.fullmatch(path.name)) and path.is_file():
        return [RankFile(path, int(match[1]), name_pattern=DEEPSPEED_NAME)]
    if match := _MEGATRON_FOLDER.fullmatch(path.name):
        folder = "mp_rank_{rank:02d}" + ("_{stage:03d}" if match[2] else "") + (f"_{match[3]}" if match[3] else "")
        names = [name for name in MEGATRON_FILES if (path / name).is_file()]
        rank, stage, expert = (int(number or 0) for number in match.groups())
        return [RankFile(path / name, rank, stage, expert, f"{folder}/{name}") for name in names]
    return []


def _has_rank_file(candidate: Candidate, folder: Path) -> bool:
    return any(map(_rank_files, candidate.entries(folder)))


def _iteration_folders(candidate: Candidate) -> list[Path]:
    """Return the folders in the candidate that are named after an iteration and hold files of ranks."""
    named = [path for path in candidate.entries() if _ITERATION_FOLDER.fullmatch(path.name)]
    return [folder for folder in named if _has_rank_file(candidate, folder)]


def find_first_rank_file(candidate: Candidate) -> Path | None:
    """Find one file that shows what a candidate holds: itself, or a rank's file in it or in the folder of an iteration.

    Returns:
        None when there is no such file.
    """
    if candidate.is_file:
        return candidate.path
    for folder in (candidate.path, *_tagged_folder(candidate), *_iteration_folders(candidate)):
        for path in candidate.entries(folder):
            if files := _rank_files(path):
                return files[0].path
    return None


def single_rank_file(candidate: Candidate, iteration: str | None = None) -> Path | None:
    """Find the file of the one rank in a folder that Megatron or DeepSpeed wrote, whatever model it holds.

    Args:
        candidate: the folder with the tracker file, or the folder of an iteration.
        iteration: as ``resolve_rank_files``.

    Returns:
        None where the candidate is no such folder, or holds several ranks.
    """
    if not candidate.is_dir:
        return None
    try:
        files = resolve_rank_files(candidate, iteration)
    except CheckpointError:
        return None
    return files[0].path if len(files) == 1 else None


def find_rank_files(candidate: Candidate, folder: Path) -> list[RankFile] | None:
    """Find the files of all ranks in ``folder``; other files do not count.

    Returns:
        The files ordered by stage, then by rank; None when there are none.

    Raises:
        CheckpointError: two files are of one rank, or the file of a rank is missing.
    """
    by_place: dict[tuple[int, int], RankFile] = {}
    for file in itertools.chain.from_iterable(map(_rank_files, candidate.entries(folder))):
        other = by_place.setdefault((file.stage, file.rank), file)
        if other.expert != file.expert:
            raise CheckpointError(f"{folder}: files of several experts ({file.path.parent.name}): no GPT-2 has any")
        if other is not file:
            names = " and ".join(sorted(str(f.path.relative_to(folder)) for f in (file, other)))
            raise CheckpointError(f"{folder}: two files of rank {file.label}: {names}: remove one")
    if not by_place:
        return None
    files = [by_place[place] for place in sorted(by_place)]
    _check_complete(folder, files)
    return files


def _check_complete(folder: Path, files: Sequence[RankFile]) -> None:
    """Check that each stage up to the last one has a file of each rank up to the highest."""
    stages = 1 + max(file.stage for file in files)
    ranks = 1 + max(file.rank for file in files)
    places = {(file.stage, file.rank) for file in files}
    for number in range(stages * ranks):
        stage, rank = divmod(number, ranks)
        if (stage, rank) not in places:
            missing = files[-1].name_of(rank, stage)
            labels = list_names((file.label for file in files), 9)
            raise CheckpointError(f"{folder}: {missing} is missing: the ranks found are {labels}")


def resolve_rank_files(candidate: Candidate, iteration: str | None) -> list[RankFile]:
    """Return the files of all ranks of a model, ordered by stage, then by rank.

    Args:
        candidate: the folder with the tracker file, the folder of an iteration, or a file.
        iteration: the iteration to take instead of the tracker's, a number or ``release``.

    Raises:
        CheckpointError: there are no such files, one of them is missing, or ``iteration`` is not an iteration.
    """
    wanted = None if iteration is None else parse_iteration(iteration.strip())
    if iteration is not None and wanted is None:
        raise CheckpointError(f"iteration {iteration!a}: expected a number above 0 or {RELEASE}")
    path = candidate.path
    if candidate.is_file:
        if wanted is not None:
            raise CheckpointError(f"{path}: a file has no iterations to choose from: leave out iteration {wanted}")
        named = _rank_files(path.parent) if path.name in MEGATRON_FILES else _rank_files(path)
        return [next((file for file in named if file.path == path), RankFile(path))]
    if not candidate.is_dir:
        raise CheckpointError(f"{path}: no such file or folder")
    if wanted is not None:
        return _files_of_iteration(candidate, wanted)
    if files := find_rank_files(candidate, path):
        return files
    if not has_tracker(candidate) and (path / LATEST).is_file():
        return _files_of_tag(candidate)
    return _files_of_iteration(candidate, read_tracker(candidate))


def named_folders(candidate: Candidate) -> list[Path]:
    """Return the folders in a candidate that are an iteration's by their names, whatever they hold."""
    named = [path for path in candidate.entries() if _ITERATION_FOLDER.fullmatch(path.name) and path.is_dir()]
    return [*_tagged_folder(candidate), *named]


def has_latest(candidate: Candidate) -> bool:
    """Whether there is a tracker file of DeepSpeed's that names a folder."""
    return any(folder.is_dir() for folder in _tagged_folder(candidate))


def _tagged_folder(candidate: Candidate) -> list[Path]:
    """Return the folder that DeepSpeed's tracker file names, in a list; nothing where it names none."""
    tracker = candidate.path / LATEST
    if has_tracker(candidate) or not tracker.is_file():
        return []
    try:
        tag = _first_text(tracker, "")
    except CheckpointError:
        return []
    return [candidate.path / tag] if _TAG.fullmatch(tag) else []


def _files_of_tag(candidate: Candidate) -> list[RankFile]:
    """Return the files of the ranks in the folder that DeepSpeed's tracker file names.

    Raises:
        CheckpointError: it names none, or there are no files of ranks.
    """
    tracker = candidate.path / LATEST
    tag = _first_text(tracker, f"give a folder with mp_rank_* files as the path; {_what_is_there(candidate)}")
    if not _TAG.fullmatch(tag):
        raise CheckpointError(f"{tracker}: expected the name of a folder next to it, found {_quoted(tag)}")
    files = find_rank_files(candidate, candidate.path / tag)
    if not files:
        raise CheckpointError(
            f"{tracker}: mp_rank_* files are not there, in {_quoted(tag)}: {_what_is_there(candidate)}"
        )
    return files


def _files_of_iteration(candidate: Candidate, iteration: int | str) -> list[RankFile]:
    """Return the files of the ranks of ``iteration``, whatever its folder is called."""
    is_release = iteration == RELEASE
    names = [RELEASE] if is_release else [f"{iteration}", f"iter_{iteration:07d}", f"global_step{iteration}"]
    found = {}
    for name in names:
        if files := find_rank_files(candidate, candidate.path / name):
            found[name] = files
    problem = f"{candidate.path}: mp_rank_* files of iteration {iteration} are"
    if not found:
        raise CheckpointError(f"{problem} not there, in {list_names(names, 9)}: {_what_is_there(candidate)}")
    if len(found) > 1:
        raise CheckpointError(f"{problem} there twice, in {' and '.join(found)}: give one as the path")
    return next(iter(found.values()))


def _what_is_there(candidate: Candidate) -> str:
    """Return the end of a message about an iteration that was not found: which iterations there are."""
    if _has_rank_file(candidate, candidate.path):
        return "it is the folder of an iteration itself"
    if folders := _iteration_folders(candidate):
        return f"it has the iterations {list_names((folder.name for folder in folders), 9)}"
    return "it has no iteration folder with mp_rank_* files"


def parse_iteration(text: str) -> int | str | None:
    """Parse a number above 0 or ``release``; return None for anything else."""
    if text == RELEASE:
        return text
    number = int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0
    return number or None


def has_tracker(candidate: Candidate) -> bool:
    """Whether there is a tracker file, readable or not."""
    return (candidate.path / TRACKER).exists()


def read_tracker(candidate: Candidate) -> int | str:
    """Read the iteration that the tracker file names.

    Megatron continues with random weights when the file is missing; here a missing file is an error.

    Raises:
        CheckpointError: the tracker file is missing, unreadable, or does not name an iteration.
    """
    tracker = candidate.path / TRACKER
    advice = f"give one as iteration (--iteration), or its folder as the path; {_what_is_there(candidate)}"
    if tracker.exists() and not tracker.is_file():
        raise CheckpointError(f"{tracker}: expected a text file, found something else: {advice}")
    if not tracker.exists():
        raise CheckpointError(f"{candidate.path}: neither mp_rank_* files nor {TRACKER} here: {advice}")
    text = _first_text(tracker, advice)
    iteration = parse_iteration(text)
    if iteration is None:
        raise CheckpointError(f"{tracker}: expected a number above 0 or {RELEASE}, found {_quoted(text)}: {advice}")
    return iteration


def _first_text(tracker: Path, advice: str) -> str:
    """Read what a tracker file names.

    Raises:
        CheckpointError: it is unreadable; ``advice`` is the end of the message.
    """
    try:
        with tracker.open("rb") as file:
            content = file.read(200)
        if is_utf16(content):
            raise CheckpointError(f"{tracker}: {UTF16}")
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{tracker}: not a text file: {advice}") from error
    except OSError as error:
        raise CheckpointError(f"{tracker}: cannot be read: {error.strerror}: {advice}") from error


def _quoted(text: str) -> str:
    """Quote what a tracker file names, for a message."""
    return ascii(text if len(text) <= 40 else f"{text[:37]}...") if text else "an empty file"


def iteration_of_file(file: Path) -> int | str | None:
    """Return the iteration that the folder of a rank's file is named after, a number or ``release``; None without one.

    Upstream finds the folder when the tracker file names this iteration. An ``iteration`` inside the file may differ.
    """
    file = Path(os.path.abspath(file))
    folder = file.parent
    if file.name in MEGATRON_FILES and _MEGATRON_FOLDER.fullmatch(folder.name):
        folder = folder.parent
    elif not _DEEPSPEED_FILE.fullmatch(file.name):
        return None
    return parse_iteration(folder.name.removeprefix("iter_").removeprefix("global_step"))


def check_saved_ranks(files: Iterable[tuple[RankFile, str | None]]) -> None:
    """Check that no file was renamed to another rank's name: shards in another order would fit together just as well.

    Args:
        files: each file with the name, without its ending, that it was saved under; None where nobody knows it.

    Raises:
        CheckpointError: a file was saved under the name of another rank.
    """
    for file, saved_name in files:
        saved = _DEEPSPEED_FILE.fullmatch(f"{saved_name}.pt")
        if saved and int(saved[1]) != file.rank:
            raise CheckpointError(f"{file.path}: is the shard of rank {int(saved[1])}, renamed: give it its name back")
