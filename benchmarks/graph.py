"""Size of the exported graph, and the seconds that loading takes beyond reading the weights.

    python -m benchmarks.graph --shape 12x768x12 32x768x12 --write docs/performance.md

Each shape is a random checkpoint that is converted, then loaded in a process of its own: the file of the weights is
read (it is in the page cache then), then ``hub.load`` runs. What it takes longer is what the graph costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import ROOT, machine, write_between_markers
from benchmarks.random_checkpoint import DTYPES, parse_shape, write_checkpoint

MARKERS = "<!-- graph:begin -->", "<!-- graph:end -->"

_LOAD = """
import json, sys, time, pathlib, warnings
warnings.simplefilter("ignore")
import tensorflow_hub as hub
from tensorflow.core.protobuf import saved_model_pb2
folder = pathlib.Path(sys.argv[1])
(weights,) = folder.glob("variables/*.data-*")
buffer = bytearray(1 << 24)
def read():
    with weights.open("rb", buffering=0) as file:
        while file.readinto(buffer): pass
read()
started = time.perf_counter(); read(); read_seconds = time.perf_counter() - started
started = time.perf_counter(); model = hub.load(str(folder)); load_seconds = time.perf_counter() - started
(graph,) = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs
functions = graph.graph_def.library.function
print(json.dumps({
    "nodes": len(graph.graph_def.node) + sum(len(function.node_def) for function in functions),
    "functions": len(functions),
    "bytes": (folder / "saved_model.pb").stat().st_size,
    "weights": weights.stat().st_size,
    "read": read_seconds,
    "load": load_seconds,
}))
"""


def measure(shape: str, folder: Path, repeat: int) -> dict[str, Any]:
    """What ``_LOAD`` prints, the times as medians."""
    config = parse_shape(shape)
    write_checkpoint(folder / "checkpoint", config, 1, DTYPES["float16"])
    options = ["--heads", str(config.n_head), "--output", str(folder / "model"), "--quiet"]
    _run("-m", "convert", "pytorch-to-tf", "--checkpoint", str(folder / "checkpoint"), *options)
    runs = [json.loads(_run("-c", _LOAD, str(folder / "model"))) for _ in range(repeat)]
    return {**runs[0], **{key: statistics.median(run[key] for run in runs) for key in ("read", "load")}}


def _run(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def table(results: dict[str, dict[str, Any]], repeat: int) -> str:
    rows = [("model", "nodes", "functions", "`saved_model.pb`", "weights", "load", "reading the weights", "beyond")]
    rows.append(("---",) * len(rows[0]))
    for shape, found in results.items():
        seconds = (found["load"], found["read"], found["load"] - found["read"])
        sizes = f"{found['bytes'] / 1e6:.1f} MB", f"{found['weights'] / 1e9:.2f} GB"
        rows.append((shape, str(found["nodes"]), str(found["functions"]), *sizes, *(f"{s:.1f} s" for s in seconds)))
    conditions = (
        f"{machine()}. All signatures together; float32; medians of {repeat} runs, each in a process of its own, the "
        "weights in the page cache; importing TensorFlow is not counted. `python -m benchmarks.graph`."
    )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", textwrap.fill(conditions, 120, break_on_hyphens=False)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.graph", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", nargs="+", default=["12x768x12", "32x768x12"], metavar="distill|generate|LxHxN[xV[xS]]"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="loads of each (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR", help="where to work")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"put the table between {' and '.join(MARKERS)}")
    args: Any = parser.parse_args(argv)
    results = {}
    for shape in args.shape:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            results[shape] = measure(shape, Path(folder), args.repeat)
    text = table(results, args.repeat)
    print(text)
    if args.write:
        write_between_markers(args.write, text, MARKERS)


if __name__ == "__main__":
    main()
