"""``inspect``: say what a checkpoint or a SavedModel is."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.commands.options import add_format_option, add_model_options
from convert.dtype_choice import runs_here
from convert.inspection import TENSORFLOW_BYTES, inspect
from support.errors import UserError
from tf_model.config import UER
from tf_model.precision import PRECISIONS

DESCRIPTION = """\
Reads headers and shapes, no weights: seconds and a few hundred MB for a model of any size. A checkpoint is described
with what it would become in each dtype. A file that cannot be read ends with the error line of the conversion and exit
code 2; damaged weights are found by the conversion, and by check.

The memory of a loaded model is estimated: its variables, once, and 0.7 GB for TensorFlow and the graph (measured with
TensorFlow 2.21 on Linux), plus the packed copy of int8 matrices while it generates. Each row that is generated adds a
cache; its size is given for one position.
"""
EXAMPLES = ("{command} demo/song-ci --json",)

Report = dict[str, Any]

_WIDTH = 100
"""Columns that a text is wrapped at."""

_MEMORY = {
    "bytes_on_disk": "on disk",
    "bytes_loaded": "loaded, about",
    "bytes_generating": "generating, about",
    "cache_bytes_per_position": "cache per position and row",
}
"""The columns of the table of memory, by their key in the report."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a checkpoint, as for pytorch-to-tf, or the folder of a SavedModel"
    )
    add_format_option(parser)
    parser.add_argument(
        "--heads", type=int, metavar="N", help="number of attention heads, to see whether the conversion accepts it"
    )
    parser.add_argument(
        "--iteration", metavar="N|release", help="which iteration, instead of the one that the tracker file names"
    )
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help='print JSON; {"error": "..."} if a file cannot be read')


def run(args: argparse.Namespace) -> None:
    try:
        report = inspect(
            args.path,
            heads=args.heads,
            iteration=args.iteration,
            format=args.from_format,
            vocab_size=args.vocab_size,
            activation_function=args.activation_function,
            adapter=args.adapter,
        ).to_dict()
    except UserError as error:
        if args.json:
            print(json.dumps({"error": str(error)}, ensure_ascii=False))
        raise
    print(json.dumps(report, ensure_ascii=False) if args.json else "\n".join(lines(report)))


def _int8(dtypes: Sequence[str]) -> Iterable[str]:
    """Yield what these types take beside memory."""
    if vnni := [dtype for dtype in dtypes if not PRECISIONS[dtype].transposed]:
        lacking = "" if all(map(runs_here, vnni)) else "; this one has none"
        yield f"{' and '.join(vnni)}: needs a CPU with VNNI instructions{lacking}"
    if copies := [dtype for dtype in dtypes if PRECISIONS[dtype].packed]:
        yield f"{' and '.join(copies)}: keeps a copy of the matrices for each signature that is called (here one)"
    if dtypes:
        yield "int8 of every kind: needs TensorFlow for x86-64"


def lines(report: Report) -> Iterable[str]:
    """Yield the report as text: facts, memory, signatures, tensors."""
    yield f"{report['path']}: {report['format'].replace('_', ' ')}{' checkpoint' * (report['kind'] == 'checkpoint')}"
    yield from _table([(f"  {name}", value) for name, value in _facts(report).items() if value is not None])
    yield ""
    yield from _table(
        [
            ("written as", *_MEMORY.values()),
            *((dtype, *(_bytes(sizes[key]) for key in _MEMORY)) for dtype, sizes in report["outputs"].items()),
        ]
    )
    yield f"loaded: the variables and {_bytes(TENSORFLOW_BYTES)} for TensorFlow and the graph"
    yield from _int8([dtype for dtype in report["outputs"] if PRECISIONS[dtype].matrices == "int8"])
    if signatures := report.get("signatures"):
        yield ""
        for name, signature in signatures.items():
            yield f"signature {name}"
            for kind in ("inputs", "outputs"):
                yield textwrap.fill(f"  {kind}: {_named(signature[kind])}", _WIDTH, subsequent_indent="    ")
    yield from (f"note: {note}" for note in report.get("notes", ()))
    yield ""
    yield from _table([("tensor", "shape", "type", "number"), *_grouped(report["tensors"])])


def _facts(report: Report) -> dict[str, str | None]:
    """Return what stands at the top, by its label; None is left out."""
    config, manifest = report["config"], report.get("manifest")
    heads = config["n_head"] or f"not in the files; possible: {', '.join(map(str, report['possible_heads']))}"
    source = (manifest or {}).get("source")
    facts = (
        [f"{key} {value}" for key, value in source.items() if not isinstance(value, (dict, type(None)))]
        if isinstance(source, dict)
        else []
    )
    return {
        "iteration": _text(report.get("iteration")),
        "tensor parallel": _text(report.get("tensor_parallel")),
        "layers": _text(config["n_layer"]),
        "hidden size": f"{config['n_embd']}, feed-forward {config['n_inner']}",
        "heads": _text(heads),
        "vocabulary": _text(config["vocab_size"]),
        "positions": _text(config["n_positions"]),
        "maths": ", ".join(_maths(config)),
        "end of text": _text(report.get("eos_token_id")),
        "parameters": f"{report['parameters']:,}",
        "weights": f"{_bytes(report['bytes_of_weights'])}, tensors of "
        + ", ".join(f"{dtype} ({count})" for dtype, count in report["dtypes"].items()),
        "on disk": _bytes(report["bytes_on_disk"]) + (f", {len(report['files'])} files" if "files" in report else ""),
        "tokenizer": _tokenizer(report) if "tokenizer" in report else None,
        "TensorFlow": _text(report.get("tensorflow")),
        "written by": manifest and _text(manifest.get("program")),
        "converted from": ", ".join(facts) or None,
    }


def _maths(config: Report) -> Iterable[str]:
    """Yield what tells one GPT-2 from another beside its sizes."""
    yield config["activation_function"]
    kind = "UER-py's layer norms" if config.get("layer_norm") == UER else "layer norms"
    yield f"{kind} with epsilon {config['layer_norm_epsilon']:g}"
    yield "tied output matrix" if config.get("tie_word_embeddings", True) else "output matrix of its own"
    if not config.get("scale_attn_weights", True):
        yield "attention that is not scaled"
    if config.get("scale_attn_by_inverse_layer_idx"):
        yield "attention scaled by the layer's number"


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _bytes(count: int) -> str:
    unit, size = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if count >= pair[1]), ("KB", 1e3))
    return f"{count / size:,.2f} {unit}"


def _named(tensors: Report) -> str:
    """Return the tensors of a signature."""
    return ", ".join(f"{key} {info['dtype']} {_extents(info['shape'])}" for key, info in tensors.items())


def _extents(shape: list[int | None] | None) -> str:
    return "any" if shape is None else f"[{', '.join('?' if d is None else str(d) for d in shape)}]"


def _grouped(tensors: list[Report]) -> list[tuple[str, str, str, str]]:
    """Return a row for the tensors that are the same in all layers: name with ``*``, shape, type, number."""
    rows = Counter(
        (re.sub(r"^h\.\d+\.", "h.*.", tensor["name"]), str(tensor["shape"]), tensor["dtype"]) for tensor in tensors
    )
    return [(*row, str(count)) for row, count in rows.items()]


def _table(rows: list[tuple[Any, ...]]) -> Iterable[str]:
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _tokenizer(report: Mapping[str, Any]) -> str:
    """Name the files of a SavedModel's tokenizer, or the folder where a checkpoint's lie."""
    found = report["tokenizer"]
    if not found:
        return "none in this folder" if report["kind"] == "checkpoint" else "none"
    return f"files in {found[0]}" if report["kind"] == "checkpoint" else ", ".join(found)
