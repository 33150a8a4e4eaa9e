"""What a teacher is worth: a small model from nothing, trained on poems alone, and with the demo as its teacher.

    python -m benchmarks.distillation --corpus ../shared/corpora/song_ci.jsonl

Each row is a training of its own, of the same steps on the same poems, with the same seed. The perplexity is that of
the poems that the demo was not trained on either.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import convert
import training
from demo.corpus import SEED, split

DEMO = Path(__file__).parent.parent / "demo" / "song-ci"
STUDENT = "layers=2,hidden=96,heads=4,positions=256"
TEACHINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "0.4, as CPM-1-Distill": {"teacher_weight": 0.4},
    "0.9": {"teacher_weight": 0.9},
    "0.9, temperature 2": {"teacher_weight": 0.9, "teacher_temperature": 2.0},
}


def write_texts(texts: Sequence[str], path: Path) -> Path:
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


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
        demo = convert.open_checkpoint(DEMO, heads=4)
        convert.to_savedmodel(demo, folder / "demo", tokenizer=DEMO / "tokenizer")
        texts = write_texts(poems[: args.poems], folder / "poems.jsonl")
        validation = write_texts(held_out, folder / "held-out.jsonl")
        for number, (name, teaching) in enumerate(TEACHINGS.items()):
            started = time.monotonic()
            result = training.finetune(
                None, texts, folder / str(number), init=STUDENT, tokenizer=DEMO / "tokenizer", validation=validation,
                steps=args.steps, evaluate_every=args.steps, learning_rate=2e-3, sample=0,
                **({"teacher": folder / "demo", **teaching} if teaching else {}),
            )  # fmt: skip
            assert result.validation is not None
            print(f"| {name} | {result.validation[1]:.1f} | {time.monotonic() - started:.0f} |", flush=True)


if __name__ == "__main__":
    main()
