"""Time and memory of the conversion, beside ``cp`` and the way of the CPM-LM-TF2 notebooks.

    python -m benchmarks.convert --shape distill --tensor-parallel 1 2 4 --write docs/performance.md

Each case is a random checkpoint of float16. The three are run in turn, each in a process of its own whose peak resident
memory the kernel reports. Before each of them its input is read once and the disk is synchronised: the page cache is
warm for all three, and none pays for what another one wrote. ``cp`` copies a file of half of the bytes that this
program reads and writes together, so it moves as many. It is timed without and with a ``sync``, as this program does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import itertools
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import DTYPES, parse_shape, write_checkpoint
from tf_model.config import GPT2Config

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- convert:begin -->", "<!-- convert:end -->"

_CHUNK = 1 << 24
_MARGIN = 1_000_000_000
"""Bytes of memory that a process of PyTorch and TensorFlow has before it loads anything."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One process: wall-clock seconds, and bytes that it had in memory at most."""

    seconds: float
    peak: int


@dataclasses.dataclass(frozen=True)
class Case:
    """What is converted: a shape as the command line has it, the number of shards, the type that is written."""

    shape: str
    p: int
    dtype: str

    @property
    def config(self) -> GPT2Config:
        return parse_shape(self.shape)

    @property
    def bytes_read(self) -> int:
        """About; what all ranks hold is small."""
        return 2 * self.config.parameter_count

    @property
    def bytes_written(self) -> int:
        return DTYPES[self.dtype].itemsize * self.config.parameter_count

    @property
    def disk(self) -> int:
        """Bytes: the checkpoint, the file to be copied, and the larger of the two results."""
        copied = (self.bytes_read + self.bytes_written) // 2
        return int(1.05 * (self.bytes_read + copied + max(self.bytes_written, copied))) + 50_000_000

    @property
    def notebook_memory(self) -> int:
        """Bytes that the notebooks' way takes: the shards, their merged copies, the model."""
        return 2 * self.bytes_read + self.bytes_written + _MARGIN


@dataclasses.dataclass(frozen=True)
class Result:
    """The runs of a case; ``notebook`` is empty where there was too little memory for it."""

    case: Case
    moved: int
    ours: list[Run]
    cp: list[Run]
    flushed: list[Run]
    notebook: list[Run]


def run(command: Sequence[str | Path]) -> Run:
    """Runs a command to its end.

    Linux counts the memory of the process that started it, too, which had better be small: so nothing that is large
    is imported here, and a peak below ours (some 50 MB) says nothing.

    Raises:
        SystemExit: it fails; with the end of what it said.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()[-1000:]
            raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}: {said}")
    return Run(seconds, usage.ru_maxrss * 1024)


def warm(paths: Sequence[Path]) -> None:
    """Brings files into the page cache, and everything else that was written to the disk."""
    os.sync()
    buffer = bytearray(_CHUNK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_file(path: Path, size: int) -> None:
    """A file of random bytes that repeat: nothing that a file system could leave out."""
    block = os.urandom(_CHUNK)
    with path.open("wb") as file:
        while size > 0:
            size -= file.write(block[:size])


def available_memory() -> int:
    """Bytes that processes can still have without swapping."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return 1024 * int(found[1]) if found else 0


def measure(case: Case, folder: Path, repeat: int) -> Result:
    """Runs everything for one case in ``folder``, which is left empty but for the checkpoint."""
    config, root, output, copied = case.config, folder / "checkpoint", folder / "output", folder / "copied"
    files = write_checkpoint(root, config, case.p, DTYPES["float16"])
    options: list[str | Path] = ["--output", output, "--heads", str(config.n_head), "--dtype", case.dtype]
    python: list[str | Path] = [sys.executable, "-m"]
    ours = [*python, "convert", "pytorch-to-tf", "--checkpoint", root, "--quiet", *options]
    notebook = [*python, "benchmarks.notebook_way", "--checkpoint", files[0].parent, *options]
    enough = available_memory() >= case.notebook_memory
    result, bytes_read = Result(case, 0, [], [], [], []), sum(file.stat().st_size for file in files)
    for _ in range(repeat):
        warm(files)
        result.ours.append(run(ours))
        if not result.moved:
            result = dataclasses.replace(result, moved=bytes_read + size_of(output))
        shutil.rmtree(output)
        if not copied.exists():
            write_file(copied, result.moved // 2)
        warm([copied])
        result.cp.append(copy := run(["cp", "--reflink=never", copied, output]))
        result.flushed.append(Run(copy.seconds + run(["sync", output]).seconds, copy.peak))
        output.unlink()
        if enough:
            warm(files)
            result.notebook.append(run(notebook))
            shutil.rmtree(output)
    copied.unlink()
    return result


def machine() -> str:
    """The processor, its cores, the memory; and the versions of what was measured."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = [f"{name} {importlib.metadata.version(package)}" for name, package in
                (("TensorFlow", "tensorflow"), ("PyTorch", "torch"), ("NumPy", "numpy"))]  # fmt: skip
    return (
        f"{model[1].strip() if model else platform.machine()}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB RAM; "
        f"Python {platform.python_version()}, {', '.join(versions)}; "
        f"{datetime.datetime.now(datetime.timezone.utc).date()}"
    )


def _seconds(runs: list[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def _cells(runs: list[Run], *others: list[Run]) -> tuple[str, ...]:
    """Median time, how many times that of each of ``others`` it is, and the highest peak."""
    if not runs:
        return ("-",) * (2 + len(others))
    ratios = (f"{_seconds(runs) / _seconds(other):.1f}" for other in others)
    return f"{_seconds(runs):.1f} s", *ratios, f"{max(run.peak for run in runs) / 1e9:.2f} GB"


def table(results: list[Result], load: float) -> str:
    """The results as Markdown, with the conditions under which they came about."""
    head = (
        "model", "shards", "written as", "read + written", "`cp`", "`cp`, `sync`", "this program", "x `cp`",
        "x `cp`, `sync`", "peak memory", "notebooks' way", "x `cp`, `sync`", "peak memory",
    )  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for result in results:
        case = result.case
        first = (f"{case.shape}, {case.config.parameter_count / 1e6:,.0f} M", str(case.p), case.dtype)
        rows.append(
            (
                *first,
                f"{result.moved / 1e9:.2f} GB",
                f"{_seconds(result.cp):.1f} s",
                f"{_seconds(result.flushed):.1f} s",
                *_cells(result.ours, result.cp, result.flushed),
                *_cells(result.notebook, result.flushed),
            )
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    for case in (result.case for result in results if not result.notebook):
        need = f"{case.notebook_memory / 1e9:.0f} GB"
        lines += [
            "",
            f"{case.shape}, p = {case.p}: the notebooks' way was left out, {need} of memory were not free.",
        ]
    repeat = max(len(result.ours) for result in results)
    conditions = (
        f"{machine()}; load average when it began: {load:.1f}. Median time and highest peak (resident memory of the "
        f"process) of {repeat} run{'s'[: repeat != 1]} each, in turn, with a warm page cache. `cp` moves as many bytes "
        "as this program reads and writes; with `sync` it waits until they are on the disk, as this program does. "
        "Random weights, float16 in the checkpoint; `python -m benchmarks.convert`."
    )
    return "\n".join([*lines, "", textwrap.fill(conditions, 120, break_on_hyphens=False)])


def write_between_markers(path: Path, text: str) -> None:
    """Puts ``text`` between the markers in a document, which is made, or gets them at its end, if need be."""
    old = path.read_text("utf-8") if path.exists() else "# Performance\n"
    if BEGIN not in old or END not in old:
        old = f"{old.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = old.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", "utf-8")


@contextlib.contextmanager
def _work_folder(parent: Path, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="gpt2-savedmodel-benchmark-", dir=parent))
    try:
        yield folder
    finally:
        if keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", default=["distill"], metavar="distill|generate|LxHxN[xV[xS]]")
    parser.add_argument("--tensor-parallel", type=int, nargs="+", default=[1, 2, 4], metavar="P")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="what is written")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR", help="where to work")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"put the table between {BEGIN} and {END}")
    args: Any = parser.parse_args(argv)
    cases = [Case(*values) for values in itertools.product(args.shape, args.tensor_parallel, args.dtype)]
    try:
        need = sum(case.disk for case in cases) if args.keep else max(case.disk for case in cases)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    if (free := shutil.disk_usage(args.folder).free) < need:
        parser.error(f"{args.folder}: {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free: choose --folder")
    load, results = os.getloadavg()[0], []
    with _work_folder(args.folder, args.keep) as folder:
        measure(Case("1x8x1x16x8", 1, "float32"), folder, 1)  # the libraries' own files come from the disk once
        shutil.rmtree(folder / "checkpoint")
        for case in cases:
            place = folder / f"{case.shape}-{case.p}-{case.dtype}"
            place.mkdir()
            print(f"{case.shape}, p = {case.p}, {case.dtype} ...", file=sys.stderr, flush=True)
            results.append(measure(case, place, args.repeat))
            if not args.keep:
                shutil.rmtree(place)
    text = table(results, load)
    print(text)
    if args.write:
        write_between_markers(args.write, text)


if __name__ == "__main__":
    main()
