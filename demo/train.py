"""Trains the demo checkpoint from nothing: ``finetune`` with a model of given sizes, on Song dynasty lyrics (ci).

    python -m demo.train --corpus ../shared/corpora/song_ci.jsonl --output out/song-ci-trained

A small GPT-2 of CPM's architecture comes out, in the layout that CPM is released in (float16, DeepSpeed's names, model
parallel size 2), with the vocabulary, and with its perplexity on poems that it never saw in ``training.json``. The same
command goes on where it was stopped. The poems are in the public domain. A poem is one document: the tune's name, a
line feed, the lines each with a line feed, ``<eod>``.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import training
from demo.__main__ import CHECKPOINT
from demo.corpus import SEED, split, write_json_lines
from support.command_line import Parser, set_environment
from support.main_guard import main_guard
from support.progress import TerminalProgress
from tokenization import CPMTokenizer
from training.run.watching import TerminalWatcher

SIZES = "layers=4,hidden=208,heads=4,positions=256"
RECIPE = {
    "preset": "poem",
    "epochs": 16,
    "batch_size": 16,
    "micro_batch": 16,
    "optimizer": "muon",
    "learning_rate": 1.5e-3,
    "schedule": "cosine",
    "warmup": 0.05,
    "weight_decay": 0.1,
    "dropout": 0.05,
    "form_weight": 5.0,
    "products": "bfloat16",
    "seed": SEED,
    "sample": 0,
    "keep": "last",
    "format": "megatron",
    "tensor_parallel": 2,
    "dtype": "float16",
}
"""What differs from the defaults of ``finetune``. The form of a tune counts: with weight 0 fewer poems have it."""
_UNKNOWN = 0


def write_corpus(corpus: Path, tokenizer: Path, folder: Path) -> tuple[Path, Path]:
    """Write the poems to train on and those held out, as JSON lines.

    A poem with an unknown character would teach the model to write unknown characters, and one with characters of two
    tokens would shift the positions of those after them: neither is trained on.
    """
    vocabulary = CPMTokenizer(tokenizer)
    held_out, texts = split(corpus, random.Random(SEED))

    def is_learnable(text: str) -> bool:
        ids = vocabulary.encode(text)
        return _UNKNOWN not in ids and len(ids) == len(text) + text.count("\n")  # a line feed is two tokens

    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.jsonl", folder / "held-out.jsonl"
    write_json_lines([text for text in texts if is_learnable(text)], files[0])
    write_json_lines(held_out, files[1])
    return files


def main() -> None:
    parser = Parser(prog="python -m demo.train", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="song_ci.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the checkpoint's folder, to be made")
    parser.add_argument(
        "--vocabulary-size", type=int, metavar="N", help="make a vocabulary (default: the demo's, of 6,000 pieces)"
    )
    parser.add_argument("--init", default=SIZES, metavar="SIZES", help="sizes of the model (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=RECIPE["epochs"], metavar="X", help="default: %(default)s")
    args = parser.parse_args()
    set_environment(hide_gpus=True)
    folder = args.output.with_name(f"{args.output.name}.texts")
    tokenizer = CHECKPOINT / "tokenizer"
    if args.vocabulary_size is not None:
        from demo.vocabulary import make_vocabulary

        tokenizer = folder / "tokenizer"
        make_vocabulary(split(args.corpus, random.Random(SEED))[1], args.vocabulary_size, tokenizer)
    texts, held_out = write_corpus(args.corpus, tokenizer, folder)
    with TerminalProgress() as progress, TerminalProgress(unit=" steps") as steps:
        result = training.finetune(
            None,
            texts,
            args.output,
            watcher=TerminalWatcher(steps),
            progress=progress,
            **{**RECIPE, "epochs": args.epochs, "init": args.init, "tokenizer": tokenizer, "validation": held_out},
        )
    shutil.copytree(tokenizer, args.output / "tokenizer")
    print(result.summary())


if __name__ == "__main__":
    sys.exit(main_guard(main))
