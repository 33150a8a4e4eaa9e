"""How fast texts are generated, beside other engines with the same weights.

    python -m benchmarks.decode --shape distill --write docs/performance.md --plot docs
    python -m benchmarks.decode --shape distill generate --peers-python peers/bin/python --json decode.json
    python -m benchmarks.decode --shape generate --only int8 --engines ours llama.cpp --repeat 2 --measure "batch 1"

Each engine is a process of its own that is stopped while others are measured; in every round all of a group take turns.
Where not all fit into memory, a group is those of one type of weights (and this project's int8, which all are compared
with), and processes are started again in each round. An engine whose package is missing is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.decode import plot, report
from benchmarks.decode.engines import ENGINES
from benchmarks.decode.plan import GROUPS, INT8, contenders, measures
from benchmarks.decode.ratios import ratios
from benchmarks.decode.results import Model
from benchmarks.decode.run import Run
from benchmarks.markdown import machine, write_between_markers
from benchmarks.random_checkpoint import SHAPES, parse_shape
from tf_model.config import ConfigError

_OURS = (INT8.dtype, "bfloat16", "float32")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected 1 or more")
    return number


def _steps(text: str) -> int:
    """The longest measurement begins at 900 positions and goes on to the last of 1,024; a time needs two steps."""
    if (number := int(text)) and not 2 <= number <= 120:
        raise argparse.ArgumentTypeError(f"{number}: expected 2 to 120, or 0 for a number by size")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    engines = [name for name in ENGINES if name != "probe"]
    known = [measure.name for measure in measures(SHAPES["distill"], 0)]
    parser.add_argument("--shape", nargs="+", default=["distill"], metavar="distill|generate|LxHxN[xV[xS]]")
    parser.add_argument(
        "--engines", nargs="+", choices=engines, default=engines, metavar="NAME", help=", ".join(engines)
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=ENGINES["ours"].dtypes,
        default=_OURS,
        help=f"of this project (default: {' '.join(_OURS)}); int8 needs VNNI instructions",
    )
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=GROUPS, help="weights of this type; int8 has all types of 8 bits"
    )
    parser.add_argument("--measure", nargs="+", choices=known, default=[], help="only these (default: all)")
    parser.add_argument("--repeat", type=_positive, default=5, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument("--steps", type=_steps, default=0, metavar="N", help="tokens after the first (0: by size)")
    parser.add_argument("--threads", type=_positive, default=2, metavar="N", help="of each engine (%(default)s)")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH", help="Python that has the peers")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where files are made (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the files there, and use those that are there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single measurement")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this document")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="put a picture of each shape there: decode-SHAPE.png")
    return parser


def _save(args: Any, models: Sequence[Model], command: str, load: float) -> None:
    """What there is so far: a long run that is stopped is not lost."""
    if args.json:
        found = [
            {"shape": r.shape, "what": r.rule.what, "against": r.other, "must": r.rule.must, "aim": r.rule.aim,
             "more": r.rule.more, "measured": None if r.spread is None else r.spread.median, "reached": r.reached}
            for r in ratios(models)
        ]  # fmt: skip
        result = {
            "machine": machine(), "command": command, "threads": args.threads, "repeat": args.repeat, "load": load,
            "models": [model.to_dict() for model in models], "ratios": found,
        }  # fmt: skip
        args.json.write_text(json.dumps(result, ensure_ascii=False, indent=1), "utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args: Any = parser.parse_args(argv)
    shapes = {}
    for shape in args.shape:
        try:
            shapes[shape] = parse_shape(shape)
        except (argparse.ArgumentTypeError, ConfigError) as error:
            parser.error(f"--shape {shape}: {error}")
        if shapes[shape].n_positions < 1024:
            parser.error(f"{shape}: 1,024 positions are needed")
        if args.work and not args.keep and (args.work / shape).exists():
            parser.error(f"{args.work / shape}: is there already, and would be removed: --keep uses what is in it")
    for folder in (args.json and args.json.parent, args.write and args.write.parent, args.plot):
        if folder and not folder.is_dir():  # which would show only after hours
            parser.error(f"{folder}: no such folder")
    chosen = contenders(args.engines, args.dtype, args.only)
    # Paths of this machine are nobody else's business.
    shown = [part for word in (sys.argv[1:] if argv is None else argv) for part in word.split("=", 1)]
    places = ("--peers-python", "--work", "--json", "--write", "--plot")
    hidden = {i for i, word in enumerate(shown) if word in places} | {
        i + 1 for i, word in enumerate(shown) if word in places
    }
    command = shlex.join(["python", "-m", "benchmarks.decode", *(w for i, w in enumerate(shown) if i not in hidden)])
    work = args.work or Path(tempfile.mkdtemp(prefix="gpt2-savedmodel-decode-"))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # clears up as Ctrl-C does
    load, models = os.getloadavg()[0], []
    pythons = {False: sys.executable, True: args.peers_python}
    try:
        for shape, config in shapes.items():
            folder = work / shape
            one = Run(shape, config, folder, pythons, args.threads, args.repeat, args.steps, args.measure, args.keep)
            models.append(one.model)
            one.run(chosen)
            _save(args, models, command, load)
            text = report.text(one.model, command, args.threads, args.repeat, load)
            print(text, flush=True)
            if all(str(contender) in one.model.left_out for contender in chosen):
                raise SystemExit(f"error: {shape}: nothing was measured: see what was left out, and why")
            if args.write:
                write_between_markers(args.write, text, report.markers(shape))
            if args.plot:
                plot.write(args.plot / f"decode-{shape}.png", one.model)
            if not args.keep:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        _save(args, models, command, load)
        if not args.keep and args.work is None:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
