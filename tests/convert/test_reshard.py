"""``to-megatron`` and ``reshard``: bit for bit the shards that upstream would have, complete or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.__main__ import main
from convert.formats.megatron.writing import possible_ranks
from convert.output.manifest import check
from tests.conftest import ROOT
from tests.helpers.assertions import assert_one_line_error
from tests.helpers.checkpoints import State, random_state, write_megatron
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=60, n_positions=10, n_embd=24, n_layer=2, n_head=12, n_inner=36)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
TRACKER = "latest_checkpointed_iteration.txt"
WORD = "word_embeddings.weight"
POSITION = "position_embeddings.weight"
FINAL = "transformer.final_layernorm.weight"
QKV = "transformer.layers.1.attention.query_key_value.weight"
DENSE = "transformer.layers.0.attention.dense.weight"
BESIDE = {
    "optimizer": None,
    "lr_scheduler": None,
    "csr_tensor_module_names": [],
    "skipped_steps": 0,
    "global_steps": 0,
    "global_samples": 0,
    "dp_world_size": 1,
}
"""What DeepSpeed's loader asks for."""


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.itemsize == 2 else torch.int32)


def make_state(dtype: str) -> State:
    """Random weights; in each kind of split the numbers that arithmetic would change."""
    state = {name: tensor.to(DTYPES[dtype]) for name, tensor in random_state(CONFIG, np.random.default_rng(3)).items()}
    limits = torch.finfo(DTYPES[dtype])
    for name in (WORD, QKV, DENSE, POSITION):
        bits(state[name])[-1, 5] = 1  # the smallest of the denormal numbers
        state[name][0, :4] = torch.tensor([-0.0, limits.max, limits.min, limits.tiny])
    return state


def of_rank(name: str, tensor: torch.Tensor, p: int, rank: int) -> torch.Tensor:
    """What ``rank`` of ``p`` holds, by index: the rule of ``mpu/layers.py`` and ``mpu/transformer.py``."""
    module, kind = name.split(".")[-2:]
    if module == "query_key_value":  # its rows of Q, of K, of V
        share = len(tensor) // 3 // p
        starts = [part * len(tensor) // 3 + rank * share for part in range(3)]
        return tensor[[row for start in starts for row in range(start, start + share)]]
    if module in ("word_embeddings", "dense_h_to_4h"):
        share = len(tensor) // p
        return tensor[rank * share : (rank + 1) * share]
    if module in ("dense", "dense_4h_to_h") and kind == "weight":
        share = tensor.shape[1] // p
        return tensor[:, rank * share : (rank + 1) * share]
    return tensor


def load(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def assert_holds(root: Path, state: State, p: int) -> None:
    """The folder has ``state`` in ``p`` shards, and nothing else."""
    assert sorted(path.name for path in root.iterdir()) == ["80000", TRACKER, "manifest.json"]
    assert (root / TRACKER).read_text() == "80000"
    files = sorted((root / "80000").iterdir())
    assert [file.name for file in files] == [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(p)]
    for rank, file in enumerate(files):
        content = load(file)
        module = content.pop("module")
        assert content == {**BESIDE, "mp_world_size": p, "iteration": 80000}
        assert module.keys() == state.keys()
        for name, tensor in state.items():
            expected, found = of_rank(name, tensor, p, rank), module[name]
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
            assert torch.equal(bits(found), bits(expected)), name
            assert found.is_contiguous()
            assert found.untyped_storage().nbytes() == found.nbytes, name
        values = sum(tensor.nbytes for tensor in module.values())
        assert values < file.stat().st_size < values + 600 * len(module) + 2000


def reshard(source: Path, output: Path, p: int, *options: str, command: str = "reshard", quiet: bool = True) -> int:
    arguments = ["--checkpoint", str(source), "--output", str(output), "--tensor-parallel", str(p), "--heads", "12"]
    return main([command, *arguments, *options, *(["--quiet"] if quiet else [])])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("p", "q"), [*itertools.product((1, 2, 4), repeat=2), (2, 3), (3, 2), (4, 6), (1, 12)])
def test_reshard_and_back_keeps_every_bit(p: int, q: int, dtype: str, tmp_path: Path) -> None:
    state = make_state(dtype)
    source = write_megatron(tmp_path / "source", state, p, extras=False)
    assert reshard(tmp_path / "source", tmp_path / "there", q, command="to-megatron") == 0
    assert_holds(tmp_path / "there", state, q)
    assert reshard(tmp_path / "there", tmp_path / "back", p) == 0
    assert_holds(tmp_path / "back", state, p)
    for before, after in zip(source, sorted((tmp_path / "back" / "80000").iterdir()), strict=True):
        old, new = load(before)["module"], load(after)["module"]
        assert all(torch.equal(bits(old[name]), bits(tensor)) for name, tensor in new.items())


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_type_is_written(dtype: str, to: str, tmp_path: Path) -> None:
    """As PyTorch casts; and where each tensor has its own, it keeps it unless told otherwise."""
    state = {name: tensor.to(DTYPES[dtype]) for name, tensor in random_state(CONFIG, np.random.default_rng(3)).items()}
    state[FINAL] = state[FINAL].float()
    write_megatron(tmp_path / "source", state, 2)
    assert reshard(tmp_path / "source", tmp_path / "same", 3) == 0
    assert_holds(tmp_path / "same", state, 3)
    assert reshard(tmp_path / "source", tmp_path / "cast", 4, "--dtype", to) == 0
    assert_holds(tmp_path / "cast", {name: tensor.to(DTYPES[to]) for name, tensor in state.items()}, 4)


def test_double_precision_is_kept(tmp_path: Path) -> None:
    state = {name: tensor.double() for name, tensor in random_state(CONFIG, np.random.default_rng(3)).items()}
    write_megatron(tmp_path / "source", state, 2)
    assert reshard(tmp_path / "source", tmp_path / "copy", 1) == 0
    found = load(tmp_path / "copy" / "80000" / "mp_rank_00_model_states.pt")["module"]
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_files_are_no_larger_than_those_of_torch(tmp_path: Path) -> None:
    """Upstream's script saves views with the storage of the whole; here a shard has its own values."""
    write_megatron(tmp_path / "source", make_state("float32"), 1)
    assert reshard(tmp_path / "source", tmp_path / "copy", 4) == 0
    for file in (tmp_path / "copy" / "80000").iterdir():
        content = load(file)
        torch.save(content, tmp_path / file.name)
        assert file.stat().st_size <= (tmp_path / file.name).stat().st_size


def test_every_way_to_a_number_of_ranks_gives_the_same_bytes(tmp_path: Path) -> None:
    """A copy depends on the weights alone: not on the way, the day or the number of shards in between."""
    write_megatron(tmp_path / "source", make_state("float16"), 2)
    for p, name, source in ((2, "direct", "source"), (1, "1", "source"), (4, "4", "1"), (2, "around", "4")):
        assert reshard(tmp_path / source, tmp_path / name, p) == 0
    for rank in (0, 1):
        assert shard(tmp_path / "direct", rank).read_bytes() == shard(tmp_path / "around", rank).read_bytes()


def iteration_in(root: Path) -> tuple[str, Any]:
    """What the tracker file says, and the file that it leads to."""
    tracked = (root / TRACKER).read_text()
    return tracked, load(root / tracked / "mp_rank_00_model_states.pt").get("iteration")


@pytest.mark.parametrize("layout", ["deepspeed", "megatron"])
@pytest.mark.parametrize(("key", "extras"), [("module", True), ("model", False)])
def test_every_iteration_and_layout_is_read(layout: Any, key: Any, extras: bool, tmp_path: Path) -> None:
    state = make_state("float16")
    options: dict[str, Any] = {"layout": layout, "key": key, "extras": extras}
    write_megatron(tmp_path / "a", state, 2, iteration=70, **options)
    write_megatron(tmp_path / "a", state, 2, iteration="release", **options)
    assert reshard(tmp_path / "a", tmp_path / "released", 1) == 0
    assert iteration_in(tmp_path / "released") == ("release", 80000 if extras else None)
    assert reshard(tmp_path / "a", tmp_path / "70", 1, "--iteration", "70") == 0
    assert iteration_in(tmp_path / "70") == ("70", 70)
    (file,) = (tmp_path / "70" / "70").iterdir()
    assert reshard(file, tmp_path / "of a file", 1) == 0
    assert iteration_in(tmp_path / "of a file") == ("70", 70)
    shutil.copy(file, tmp_path / "mine.pt")
    assert reshard(tmp_path / "mine.pt", tmp_path / "of another name", 1) == 0
    assert iteration_in(tmp_path / "of another name") == ("70", 70)
    torch.save({"module": load(file)["module"]}, tmp_path / "mine.pt")
    assert reshard(tmp_path / "mine.pt", tmp_path / "of no iteration", 1) == 0
    assert iteration_in(tmp_path / "of no iteration") == ("release", None)


def test_notes_and_the_closing_line_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One note on what a training would need, which a copy has no more; one closing line."""
    write_megatron(tmp_path / "source", make_state("float16"), 2)
    assert reshard(tmp_path / "source", tmp_path / "copy", 4, quiet=False) == 0
    out, err = capsys.readouterr()
    names = "optimizer, lr_scheduler, args, random_rng_state, np_rng_state, torch_rng_state, rng_tracker_states"
    assert err == f"note: {tmp_path / 'source'}: only the weights are written; left out: {names}\n"
    assert out.startswith(f"{CONFIG.parameter_count:,} parameters as float16 in 4 files, ")
    assert out.endswith(f" s: {tmp_path / 'copy'}\n")
    assert out.count("\n") == 1
    assert reshard(tmp_path / "copy", tmp_path / "again", 4, quiet=False) == 0
    assert capsys.readouterr().err == ""
    assert reshard(tmp_path / "source", tmp_path / "third", 4) == 0
    assert capsys.readouterr() == ("", "")


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it was run",)


def test_nothing_in_the_source_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = make_state("float16")
    write_megatron(tmp_path / "source", state, 2, edit=lambda rank, content: content.update(hook=Hostile()))
    assert reshard(tmp_path / "source", tmp_path / "copy", 1) == 0
    assert_holds(tmp_path / "copy", state, 1)
    assert not (tmp_path / "it was run").exists()


def test_the_manifest_names_source_options_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_megatron(tmp_path / "source", make_state("float16"), 2)
    copy = tmp_path / "copy"
    assert reshard(tmp_path / "source", copy, 4, "--dtype", "bfloat16") == 0
    manifest = json.loads((copy / "manifest.json").read_text())
    for root, files in ((tmp_path / "source", manifest["source"]["files"]), (copy, manifest["files"])):
        for name, entry in files.items():
            content = (root / name).read_bytes()
            assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["source"]["files"].keys() == {f"80000/{file.name}" for file in source}
    assert manifest["files"].keys() == {TRACKER, *(f"80000/mp_rank_{rank:02d}_model_states.pt" for rank in range(4))}
    assert manifest["options"] == {"dtype": "bfloat16", "tensor_parallel": 4, "iteration": 80000}
    assert GPT2Config.from_dict(manifest["config"]) == CONFIG
    assert str(tmp_path) not in json.dumps(manifest)
    assert main(["check", str(copy)]) == 0
    assert "every file is as it was written" in capsys.readouterr().out
    file = copy / "80000" / "mp_rank_03_model_states.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (copy / TRACKER).unlink()
    assert main(["check", str(copy)]) == 2
    error = capsys.readouterr().err
    assert "80000/mp_rank_03_model_states.pt has changed" in error
    assert f"{TRACKER} is missing" in error


def test_memory_stays_flat(tmp_path: Path) -> None:
    """75 MB of weights, 1 MB the largest; the blocks of checksums and hashes are what is large here."""
    config = GPT2Config(vocab_size=60, n_positions=10, n_embd=256, n_layer=24, n_head=8)
    write_megatron(tmp_path / "source", random_state(config, np.random.default_rng(0)), 2, extras=False)
    tracemalloc.start()
    try:
        assert reshard(tmp_path / "source", tmp_path / "copy", 4, "--heads", "8") == 0
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_the_possible_numbers_of_ranks_are_listed() -> None:
    """The figures of CPM's published models; and widths that do not follow from each other."""
    sizes = {"vocab_size": 30000, "n_positions": 1024}
    assert possible_ranks(GPT2Config(**sizes, n_embd=2560, n_layer=32, n_head=32)) == [1, 2, 4, 8, 16]
    assert possible_ranks(GPT2Config(**sizes, n_embd=768, n_layer=12, n_head=12)) == [1, 2, 3, 4, 6, 12]
    assert possible_ranks(GPT2Config(30001, 1024, 768, 12, 12)) == [1]
    assert possible_ranks(GPT2Config(30000, 1024, 768, 12, 12, n_inner=3070)) == [1, 2]


def shard(root: Path, rank: int) -> Path:
    return root / "80000" / f"mp_rank_{rank:02d}_model_states.pt"


def change(rank: int, edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Spoils the weights of a rank."""

    def apply(root: Path) -> None:
        content = torch.load(shard(root, rank), weights_only=False)
        edit(content["module"])
        torch.save(content, shard(root, rank))

    return apply


def damage(root: Path) -> None:
    content = bytearray(shard(root, 1).read_bytes())
    values = bits(load(shard(root, 1))["module"][QKV]).numpy().tobytes()
    content[content.index(values) + 100] ^= 1
    shard(root, 1).write_bytes(content)


def nothing(root: Path) -> None:
    pass


BAD: dict[str, tuple[Callable[[Path], object], list[str], list[str]]] = {
    "5 ranks": (
        nothing,
        ["--tensor-parallel", "5"],
        ["--tensor-parallel 5: it does not divide heads 12, hidden size 24, feed-forward width 36: ",
         "possible for this model: 1, 2, 3, 4, 6, 12"],
    ),
    "8 ranks": (nothing, ["--tensor-parallel", "8"], ["not divide heads 12, vocabulary 60, feed-forward width 36: "]),
    "24 ranks": (nothing, ["--tensor-parallel", "24"], ["it does not divide heads 12, vocabulary 60, feed-forward "]),
    "no ranks": (nothing, ["--tensor-parallel", "0"], ["--tensor-parallel 0: expected 1 or more: possible", " 1, 2, "]),
    "-2 ranks": (nothing, ["--tensor-parallel", "-2"], ["--tensor-parallel -2: expected 1 or more"]),
    "other heads": (nothing, ["--heads", "6", "--tensor-parallel", "12"], ["not divide heads 6: ", " 1, 2, 3, 6\n"]),
    "impossible heads": (nothing, ["--heads", "5"], ["5 heads do not fit (hidden size 24, 2 ranks)"]),
    "iteration": (nothing, ["--iteration", "7"], ["it has the iterations 80000"]),
    "absent": (lambda root: root.rename(root.with_name("elsewhere")), [], ["CPM: no such file or folder"]),
    "no tracker": (lambda root: (root / TRACKER).unlink(), [], [f"nor {TRACKER} here"]),
    "shard missing": (lambda root: shard(root, 1).unlink(), [], ["mp_rank_01_model_states.pt is missing"]),
    "shard cut off": (lambda root: os.truncate(shard(root, 1), 9000), [], ["mp_rank_01_model_states.pt: a zip "]),
    "shard damaged": (damage, [], ["mp_rank_01_model_states.pt: storage ", "is damaged: its CRC-32 is"]),
    "tensor missing": (change(0, lambda module: module.pop(QKV)), [], [f"1 missing tensor: {QKV}"]),
    "replicas differ": (
        change(1, lambda module: module[FINAL].add_(1)), [], [f"mp_rank_01_model_states.pt: {FINAL}: differs from "],
    ),
    "NaN": (
        change(1, lambda module: module[DENSE].view(-1).__setitem__(7, float("nan"))), [],
        [f"{DENSE}: 1 of 288 values are NaN"],
    ),
    "too large": (
        change(0, lambda module: module.update({WORD: module[WORD].float() + 1e6})), ["--dtype", "float16"],
        [f"{WORD}: float16 cannot hold 720 of 1440 values", "convert to float32 or bfloat16"],
    ),
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good checkpoint of two shards."""
    write_megatron(tmp_path / "in" / "CPM", make_state("float16"), 2, extras=False)
    return tmp_path / "in" / "CPM"


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_refused_in_one_line(
    case: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2, nothing at the destination."""
    spoil, options, words = BAD[case]
    spoil(root)
    assert reshard(root, tmp_path / "out" / "copy", 4, *options) == 2
    assert_one_line_error(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_unknown_heads_are_asked_for(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", str(root), "--output", str(tmp_path / "copy"), "--tensor-parallel", "2"]
    assert main(["reshard", *arguments]) == 2
    assert "give --heads" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["reshard", "--checkpoint", str(root), "--output", str(tmp_path / "copy")])
    assert exit_.value.code == 2
    assert "--tensor-parallel" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def test_a_full_disk_is_found_before_the_first_byte(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert reshard(root, tmp_path / "out" / "copy", 4) == 2
    assert "kB are needed, 1.0 kB are free" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def content_of(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_nothing_but_an_older_copy_is_replaced(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the source, nor what is around it; not one that a training has gone on from, or that has notes beside it."""
    copy = tmp_path / "copy"
    assert reshard(root, copy, 4) == 0
    before = content_of(tmp_path)
    assert reshard(root, copy, 1) == 2
    assert "copy: exists already; choose another --output, or replace it with --force" in capsys.readouterr().err
    for output in (root, root / "80000", root.parent, tmp_path):
        assert reshard(root, output, 1, "--force") == 2
        assert_one_line_error(capsys)
    assert reshard(copy, copy, 1, "--force") == 2
    assert "is the input" in capsys.readouterr().err
    assert content_of(tmp_path) == before
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / TRACKER).write_text("80000")
    (tmp_path / "linked" / "80000").symlink_to(copy / "80000")
    assert reshard(tmp_path / "linked", copy, 1, "--force") == 2
    assert f"has {shard(copy, 0)} in it" in capsys.readouterr().err
    assert reshard(root, copy, 1, "--force") == 0
    assert_holds(copy, make_state("float16"), 1)
    for added in ("80500/mp_rank_00_model_states.pt", "notes.txt"):
        (copy / added).parent.mkdir(exist_ok=True)
        (copy / added).write_text("precious")
        before = content_of(tmp_path)
        assert reshard(root, copy, 4, "--force") == 2
        assert "has files in it that this program did not write" in capsys.readouterr().err
        assert content_of(tmp_path) == before
        (copy / added).unlink()


def test_any_name_of_a_folder_works_but_one_that_is_not_text(root: Path, tmp_path: Path) -> None:
    """TensorFlow has no say here: its patterns are names like others."""
    assert reshard(root, tmp_path / "模型 [1]*?", 1) == 0
    assert_holds(tmp_path / "模型 [1]*?", make_state("float16"), 1)


KILLED = """
import os, signal, sys
from convert.formats.megatron import cpm_writer as megatron_writer

split, left = megatron_writer.split, [{number}]

def deadly(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), {signal})
    return split(*arguments)

megatron_writer.split = deadly
signal.signal(signal.SIGINT, signal.default_int_handler)
from convert.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [1, 28])  # before the first tensor, before the last one
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_killed_run_leaves_nothing(name: str, number: int, root: Path, tmp_path: Path) -> None:
    """Nothing is at the destination; the older copy still is, where there was one. The next run clears up."""
    copy, kill = tmp_path / "out" / "copy", signal.Signals[name]
    arguments = ["reshard", "--checkpoint", root, "--output", copy, "--heads", "12", "--force", "--tensor-parallel"]
    for older in (False, True):
        result = subprocess.run(
            [sys.executable, "-c", KILLED.format(number=number, signal=int(kill)), *arguments, "4"],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert result.returncode == (-kill if kill == signal.SIGKILL else 128 + kill), result.stderr
        assert "Traceback" not in result.stderr
        assert copy.exists() == older
        if kill != signal.SIGKILL:
            assert (tmp_path / "out").exists() == older
        if older:
            assert_holds(copy, make_state("float16"), 1)
        else:
            assert reshard(root, copy, 1) == 0
        assert check(copy).intact
        assert reshard(root, copy, 1, "--force") == 0
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["copy"]


@pytest.mark.parametrize("limit", [3000, 8000])
def test_a_disk_that_fills_up_leaves_nothing(limit: int, root: Path, tmp_path: Path) -> None:
    """The kernel's limit on a file's size stands in for a disk."""
    code = (
        "import resource, signal, sys\n"
        "from convert.__main__ import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    copy = tmp_path / "out" / "copy"
    arguments = ["reshard", "--checkpoint", root, "--output", copy, "--heads", "12", "--tensor-parallel", "4"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (result.returncode, result.stderr) == (2, f"error: {copy}: the disk is full; nothing was left behind\n")
    assert not (tmp_path / "out").exists()


PEAK = """
import sys
from convert.__main__ import main

code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""
"""The command in a process of its own, which says its peak of resident memory in KB, mapped files included."""


@pytest.mark.slow
def test_all_of_cpm_generate_is_resharded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2,597,073,920 parameters from 2 shards to 1, 4 and 2 again: the same bits, in less than 1.5 GB of memory."""
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip("20 GB of free disk are needed")
    writer = [sys.executable, "-m", "benchmarks.random_checkpoint", "--shape", "generate", "--tensor-parallel", "2"]
    subprocess.run([*writer, "--output", str(tmp_path / "first")], cwd=ROOT, check=True, capture_output=True)
    source = tmp_path / "first"
    for number, p in enumerate((1, 4, 2)):
        output = tmp_path / f"{number} in {p}"
        arguments = ["--checkpoint", source, "--output", output, "--tensor-parallel", str(p)]
        result = subprocess.run(
            [sys.executable, "-c", PEAK, "reshard", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        closing, peak = result.stdout.splitlines()
        with capsys.disabled():
            print(f"\n{closing}; peak {int(peak) * 1024 / 1e9:.2f} GB")
        assert int(peak) * 1024 < 1.5e9
        if number:
            shutil.rmtree(source)
        source = output
    for rank in (0, 1):
        before, after = (
            torch.load(shard(folder, rank), weights_only=True, mmap=True)["module"]
            for folder in (tmp_path / "first", source)
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(bits(tensor), bits(after[name])) for name, tensor in before.items())
    shutil.rmtree(tmp_path)
