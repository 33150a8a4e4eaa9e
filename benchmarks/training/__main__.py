"""How long a step of training takes, and how much memory, beside PyTorch.

    python -m benchmarks.training --write docs/performance.md
    python -m benchmarks.training --group lora --repeat 3 --json training.json
    python -m benchmarks.training --group full --shape 2x64x2x500x64 --length 32

Each trainer is a process of its own that is stopped while others train; in every round all of a group take turns. The
group ``generate`` is this project alone: 2.6 B parameters do not fit beside anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import machine, write_between_markers
from benchmarks.random_checkpoint import parse_shape
from benchmarks.training import report
from benchmarks.training.plan import GROUPS, TRAINERS, Group
from benchmarks.training.run import Result, Run
from tf_model.config import ConfigError


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected 1 or more")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--group", nargs="+", choices=GROUPS, default=["full", "smallest", "lora"], metavar="|".join(GROUPS)
    )
    parser.add_argument("--trainer", nargs="+", choices=TRAINERS, default=[], metavar="NAME", help=", ".join(TRAINERS))
    parser.add_argument("--shape", metavar="distill|generate|LxHxN[xV[xS]]", help="(default: the group's)")
    parser.add_argument("--batch", type=_positive, metavar="N", help="rows of a step (default: the group's)")
    parser.add_argument("--length", type=_positive, metavar="N", help="tokens of a row (default: the group's)")
    parser.add_argument("--repeat", type=_positive, default=10, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=_positive, default=2, metavar="N", help="of each process (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single measurement")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this document")
    return parser


def _group(name: str, args: Any) -> Group:
    """The group ``name`` with what the options say otherwise."""
    group = GROUPS[name]
    changes = {key: getattr(args, key) for key in ("shape", "batch", "length") if getattr(args, key)}
    members = tuple(member for member in group.members if not args.trainer or member in args.trainer)
    return dataclasses.replace(group, members=members, **changes)


def _save(path: Path, results: Sequence[Result], command: str, threads: int) -> None:
    """What there is so far: a long run that is stopped is not lost."""
    groups = [dataclasses.asdict(result) for result in results]
    content = {"machine": machine(), "command": command, "threads": threads, "groups": groups}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args: Any = parser.parse_args(argv)
    groups = {name: _group(name, args) for name in args.group}
    for name, group in groups.items():
        try:
            config = parse_shape(group.shape)
        except (argparse.ArgumentTypeError, ConfigError) as error:
            parser.error(f"--shape {group.shape}: {error}")
        if config.n_positions < group.length:
            parser.error(f"--length {group.length}: {group.shape} has {config.n_positions} positions")
        if not group.members:
            parser.error(f"--trainer {' '.join(args.trainer)}: none of them is in the group {name}")
    for folder in (args.json and args.json.parent, args.write and args.write.parent):
        if folder and not folder.is_dir():  # which would show only after an hour
            parser.error(f"{folder}: no such folder")
    # Paths of this machine are nobody else's business.
    words = [word for name, value in vars(args).items() if name not in ("json", "write")
             for word in _words(name, value, parser.get_default(name))]  # fmt: skip
    command = shlex.join(["python", "-m", "benchmarks.training", *words])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends the processes as Ctrl-C does
    results = []
    for name, group in groups.items():
        run = Run(name, group, args.threads, args.repeat)
        results.append(run.result)
        before = os.getloadavg()[0]
        try:
            run.run()
        finally:
            run.result.load = before, os.getloadavg()[0]
            if args.json:
                _save(args.json, results, command, args.threads)
        if len(run.result.left_out) == len(group.members):
            raise SystemExit(f"error: {name}: nothing was measured: {'; '.join(run.result.left_out.values())}")
        text = report.text(run.result, command, args.threads)
        print(text, flush=True)
        if args.write:
            write_between_markers(args.write, text, report.markers(name))


def _words(name: str, value: Any, default: Any) -> list[str]:
    """An option as it is given, if it is not the default."""
    if value == default:
        return []
    return [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]


if __name__ == "__main__":
    main()
