"""The benchmark of the conversion runs and prints a table; how fast anything is, is not tested."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import convert as benchmark
from benchmarks.random_checkpoint import DTYPES, SHAPES, parse_shape, write_checkpoint
from convert.__main__ import main as convert
from convert.formats.registry import open_checkpoint
from tests.conftest import ROOT
from tf_model.config import GPT2Config

TINY = GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=4)


def test_shapes() -> None:
    assert parse_shape("2x16x4x40x8") == TINY
    assert parse_shape("12x768x12") == parse_shape("distill") == SHAPES["distill"]
    assert parse_shape("generate").parameter_count == 2_597_073_920
    for text in ("", "tiny", "2x16", "2x16x4x40x8x1", "0x16x4", "2x-16x4"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected distill"):
            parse_shape(text)


@pytest.mark.parametrize(("p", "dtype"), [(1, "float16"), (2, "bfloat16"), (4, "float32")])
def test_random_checkpoints(p: int, dtype: str, tmp_path: Path) -> None:
    """Whole models; no two tensors, layers or ranks are alike except what is replicated, and a seed is repeatable."""
    files = write_checkpoint(tmp_path / "a", TINY, p, DTYPES[dtype])
    checkpoint = open_checkpoint(tmp_path / "a", heads=4, format="megatron")
    assert checkpoint.config == TINY
    assert set(checkpoint.dtypes.values()) == {DTYPES[dtype]}
    seen: dict[bytes, str] = {}
    for name in TINY.tensor_shapes():
        values = checkpoint.read(name, np.dtype(np.float32))  # replicated tensors are compared on the way
        norm = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
        assert abs(values.mean() - norm) < 0.02
        assert 0.005 < values.std() < 0.04
        assert seen.setdefault(values.tobytes()[:32], name) == name
    states = [torch.load(file, weights_only=True)["module"] for file in files]
    embeddings = [state["word_embeddings.weight"].float().numpy().tobytes() for state in states]
    assert len(set(embeddings)) == p
    again = write_checkpoint(tmp_path / "b", TINY, p, DTYPES[dtype])
    other = write_checkpoint(tmp_path / "c", TINY, p, DTYPES[dtype], seed=1)
    for a, b, c in zip(files, again, other, strict=True):
        assert a.read_bytes() == b.read_bytes() != c.read_bytes()


def test_values_go_on_behind_the_block(tmp_path: Path) -> None:
    """A matrix larger than the block has no two equal rows."""
    config = GPT2Config(vocab_size=700, n_positions=8, n_embd=2000, n_layer=1, n_head=4)
    write_checkpoint(tmp_path / "a", config, 1, DTYPES["float16"])
    checkpoint = open_checkpoint(tmp_path / "a", heads=4, format="megatron")
    assert len(np.unique(checkpoint.read("wte.weight", np.dtype(np.float16)).view(np.uint16), axis=0)) == 700


@pytest.mark.slow
def test_the_notebooks_way_gives_the_same_weights(tmp_path: Path) -> None:
    import tensorflow as tf

    from benchmarks.notebook_way import convert as notebook

    files = write_checkpoint(tmp_path / "in", TINY, 2, DTYPES["float16"])
    notebook(files[0].parent, tmp_path / "theirs", 4, "float32")
    options = ["--checkpoint", tmp_path / "in", "--output", tmp_path / "ours", "--heads", 4, "--quiet"]
    assert convert(["pytorch-to-tf", *map(str, options)]) == 0
    ours, theirs = (
        tf.train.load_checkpoint(str(tmp_path / name / "variables" / "variables")) for name in ("ours", "theirs")
    )
    names = [name for name in ours.get_variable_to_shape_map() if name.startswith("weights/")]
    assert len(names) == len(TINY.tensor_shapes())
    for name in names:
        block = re.fullmatch(r"weights/h\.\.(\d+)(.*)", name)  # TensorFlow's writer knows whole variables only
        expected = theirs.get_tensor(f"stacks/h{block[2]}")[int(block[1])] if block else theirs.get_tensor(name)
        np.testing.assert_array_equal(ours.get_tensor(name), expected)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work, document = tmp_path / "work", tmp_path / "performance.md"
    work.mkdir()
    document.write_text(f"# Performance\n\nbefore\n\n{benchmark.BEGIN}\nold\n{benchmark.END}\n\nafter\n")
    arguments = ["--shape", "2x16x4x40x8", "--tensor-parallel", "2", "--repeat", "1"]
    benchmark.main([*arguments, "--folder", str(work), "--write", str(document)])
    out = capfd.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| 2x16x4x40x8")]
    assert [row[1:3] for row in rows] == [["2", "float32"]]
    assert len(rows[0]) == 16
    assert "-" not in rows[0]
    assert "RAM" in out
    assert document.read_text() == (
        f"# Performance\n\nbefore\n\n{benchmark.BEGIN}\n{out.rstrip()}\n{benchmark.END}\n\nafter\n"
    )
    assert not list(work.iterdir())


def test_too_little_memory_for_the_notebooks_way() -> None:
    case = benchmark.Case("generate", 2, "float32")
    assert 21.5e9 < case.notebook_memory < 22.5e9
    ours, half, half_flushed, whole, whole_flushed = (
        [benchmark.Run(seconds, 10**9)] * 2 for seconds in (60.0, 20.0, 40.0, 30.0, 120.0)
    )
    result = benchmark.Result(case, 15_600_000_000, ours, half, half_flushed, whole, whole_flushed)
    text = benchmark.table([result], 0.0)
    assert (
        "| generate, 2,597 M | 2 | float32 | 15.60 GB | 60.0 s | 1.00 GB | 30.0 s | 2.0 | 120.0 s | 0.5 "
        "| 20.0 s | 3.0 | 40.0 s | 1.5 | - | - |"
    ) in text
    assert "22 GB of memory were not free" in text


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 20_000_000_000}))
    with pytest.raises(SystemExit):
        benchmark.main(["--shape", "generate"])
    assert "GB are needed, 20.0 GB are free" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_copied(tmp_path: Path) -> None:
    """``cp`` gets the bytes that the table says: all of the input and the output, and half as many."""
    copied: list[int] = []
    plain = benchmark.run

    def watched(command: list[str | Path]) -> benchmark.Run:
        result = plain(command)
        if command[0] == "cp":
            copied.append(sum(file.stat().st_size for file in benchmark.files_in(Path(command[-1]))))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "run", watched)
        result = benchmark.measure(benchmark.Case("2x16x4x40x8", 2, "float32"), tmp_path, 1)
    files = benchmark.files_in(tmp_path)
    assert [file.suffix for file in files if file.suffix != ".txt"] == [".pt", ".pt"]
    tracker = sum(file.stat().st_size for file in files if file.suffix == ".txt")
    assert copied == [result.moved + tracker, result.moved // 2]
    assert result.case.disk > 2 * result.moved


def test_a_run_is_measured() -> None:
    """Its own time and memory, not those of the runs before it. In a small process, as the benchmark is one."""
    code = (
        "import sys\n"
        "from benchmarks.convert import Killed, run\n"
        "python = sys.executable\n"
        "large = run([python, '-c', 'import time; x = b\"x\" * 300_000_000; time.sleep(0.5)'])\n"
        "small = run([python, '-c', ''])\n"
        "assert large.seconds > 0.5\n"
        "assert 300e6 < large.peak < 500e6, large\n"
        "assert small.peak < 100e6, small\n"
        "try:\n"
        "    run([python, '-c', 'import os; os.kill(os.getpid(), 9)'])\n"
        "except Killed:\n"
        "    run([python, '-c', 'import sys; sys.exit(\"reason\")'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("exit code 1: reason\n")


def test_markers_are_added(tmp_path: Path) -> None:
    for text in ("absent", "", "# Mine\n"):
        path = tmp_path / "x.md"
        if text != "absent":
            path.write_text(text)
        benchmark.write_between_markers(path, "a", (benchmark.BEGIN, benchmark.END))
        benchmark.write_between_markers(path, "b", (benchmark.BEGIN, benchmark.END))
        content = path.read_text()
        assert content.endswith(f"\n\n{benchmark.BEGIN}\nb\n{benchmark.END}\n")
        assert content.count(benchmark.BEGIN) == 1
