"""Writes a random Megatron checkpoint of any size, without holding it in memory.

    python -m benchmarks.random_checkpoint --shape generate --tensor-parallel 2 --output /tmp/random

Numbers are not drawn for each tensor, which would take longer than writing them: a tensor is a piece of one random
block of a few MB, from a place of its own on and over and over again. So tensors, layers and ranks differ, and what is
replicated is the same on all ranks.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.formats.megatron.layout import cpm_name, shard_spec_of
from convert.formats.megatron.sharding import REPLICATED, shard_shape
from convert.formats.rank_files import TRACKER
from convert.tensors import Array, DType
from convert.torch_format.writer import Pending, save
from tf_model.config import GPT2Config

SHAPES = {
    "distill": GPT2Config(vocab_size=30000, n_positions=1024, n_embd=768, n_layer=12, n_head=12),
    "generate": GPT2Config(vocab_size=30000, n_positions=1024, n_embd=2560, n_layer=32, n_head=32),
}
"""CPM-distill and CPM-Generate."""

DTYPES: dict[str, DType] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
ITERATION = 80000
_BLOCK = 1_000_003
"""Values in the block: a prime, so that no two tensors begin at the same one and no two rows of a matrix are equal."""
_STRIDE = 7919
"""How far apart in the block two tensors that follow each other begin."""
_SCALE = re.compile(r"\bln_[12f]\.weight$")


def parse_shape(text: str) -> GPT2Config:
    """A name in ``SHAPES``, or LxHxN[xV[xS]]: layers, hidden size, heads, vocabulary, positions.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    if text in SHAPES:
        return SHAPES[text]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {', '.join(SHAPES)}, or LxHxN[xV[xS]] as in 12x768x12")
    layers, hidden, heads, vocabulary, positions = (*map(int, text.split("x")), 30000, 1024)[:5]
    return GPT2Config(vocabulary, positions, hidden, layers, heads)


def write_checkpoint(root: Path, config: GPT2Config, p: int, dtype: DType, seed: int = 0) -> list[Path]:
    """Writes a checkpoint of ``p`` shards into the new folder ``root``; gives its files, rank 0 first.

    Weights and biases are drawn from N(0, 0.02), those of layer norms from N(1, 0.02).

    Raises:
        ShardingError: the model cannot be split over so many ranks.
        OSError: the files cannot be written, or ``root`` is there.
    """
    block = (0.02 * np.random.default_rng(seed).standard_normal(_BLOCK, np.float32)).astype(dtype)
    blocks = {False: block, True: (1 + block.astype(np.float32)).astype(dtype)}
    shapes = config.tensor_shapes()
    layout = {name: shard_shape(shape, shard_spec_of(name), p) for name, shape in shapes.items()}

    def state(rank: int) -> dict[str, Pending]:
        tensors = {}
        for number, (name, shape) in enumerate(layout.items()):
            is_replica = shard_spec_of(name) is REPLICATED
            start = (number + len(layout) * (0 if is_replica else rank)) * _STRIDE % _BLOCK
            tensors[cpm_name(name)] = _tensor(shape, blocks[_SCALE.search(name) is not None], start)
        return tensors

    folder = root / str(ITERATION)
    root.mkdir(parents=True)
    folder.mkdir()
    files = [folder / f"mp_rank_{rank:02d}_model_states.pt" for rank in range(p)]
    for rank, file in enumerate(files):
        save(file, {"module": state(rank), "iteration": ITERATION, "mp_world_size": p})
    (root / TRACKER).write_text(str(ITERATION))
    return files


def _tensor(shape: tuple[int, ...], block: Array, start: int) -> Pending:
    """A tensor of ``shape`` whose values are those of ``block`` from ``start`` on, repeated."""

    def pieces() -> Iterator[Array]:
        missing, at = tensor.count, start
        while missing:
            piece = block[at : at + missing]
            yield piece
            missing, at = missing - piece.size, 0

    tensor = Pending(shape, block.dtype, pieces)
    return tensor


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_checkpoint", description=__doc__)
    parser.add_argument("--shape", type=parse_shape, required=True, metavar="distill|generate|LxHxN[xV[xS]]")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="P")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    args: Any = parser.parse_args(argv)
    files = write_checkpoint(args.output, args.shape, args.tensor_parallel, DTYPES[args.dtype], args.seed)
    size = sum(file.stat().st_size for file in files)
    print(f"{args.shape.parameter_count:,} parameters as {args.dtype} in {len(files)} files, {size / 1e6:,.1f} MB")


if __name__ == "__main__":
    main()
