"""Time and memory of the conversion, beside ``cp`` and the way of the CPM-LM-TF2 notebooks.

    python -m benchmarks.convert --shape distill --tensor-parallel 1 2 4 --write docs/performance.md

Each case is a random checkpoint of float16. All are run in turn, each in a process of its own whose peak resident
memory the kernel reports. Before each of them its input is read once and the disk is synchronised: as much of it as
fits is in the page cache, and none pays for what another one wrote.

"``cp`` of as many bytes as are read and written" can be read in two ways, and both are measured. ``cp`` of all copies
the checkpoint and the SavedModel, which are that many bytes: it reads as many and writes as many, so it moves twice
what this program does. ``cp`` of half copies a file of half of that, so it moves as many bytes as this program. Both
are timed without and with a ``sync``; this program always ends with one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import ROOT, machine, write_between_markers
from benchmarks.random_checkpoint import DTYPES, parse_shape, write_checkpoint
from tf_model.config import GPT2Config

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
        """Bytes: the checkpoint, the SavedModel, and a copy of both; nothing else that is measured takes more."""
        return int(1.05 * 2 * (self.bytes_read + self.bytes_written)) + 50_000_000

    @property
    def notebook_memory(self) -> int:
        """Bytes that the notebooks' way takes: the shards, their merged copies, the model."""
        return 2 * self.bytes_read + self.bytes_written + _MARGIN


@dataclasses.dataclass(frozen=True)
class Result:
    """The runs of a case; ``moved`` are the bytes that this program reads and writes.

    ``half`` and ``whole`` are those of ``cp`` (see above), the ``_flushed`` ones with ``sync``. ``notebook`` is empty
    where there was too little memory for it.
    """

    case: Case
    moved: int
    ours: list[Run] = dataclasses.field(default_factory=list)
    half: list[Run] = dataclasses.field(default_factory=list)
    half_flushed: list[Run] = dataclasses.field(default_factory=list)
    whole: list[Run] = dataclasses.field(default_factory=list)
    whole_flushed: list[Run] = dataclasses.field(default_factory=list)
    notebook: list[Run] = dataclasses.field(default_factory=list)


class Killed(SystemExit):
    """A process that somebody has killed, most likely the kernel for its memory."""


def run(command: Sequence[str | Path]) -> Run:
    """Runs a command to its end.

    Linux counts the memory of the process that started it, too, which had better be small: so nothing that is large
    is imported here, and a peak below ours (some 50 MB) says nothing.

    Raises:
        SystemExit: it fails; with the end of what it said. ``Killed`` where it was not its own fault.
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
            kind = Killed if process.returncode == -signal.SIGKILL else SystemExit
            raise kind(f"{' '.join(map(str, command))}: exit code {process.returncode}: {said}")
    return Run(seconds, usage.ru_maxrss * 1024)


def warm(paths: Sequence[Path]) -> None:
    """Brings files into the page cache, and everything else that was written to the disk."""
    os.sync()
    buffer = bytearray(_CHUNK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


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


def copy(sources: Sequence[Path], target: Path) -> tuple[Run, Run]:
    """``cp`` of files and folders into the new folder ``target``, which is removed again: without and with ``sync``."""
    warm([file for source in sources for file in ([source] if source.is_file() else files_in(source))])
    target.mkdir()
    plain = run(["cp", "-r", "--reflink=never", *sources, target])
    flushed = Run(plain.seconds + run(["sync", *files_in(target)]).seconds, plain.peak)
    shutil.rmtree(target)
    return plain, flushed


def measure(case: Case, folder: Path, repeat: int) -> Result:
    """Runs everything for one case in ``folder``, which is left empty but for the checkpoint."""
    config, root, output, half = case.config, folder / "checkpoint", folder / "output", folder / "half"
    files = write_checkpoint(root, config, case.p, DTYPES["float16"])
    options: list[str | Path] = ["--output", output, "--heads", str(config.n_head), "--dtype", case.dtype]
    python: list[str | Path] = [sys.executable, "-m"]
    ours = [*python, "convert", "pytorch-to-tf", "--checkpoint", root, "--quiet", *options]
    notebook = [*python, "benchmarks.notebook_way", "--checkpoint", files[0].parent, *options]
    result = Result(case, 0)
    for _ in range(repeat):
        warm(files)
        result.ours.append(run(ours))
        moved = sum(file.stat().st_size for file in (*files, *files_in(output)))
        result = dataclasses.replace(result, moved=moved)
        for runs, one in zip((result.whole, result.whole_flushed), copy([root, output], folder / "copy"), strict=True):
            runs.append(one)
        shutil.rmtree(output)
        write_file(half, moved // 2)
        for runs, one in zip((result.half, result.half_flushed), copy([half], folder / "copy"), strict=True):
            runs.append(one)
        half.unlink()
        if available_memory() >= case.notebook_memory:
            warm(files)
            with contextlib.suppress(Killed):  # other processes may want memory, too
                result.notebook.append(run(notebook))
            shutil.rmtree(output, ignore_errors=True)
    return result


def _seconds(runs: list[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def _seconds_and_peak(runs: list[Run]) -> tuple[str, str]:
    """Median time and highest peak."""
    return (f"{_seconds(runs):.1f} s", f"{max(run.peak for run in runs) / 1e9:.2f} GB") if runs else ("-", "-")


def table(results: list[Result], load: float) -> str:
    """The results as Markdown, with the conditions under which they came about."""
    head = (
        "model", "shards", "written as", "read + written", "this program", "peak memory", "`cp` of all", "ratio",
        "and `sync`", "ratio", "`cp` of half", "ratio", "and `sync`", "ratio", "notebooks' way", "peak memory",
    )  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for result in results:
        case = result.case
        first = (f"{case.shape}, {case.config.parameter_count / 1e6:,.0f} M", str(case.p), case.dtype)
        copies = (
            cell
            for runs in (result.whole, result.whole_flushed, result.half, result.half_flushed)
            for cell in (f"{_seconds(runs):.1f} s", f"{_seconds(result.ours) / _seconds(runs):.1f}")
        )
        moved = f"{result.moved / 1e9:.2f} GB"
        rows.append((*first, moved, *_seconds_and_peak(result.ours), *copies, *_seconds_and_peak(result.notebook)))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    for case in (result.case for result in results if not result.notebook):
        need = f"{case.notebook_memory / 1e9:.0f} GB"
        lines += [
            "",
            f"{case.shape}, p = {case.p}: no time for the notebooks' way: {need} of memory were not free, before or "
            "while it ran.",
        ]
    repeat = max(len(result.ours) for result in results)
    conditions = (
        f"{machine()}; load average when it began: {load:.1f}. Median time and highest peak (resident memory of the "
        f"process) of {repeat} run{'s'[: repeat != 1]} each, in turn, with a warm page cache. `cp` of all copies the "
        "checkpoint and the SavedModel, which are as many bytes as this program reads and writes: it moves twice that. "
        "`cp` of half copies half as many bytes, so that it moves as many. With `sync` it waits until they are on the "
        "disk, as this program does. Each ratio is the time of this program by that of the `cp` before it. Random "
        "weights, float16 in the checkpoint; `python -m benchmarks.convert`."
    )
    return "\n".join([*lines, "", textwrap.fill(conditions, 120, break_on_hyphens=False)])


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
        write_between_markers(args.write, text, (BEGIN, END))


if __name__ == "__main__":
    main()
