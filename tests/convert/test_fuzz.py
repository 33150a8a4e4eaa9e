"""Damaged checkpoints, thousands of them: a correct conversion, or exit code 2 and one line. Nothing else.

``GPT2_SAVEDMODEL_FUZZ`` sets the number of cases (default 600; ``make test-slow`` takes 2,000). The checkpoint is
written again as one shard, which takes no graph and asks for every tensor.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.__main__ import main
from tests.helpers.checkpoints import random_state, write_megatron
from tf_model.config import GPT2Config

CASES = int(os.environ.get("GPT2_SAVEDMODEL_FUZZ", "600"))
CONFIG = GPT2Config(vocab_size=24, n_positions=8, n_embd=12, n_layer=2, n_head=2)
Files = dict[str, bytes]


class Tensors(dict[str, np.ndarray]):
    def __repr__(self) -> str:  # hypothesis prints the arguments
        return "the tensors"


class Case(NamedTuple):
    """A folder to work in, the files of a good checkpoint and of another model, and whether they lack checksums."""

    folder: Path
    files: Files
    without_checksums: bool

    def __repr__(self) -> str:
        return "legacy" if self.without_checksums else "zip"


@pytest.fixture(scope="module", params=[False, True], ids=["zip", "legacy"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("fuzz")
    for name, seed in (("CPM", 0), ("other", 1)):
        state = random_state(CONFIG, np.random.default_rng(seed))
        write_megatron(folder / name, state, 2, legacy=request.param, dtype=torch.float16)
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return Case(folder, files, request.param)


def convert(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, np.ndarray] | None:
    """The converted tensors, or None when it was refused as it should be. The destination is removed again."""
    output = folder / "copy"
    options = ["--tensor-parallel", "1", "--dtype", "float32", "--heads", "2", "--quiet"]
    code = main(["to-megatron", "--checkpoint", str(folder / "CPM"), "--output", str(output), *options])
    out, err = capsys.readouterr()
    assert out == ""
    if code:
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err[:-1].isprintable(), err
        assert not output.exists()
        found = None
    else:
        assert err == ""
        (file,) = output.glob("*/mp_rank_00_model_states.pt")
        found = {name: tensor.numpy() for name, tensor in torch.load(file)["module"].items()}
        shutil.rmtree(output)
    assert {path.name for path in folder.iterdir()} == {"CPM", "other"}  # nothing anywhere else
    return found


def shard(rank: int) -> str:
    return f"CPM/80000/mp_rank_{rank:02d}_model_states.pt"


Damage = Callable[[Files], Files]


def flip(rank: int, places: list[tuple[float, int]]) -> Damage:
    def damage(files: Files) -> Files:
        content = bytearray(files[shard(rank)])
        for place, bit in places:
            content[int(place * len(content))] ^= 1 << bit
        return {**files, shard(rank): bytes(content)}

    return damage


def cut(rank: int, start: float, end: float, fill: bytes) -> Damage:
    """A part of the file is lost, or overwritten with as many bytes."""

    def damage(files: Files) -> Files:
        content = files[shard(rank)]
        low, high = sorted((int(start * len(content)), int(end * len(content))))
        return {**files, shard(rank): content[:low] + fill * (high - low) + content[high:]}

    return damage


def rename_in_pickle(rank: int, old: bytes, new: bytes) -> Damage:
    """A key of the same length but another name, with the checksum of the zip entry put right."""

    def damage(files: Files) -> Files:
        content = files[shard(rank)]
        if not zipfile.is_zipfile(io.BytesIO(content)):
            return {**files, shard(rank): content.replace(old, new)}
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as copy:
            for entry in source.infolist():
                data = source.read(entry)
                copy.writestr(entry.filename, data.replace(old, new) if entry.filename.endswith(".pkl") else data)
        return {**files, shard(rank): target.getvalue()}

    return damage


def swap(a: str, b: str) -> Damage:
    return lambda files: {**files, a: files[b], b: files[a]}


def lose(name: str) -> Damage:
    return lambda files: {key: value for key, value in files.items() if key != name}


def track(text: bytes) -> Damage:
    return lambda files: {**files, "CPM/latest_checkpointed_iteration.txt": text}


RANK = st.integers(0, 1)
PLACE = st.floats(0, 1, exclude_max=True)
EDGES = st.floats(0, 0.1) | st.floats(0.95, 0.9999)
"""Where zip archives and legacy files keep what describes the rest."""
NAMES = [b"word_embeddings", b"query_key_value", b"dense_h_to_4h", b"final_layernorm", b"HalfStorage", b"module"]
OTHERS = [name.replace("CPM", "other") for name in (shard(0), shard(1))]
DAMAGE = st.one_of(
    st.builds(flip, RANK, st.lists(st.tuples(PLACE, st.integers(0, 7)), min_size=1, max_size=4)),
    st.builds(flip, RANK, st.lists(st.tuples(EDGES, st.integers(0, 7)), min_size=1, max_size=4)),
    st.builds(cut, RANK, PLACE, st.just(1.0) | PLACE, st.sampled_from([b"", b"\0", b"\xff", b"("])),
    st.builds(
        lambda rank, name, at, byte: rename_in_pickle(rank, name, name[:at] + bytes([byte]) + name[at + 1 :]),
        RANK, st.sampled_from(NAMES), st.integers(0, 3), st.integers(0, 255),
    ),
    st.builds(swap, st.sampled_from([shard(0), shard(1)]), st.sampled_from([shard(0), shard(1), *OTHERS])),
    st.builds(lose, st.sampled_from([shard(0), shard(1), "CPM/latest_checkpointed_iteration.txt"])),
    st.builds(track, st.binary(max_size=12) | st.sampled_from([b"80000", b" 80000\n", b"80001", b"release", b"0"])),
)  # fmt: skip


def put(folder: Path, files: Files) -> None:
    for path in (folder / "CPM" / "80000").iterdir():
        path.unlink()
    (folder / "CPM" / "latest_checkpointed_iteration.txt").unlink(missing_ok=True)
    for name, content in files.items():
        if name.startswith("CPM/"):
            (folder / name).write_bytes(content)


@pytest.fixture
def right(case: Case, capsys: pytest.CaptureFixture[str]) -> Tensors:
    """What the undamaged checkpoint holds."""
    put(case.folder, case.files)
    tensors = convert(case.folder, capsys)
    assert tensors is not None
    assert tensors["word_embeddings.weight"].shape == (24, 12)
    return Tensors(tensors)


@settings(
    max_examples=CASES // 2,  # for each of the two serialisations
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(damages=st.lists(DAMAGE, min_size=1, max_size=2))
def test_damage_is_refused_in_one_line_or_changes_nothing(
    case: Case,
    capsys: pytest.CaptureFixture[str],
    right: dict[str, np.ndarray],
    damages: list[Damage],
) -> None:
    folder, files, without_checksums = case
    spoilt = files
    for damage in damages:
        with contextlib.suppress(LookupError, OSError, ValueError, zipfile.BadZipFile):  # what it needs is lost already
            spoilt = damage(spoilt)
    if [spoilt.get(shard(rank)) for rank in (0, 1)] == [files[name] for name in OTHERS]:
        return  # all of the other model: nothing is wrong with that
    put(folder, spoilt)
    found = convert(folder, capsys)
    if found is None or without_checksums:  # the legacy format has none: a changed weight cannot be told
        return
    assert found.keys() == right.keys()
    for name, value in right.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
