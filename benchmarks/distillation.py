"""What a teacher is worth: a small model from nothing, trained on poems alone, and with the demo as its teacher.

    python -m benchmarks.distillation --corpus ../shared/corpora/song_ci.jsonl

Each row is a training of its own, of the same steps on the same poems, with the same seed. The perplexity is that of
the poems that the demo was not trained on either.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import training
from demo.__main__ import CHECKPOINT, convert_checkpoint
from demo.corpus import SEED, split, write_json_lines

STUDENT = "layers=2,hidden=96,heads=4,positions=256"
TEACHINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "0.4, as CPM-1-Distill": {"teacher_weight": 0.4},
    "0.9": {"teacher_weight": 0.9},
    "0.9, temperature 2": {"teacher_weight": 0.9, "teacher_temperature": 2.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--poems", type=int, default=2000, help="to learn from (default %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="default %(default)s")
    args = parser.parse_args()
    held_out, poems = split(args.corpus, random.Random(SEED))
    print("| teacher's weight | held-out perplexity | seconds |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        convert_checkpoint(folder / "demo")
        texts, validation = folder / "poems.jsonl", folder / "held-out.jsonl"
        write_json_lines(poems[: args.poems], texts)
        write_json_lines(held_out, validation)
        for number, (name, teaching) in enumerate(TEACHINGS.items()):
            started = time.monotonic()
            result = training.finetune(
                None, texts, folder / str(number), init=STUDENT, tokenizer=CHECKPOINT / "tokenizer",
                validation=validation, steps=args.steps, evaluate_every=args.steps, learning_rate=2e-3, sample=0,
                **({"teacher": folder / "demo", **teaching} if teaching else {}),
            )  # fmt: skip
            assert result.validation is not None
            print(f"| {name} | {result.validation[1]:.1f} | {time.monotonic() - started:.0f} |", flush=True)


if __name__ == "__main__":
    main()
