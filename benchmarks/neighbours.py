"""How many sampled texts are others in a batch, or as a stream, than alone with the same seed.

    python -m benchmarks.neighbours out/int8-avx2 out/float32

Prompts are random tokens, ragged, short and long ones in one batch. Rounding is all that can make a difference; what
it makes of it depends on how sure a model is of its tokens, so a trained one has to be given.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import inference

BATCH_SIZES = (2, 3, 5, 8)


def compare(
    generator: inference.TextGenerator, texts: int, new: int, longest: int, batch_sizes: Sequence[int] = BATCH_SIZES
) -> tuple[int, int]:
    """Count the texts that differ from the same text made alone: in a batch; as a stream.

    Args:
        texts: how many are compared.
        new, longest: most tokens of a text, and of a prompt.
        batch_sizes: one of them is drawn for each batch.
    """
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": new}
    batched, streamed = 0, 0
    done = 0
    with tqdm(total=texts, unit="text", disable=None) as progress:
        while done < texts:
            rows = min(int(rng.choice(batch_sizes)), texts - done)
            lengths = np.exp(rng.uniform(0, np.log(longest + 1), rows)).astype(int)
            prompts = [rng.integers(0, generator.tokenizer.vocab_size, length).tolist() for length in lengths]
            seeds = rng.integers(0, 2**63 - 1, rows).tolist()
            together = generator.generate(prompts, seed=seeds, **options)
            for prompt, seed, text in zip(prompts, seeds, together, strict=True):
                (alone,) = generator.generate([prompt], seed=seed, **options)
                batched += alone.tokens != text.tokens
                streamed += alone.text != "".join(generator.stream(prompt, seed=seed, **options))
            done += rows
            progress.update(rows)
    return batched, streamed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="SAVEDMODEL")
    parser.add_argument("--texts", type=int, default=400, metavar="N", help="of each model (default: %(default)s)")
    parser.add_argument("--new", type=int, default=40, metavar="N", help="tokens of a text (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=200, metavar="N", help="prompt (default: %(default)s tokens)")
    args = parser.parse_args(argv)
    for model in args.models:
        batched, streamed = compare(inference.load(model), args.texts, args.new, args.longest)
        print(f"{model}: of {args.texts} texts {batched} are others in a batch, {streamed} as a stream", flush=True)


if __name__ == "__main__":
    main()
