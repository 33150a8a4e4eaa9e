"""The demo learns tunes that it never saw: held-out perplexity before and after, and the CPU time that it took.

    python -m benchmarks.new_style --corpus ../shared/corpora/song_ci.jsonl

The demo was trained on tunes with 40 poems or more. The texts are those of the tunes with 20 to 39: 1,198 poems, a
tenth of them held out. CPU seconds are of the whole process: reading, tracing, training, measuring, writing the
SavedModel.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import training
from convert.formats.registry import CheckpointSpec
from demo.__main__ import CHECKPOINT, HEADS
from demo.corpus import COMMON, poems_of_tunes, text_of, write_json_lines
from support.command_line import Parser, set_environment
from support.main_guard import main_guard

FEWEST = 20
HELD_OUT, SEED = 119, 1
RECIPE: dict[str, Any] = {
    "preset": "poem",
    "epochs": 3,
    "batch_size": 8,
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "products": "bfloat16",
    "sample": 0,
    "keep": "last",
    "evaluate_every": 1 << 20,
}


def write_new_tunes(corpus: Path, folder: Path) -> tuple[Path, Path]:
    """Write the poems of tunes that the demo does not know: to train on, and held out."""
    texts = [text_of(poem) for poem in poems_of_tunes(corpus, FEWEST, COMMON)]
    random.Random(SEED).shuffle(texts)
    files = folder / "train.jsonl", folder / "held-out.jsonl"
    write_json_lines(texts[HELD_OUT:], files[0])
    write_json_lines(texts[:HELD_OUT], files[1])
    return files


def learn_new_tunes(corpus: Path, folder: Path, **settings: Any) -> training.FinetuneResult:
    """Fine-tune the demo on new tunes; the SavedModel and the texts are in ``folder``."""
    texts, held_out = write_new_tunes(corpus, folder)
    options = {**RECIPE, "tokenizer": CHECKPOINT / "tokenizer", "validation": held_out, **settings}
    return training.finetune(CheckpointSpec(CHECKPOINT, HEADS), texts, folder / "model", **options)


def main() -> None:
    parser = Parser(prog="python -m benchmarks.new_style", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="song_ci.jsonl")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="another setting of finetune"
    )
    args = parser.parse_args()
    set_environment(hide_gpus=True)
    with tempfile.TemporaryDirectory() as temporary:
        result = learn_new_tunes(args.corpus, Path(temporary), **dict(args.set))
    before, after = result.validation or (0.0, 0.0)
    print(f"perplexity {before:.2f} -> {after:.2f}, {time.process_time():.0f} CPU-s, {result.steps} steps")


if __name__ == "__main__":
    sys.exit(main_guard(main))
