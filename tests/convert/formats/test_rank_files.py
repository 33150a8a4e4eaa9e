"""convert/formats/megatron/rank_files.py: folders that Megatron and DeepSpeed did not leave so, mixed-up shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.formats.candidate import Candidate
from convert.formats.rank_files import single_rank_file
from convert.formats.registry import open_checkpoint
from tests.convert.formats.test_cpm import CONFIG, HAS, RANK, TRACKER, error_of, megatron_name, open_cpm, read_all
from tests.helpers.checkpoints import State, random_state, shards, write_megatron


@pytest.fixture(scope="module")
def state() -> State:
    return random_state(CONFIG, np.random.default_rng(7))


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / old).rename(root / new)


def remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def remove_trackers(root: Path) -> None:
    (root / TRACKER).unlink()
    (root / "latest").unlink()


def name_folder(text: str | bytes) -> Callable[[Path], object]:
    """Leave DeepSpeed's tracker file only, with this text."""

    def spoil(root: Path) -> None:
        remove_trackers(root)
        (root / "latest").write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def track(data: bytes) -> Callable[[Path], object]:
    return lambda root: (root / TRACKER).write_bytes(data)


def tracker_folder(root: Path) -> None:
    (root / TRACKER).unlink()
    (root / TRACKER).mkdir()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no tracker": (
        remove_trackers,
        ["{root}: neither mp_rank_* files nor latest_checkpointed_iteration.txt here", HAS],
    ),
    "empty tracker": (track(b""), ["{tracker}: expected a number above 0 or release, found an empty file", HAS]),
    "blank tracker": (track(b" \n"), ["{tracker}: ", "found an empty file", HAS]),
    "iteration 0": (track(b"0"), ["{tracker}: expected a number above 0 or release, found '0'", HAS]),
    "negative": (track(b"-5\n"), ["{tracker}: ", "found '-5'", HAS]),
    "garbage": (track(b"80000\n80001"), ["{tracker}: ", "found '80000\\n80001'", HAS]),
    "long garbage": (track(b"9" * 5000), ["{tracker}: ", "found '" + "9" * 37 + "...'", HAS]),
    "Release": (track(b"Release"), ["{tracker}: ", "found 'Release'", HAS]),
    "other digits": (track("８００００".encode()), ["{tracker}: ", "found '\\uff18", HAS]),
    "not UTF-8": (track(b"\xb9\xfe8"), ["{tracker}: not a text file", HAS]),
    "UTF-16": (track(b"\xff\xfe8\0"), ["{tracker}: UTF-16 text, which Notepad calls Unicode: save it as UTF-8"]),
    "tracker folder": (tracker_folder, ["{tracker}: expected a text file", HAS]),
    "iteration without a folder": (
        track(b"5"),
        [
            "{root}: mp_rank_* files of iteration 5 are not there, in 5, iter_0000005, global_step5: it "
            "has the iterations 80000"
        ],
    ),
    "release without a folder": (track(b"release"), ["of iteration release are not there, in release: ", HAS]),
    "latest names no folder": (
        name_folder("global_step9\n"),
        ["{root}/latest: mp_rank_* files are not there, in 'global_step9': it has the iterations 80000"],
    ),
    "latest is empty": (name_folder(""), ["{root}/latest: expected the name of a folder next to it, found an empty"]),
    "latest names a folder elsewhere": (
        name_folder("../80000"),
        ["{root}/latest: expected the name of a folder next to it, found '../80000'"],
    ),
    "latest names the folder above": (name_folder(".."), ["{root}/latest: expected the name of a folder"]),
    "latest names a path": (name_folder("/tmp"), ["{root}/latest: expected the name of a folder", "found '/tmp'"]),
    "latest is no text": (name_folder(b"\xb9\xfe8"), ["{root}/latest: not a text file"]),
    "empty folder": (
        lambda root: [file.unlink() for file in (root / "80000").iterdir()],
        ["{root}: mp_rank_* files of iteration 80000 are not there", "it has no iteration folder"],
    ),
    "iteration in both layouts": (
        lambda root: shutil.copytree(root / "80000", root / "iter_0080000"),
        ["{root}: mp_rank_* files of iteration 80000 are there twice, in 80000 and iter_0080000: give one as the path"],
    ),
    "rank 0 is missing": (
        remove(RANK.format(0)),
        ["{root}/80000: mp_rank_00_model_states.pt is missing: the ranks found are 1, 2, 3"],
    ),
    "rank 2 is missing": (remove(RANK.format(2)), ["{root}/80000: mp_rank_02_model_states.pt is missing"]),
    "the last rank is missing": (
        remove(RANK.format(3)),
        ["{rank0}: from a model split over 4 ranks, but 3 files found: mp_rank_03_model_states.pt is missing"],
    ),
    "a rank too many": (
        lambda root: shutil.copy(root / RANK.format(3), root / RANK.format(4)),
        ["{rank0}: from a model split over 4 ranks, but 5 files found"],
    ),
    "far too high a rank": (
        rename(RANK.format(1), RANK.format(10**9)),
        ["{root}/80000: mp_rank_01_model_states.pt is missing"],
    ),
    "two files of a rank": (
        lambda root: shutil.copy(root / RANK.format(1), root / "80000/mp_rank_1_model_states.pt"),
        ["{root}/80000: two files of rank 1: mp_rank_01_model_states.pt and mp_rank_1_model_states.pt"],
    ),
    "both layouts in one folder": (
        lambda root: (
            (root / "80000/mp_rank_01").mkdir(),
            shutil.copy(root / RANK.format(1), root / "80000/mp_rank_01/model_optim_rng.pt"),
        ),
        ["{root}/80000: two files of rank 1: mp_rank_01/model_optim_rng.pt and mp_rank_01_model_states.pt"],
    ),
    "with and without a distributed optimizer": (
        lambda root: (
            (root / "80000/mp_rank_04").mkdir(),
            shutil.copy(root / RANK.format(1), root / "80000/mp_rank_04/model_optim_rng.pt"),
            shutil.copy(root / RANK.format(1), root / "80000/mp_rank_04/model_rng.pt"),
        ),
        ["{root}/80000: two files of rank 4: mp_rank_04/model_optim_rng.pt and mp_rank_04/model_rng.pt"],
    ),
    "experts": (
        lambda root: (
            [
                (root / f"80000/mp_rank_00_000_{expert:03d}").mkdir()
                or shutil.copy(root / RANK.format(1), root / f"80000/mp_rank_00_000_{expert:03d}/model_optim_rng.pt")
                for expert in (0, 1)
            ]
            and [file.unlink() for file in (root / "80000").glob("*.pt")]
        ),
        ["{root}/80000: files of several experts (mp_rank_00_000_001): no GPT-2 has any"],
    ),
    "not a checkpoint": (
        lambda root: (root / RANK.format(2)).write_bytes(b"<html>"),
        ["{root}/80000/mp_rank_02_model_states.pt: "],
    ),
    "a list": (
        lambda root: torch.save([1], root / RANK.format(0)),
        ["{rank0}: expected a dict with the weights under 'module' or 'model', found a list"],
    ),
}


@pytest.mark.parametrize("case", sorted(BAD_FOLDERS))
def test_broken_folders_are_refused_in_one_line(tmp_path: Path, state: State, case: str) -> None:
    spoil, words = BAD_FOLDERS[case]
    files = write_megatron(tmp_path, state, 4)
    spoil(tmp_path)
    message = error_of(lambda: open_cpm(tmp_path, heads=24))
    for word in words:
        assert word.format(root=tmp_path, tracker=tmp_path / TRACKER, rank0=files[0]) in message


def through_open_files(root: Path, state: State, p: int) -> list[Path]:
    """Shards that do not say under which name they were saved, as torch writes them to an open file."""
    root.mkdir(parents=True)
    files = []
    for rank, tensors in enumerate(shards(state, p)):
        files.append(root / DEEPSPEED.format(rank=rank))
        with files[-1].open("wb") as file:
            torch.save({"module": tensors}, file)
    return files


@pytest.mark.parametrize("saved", ["legacy", "through an open file"])
def test_a_shard_copied_over_another_ranks_is_found(tmp_path: Path, state: State, saved: str) -> None:
    if saved == "legacy":
        files = write_megatron(tmp_path / "it", state, 4, legacy=True)
    else:
        files = through_open_files(tmp_path / "it", state, 4)
    read_all(files[0].parent)
    shutil.copy(files[1], files[3])
    message = error_of(lambda: read_all(files[0].parent))
    assert message == (
        f"{files[3]}: word_embeddings.weight: the same as in {files[1]}, but each rank has a part of its own: a copy "
        "of that file"
    )


@pytest.mark.parametrize("layout", ["deepspeed", "megatron"])
def test_constant_shards_may_be_equal(tmp_path: Path, state: State, layout: str) -> None:
    """Biases are zeros, or ones, before a training has begun."""
    new = {n: torch.zeros_like(t) if n.endswith("bias") else t for n, t in state.items()}
    write_megatron(tmp_path, new, 4, layout=layout)  # type: ignore[arg-type]
    read_all(tmp_path)


def test_shards_that_swapped_names_are_found(tmp_path: Path, state: State) -> None:
    """They fit together as well as before; the archive inside says which name it was saved under."""
    files = write_megatron(tmp_path, state, 2)
    files[0].rename(tmp_path / "kept")
    files[1].rename(files[0])
    (tmp_path / "kept").rename(files[1])
    message = error_of(lambda: open_cpm(tmp_path, heads=24))
    assert message == f"{files[0]}: is the shard of rank 1, renamed: give it its name back"


def test_a_version_that_orders_qkv_otherwise_is_refused(state: State, tmp_path: Path) -> None:
    """Flat names of CPM's, but the version of a later Megatron: read as CPM's it would be another model."""
    write_megatron(tmp_path, state, 2, edit=lambda rank, top: top.update(checkpoint_version=2.0))
    assert "checkpoint_version is 2.0, which CPM's Megatron does not have" in error_of(
        lambda: open_cpm(tmp_path, heads=CONFIG.n_head)
    )


def test_a_pipeline_stage_is_refused_as_cpms(tmp_path: Path, state: State) -> None:
    """As newer Megatron-LM names its folders; CPM's programs have no pipelines."""
    files = write_megatron(tmp_path, state, 1, layout="megatron", extras=False)
    for stage in (0, 1):
        shutil.copytree(files[0].parent, files[0].parent.with_name(f"mp_rank_00_{stage:03d}"))
    shutil.rmtree(files[0].parent)
    message = error_of(lambda: open_cpm(tmp_path, heads=24))
    last = files[0].parent.with_name("mp_rank_00_001") / "model_optim_rng.pt"
    assert message == f"{last}: of a pipeline stage, which CPM's Megatron does not have"


def lay_out(root: Path, state: State, folder: str, name: str, trackers: dict[str, str]) -> None:
    """Two ranks' files in ``folder`` under the names that ``name`` gives, and files that name the iteration."""
    for rank, tensors in enumerate(shards(state, 2)):
        file = root / folder / name.format(rank=rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"module": tensors}, file)
    for tracker, text in trackers.items():
        (root / tracker).write_text(text)


def assert_reads(path: Path, state: State) -> None:
    checkpoint = open_cpm(path, heads=CONFIG.n_head)
    for name in checkpoint.dtypes:
        assert np.array_equal(checkpoint.read(name, np.dtype(np.float32)), state[megatron_name(name)].numpy()), name


DEEPSPEED = "mp_rank_{rank:02d}_model_states.pt"
LAYOUTS: dict[str, tuple[str, str, dict[str, str], str]] = {
    "Megatron": ("iter_0000700", "mp_rank_{rank:02d}/model_optim_rng.pt", {TRACKER: "700"}, "."),
    "a release": ("release", "mp_rank_{rank:02d}/model_optim_rng.pt", {TRACKER: "release\n"}, "."),
    "a distributed optimizer": ("iter_0000700", "mp_rank_{rank:02d}/model_rng.pt", {TRACKER: "700"}, "."),
    "the folder of an iteration": ("iter_0000700", "mp_rank_{rank:02d}/model_rng.pt", {}, "iter_0000700"),
    "one stage": ("iter_0000700", "mp_rank_{rank:02d}_000/model_rng.pt", {TRACKER: "700"}, "."),
    "a stage, an expert": (
        "iter_0000700",
        "mp_rank_{rank:02d}_000_000/model_optim_rng.pt",
        {TRACKER: "700"},
        ".",
    ),
    "DeepSpeed": ("global_step31", DEEPSPEED, {"latest": "global_step31\n"}, "."),
    "DeepSpeed, a number": ("31", DEEPSPEED, {"latest": "31"}, "."),
    "DeepSpeed, a tag of one's own": (
        "best-so-far",
        DEEPSPEED,
        {"latest": "best-so-far"},
        ".",
    ),
    "DeepSpeed's own folder": ("global_step31", DEEPSPEED, {}, "global_step31"),
    "DeepSpeed and Megatron's tracker": (
        "global_step31",
        DEEPSPEED,
        {"latest": "global_step30", TRACKER: "31"},
        ".",
    ),
    "a Trainer's": (
        "checkpoint-31/global_step31",
        DEEPSPEED,
        {"checkpoint-31/latest": "global_step31"},
        "checkpoint-31",
    ),
}


@pytest.mark.parametrize("case", sorted(LAYOUTS))
def test_every_layout_of_ranks_is_found(case: str, state: State, tmp_path: Path) -> None:
    folder, name, trackers, given = LAYOUTS[case]
    lay_out(tmp_path, state, folder, name, trackers)
    for rank in (0, 1):  # what optimizers leave there
        torch.save({"optimizer": 1}, tmp_path / folder / f"zero_pp_rank_0_mp_rank_{rank:02d}_optim_states.pt")
        torch.save({"optimizer": 1}, tmp_path / folder / f"bf16_zero_pp_rank_1_mp_rank_{rank:02d}_optim_states.pt")
        (tmp_path / folder / f"mp_rank_{rank:02d}_000_001").mkdir()
        torch.save({"optimizer": 1}, tmp_path / folder / f"mp_rank_{rank:02d}_000_001" / "optim.pt")
        beside = (tmp_path / folder / name.format(rank=rank)).parent
        torch.save({"optimizer": 1}, beside / "distrib_optim.pt")
    assert_reads(tmp_path / given, state)
    assert open_checkpoint(tmp_path / given, heads=CONFIG.n_head).info.format == "megatron"


@pytest.mark.parametrize("name", ["mp_rank_00/model_rng.pt", "mp_rank_00_000/model_optim_rng.pt"])
def test_a_file_given_alone_is_the_whole_model_of_one_rank(name: str, state: State, tmp_path: Path) -> None:
    file = tmp_path / "iter_0000009" / name
    file.parent.mkdir(parents=True)
    torch.save({"model": state}, file)
    assert_reads(file, state)
    assert single_rank_file(Candidate(tmp_path)) is None, "nothing names the iteration"
    assert single_rank_file(Candidate(tmp_path), "9") == file
    assert single_rank_file(Candidate(tmp_path / "iter_0000009")) == file
    assert single_rank_file(Candidate(file)) is None


def test_several_ranks_have_no_single_file(state: State, tmp_path: Path) -> None:
    write_megatron(tmp_path, state, 2)
    assert single_rank_file(Candidate(tmp_path)) is None
