"""What a call of ``decode`` costs that copies its state, and one that is given the state away.

    python -m benchmarks.decode_state --shape distill --dtype int8 --rows 1 4

A random checkpoint is converted and loaded. Its rows read a prompt with room for all positions. Then calls that add one
token follow each other, a copied and a given-away state in turn, so that other work on the machine hits both alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import convert
from benchmarks.markdown import machine
from benchmarks.random_checkpoint import DTYPES, parse_shape, write_checkpoint
from support.tensorflow_runtime import limit_malloc_arenas, quiet_stderr

PROMPT = 100
"""Tokens that are read before the calls that are timed."""


def load(shape: str, dtype: str, folder: Path) -> Any:
    """Convert a random model of ``shape`` and load it."""
    config = parse_shape(shape)
    write_checkpoint(folder / "checkpoint", config, 1, DTYPES["float16"])
    checkpoint = convert.open_checkpoint(folder / "checkpoint", heads=config.n_head)
    convert.to_savedmodel(checkpoint, folder / "model", dtype=dtype, signatures=("prefill", "decode"))
    with quiet_stderr():
        import tensorflow_hub as hub
    limit_malloc_arenas()
    return hub.load(str(folder / "model"))


def time_calls(model: Any, rows: int, repeat: int) -> tuple[int, list[float], list[float]]:
    """Return the bytes of the cache, and the seconds of each call: with a copied state, with one given away."""
    import tensorflow as tf

    ids = tf.ones([rows, PROMPT], tf.int64)
    lengths = tf.fill([rows], tf.constant(PROMPT, tf.int64))

    def call(state: dict[str, Any], donate: bool) -> tuple[float, dict[str, Any]]:
        started = time.perf_counter()
        output = model.decode(
            ids, lengths, **state, max_new_tokens=1, temperature=0.0, eos_token_id=-1, donate_state=donate
        )
        output["sequences"].numpy()
        return time.perf_counter() - started, {name: output[name] for name in state}

    state = model.prefill(ids, lengths)
    del state["logits"]

    def step(*, donate: bool) -> float:
        nonlocal state
        seconds, state = call(state, donate)
        return seconds

    for _ in range(3):  # TensorFlow optimises a function at its first calls
        step(donate=False)
        step(donate=True)
    pairs = [(step(donate=False), step(donate=True)) for _ in range(repeat)]
    size = int(tf.size(state["cache"])) * state["cache"].dtype.size
    return size, [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def describe(seconds: list[float]) -> str:
    """Least and median, in milliseconds."""
    return f"{1000 * min(seconds):.0f} ({1000 * statistics.median(seconds):.0f})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_state", description=__doc__)
    parser.add_argument("--shape", default="distill", help="a name or LAYERSxHIDDENxHEADS (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="type of the weights (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4], help="rows of the batch (default: 1 4)")
    parser.add_argument("--repeat", type=int, default=40, help="pairs of calls (default: %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = load(args.shape, args.dtype, Path(folder))
        print("| rows | state, MB | copied, ms | given away, ms | ratio of medians |\n|---|---|---|---|---|")
        for rows in args.rows:
            size, copied, given = time_calls(model, rows, args.repeat)
            ratio = statistics.median(given) / statistics.median(copied)
            print(f"| {rows} | {size / 1e6:.0f} | {describe(copied)} | {describe(given)} | {ratio:.2f} |")
    print(f"\n{machine()}. One token a call; least (median) of {args.repeat} calls each, in turn.")


if __name__ == "__main__":
    sys.exit(main())
