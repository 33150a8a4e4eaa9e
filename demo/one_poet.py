"""Fine-tunes the demo on one poet: after a minute or two it predicts the poet's other poems better than before.

    python -m demo.one_poet --corpus ../shared/corpora/song_ci.jsonl --output out/one-poet

It is this command, with the poet's poems as texts; the tune's name is read before a poem, and not learned:

    gpt2-savedmodel finetune --model demo/song-ci --heads 4 --tokenizer demo/song-ci/tokenizer --preset poem \\
        --text out/one-poet.texts/train.jsonl --validation out/one-poet.texts/held-out.jsonl --prefix tune \\
        --epochs 2 --learning-rate 3e-4 --output out/one-poet

Held out is half of the poet's poems that the demo does not know: most of them are of tunes that are rare.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import training
from convert.formats.registry import CheckpointSpec
from demo.__main__ import CHECKPOINT, HEADS
from demo.corpus import SEED, read_poems, split_poems, write_json_lines
from support.command_line import Parser, set_environment, utf8_text
from support.errors import UserError
from support.main_guard import main_guard
from support.progress import TerminalProgress
from training.run.watching import TerminalWatcher

POET = "辛弃疾"
"""Xin Qiji, of whom more poems are left than of any other poet of the Song."""
RECIPE: dict[str, Any] = {
    "preset": "poem",
    "prefix": ["tune"],
    "epochs": 2,
    "learning_rate": 3e-4,
}


def write_poems(poems: list[dict[str, Any]], output: Path) -> None:
    """JSON lines, with ``text`` and ``tune``."""
    write_json_lines([{"tune": poem["tune"], "text": "\n".join(poem["lines"])} for poem in poems], output)


def write_poet(corpus: Path, poet: str, folder: Path) -> tuple[Path, Path]:
    """Write the poems of a poet: those to train on, and those held out.

    Raises:
        UserError: there are too few.
    """
    _, learnt = split_poems(corpus, random.Random(SEED))
    known = {tuple(poem["lines"]) for poem in learnt}
    poems = [{**poem, "tune": poem["tune"].split("・")[0]} for poem in read_poems(corpus) if poem["author"] == poet]
    unseen = [poem for poem in poems if tuple(poem["lines"]) not in known]
    held_out = random.Random(SEED).sample(unseen, len(unseen) // 2)
    if not held_out:
        raise UserError(f"{corpus}: {len(unseen)} poems by {poet} that the demo does not know: expected 2 or more")
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.jsonl", folder / "held-out.jsonl"
    write_poems([poem for poem in poems if poem not in held_out], files[0])
    write_poems(held_out, files[1])
    return files


def train_on_poet(corpus: Path, poet: str, output: Path, **options: Any) -> training.FinetuneResult:
    """Fine-tune the demo; ``options`` are those of ``training.finetune``."""
    texts, held_out = write_poet(corpus, poet, output.with_name(f"{output.name}.texts"))
    model = CheckpointSpec(CHECKPOINT, HEADS)
    settings = {**RECIPE, "tokenizer": CHECKPOINT / "tokenizer", "validation": held_out, **options}
    return training.finetune(model, texts, output, **settings)


def main() -> None:
    parser = Parser(prog="python -m demo.one_poet", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="song_ci.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the SavedModel's folder, to be made")
    parser.add_argument("--poet", type=utf8_text, default=POET, metavar="NAME", help="default: %(default)s")
    args = parser.parse_args()
    set_environment(hide_gpus=True)
    with TerminalProgress() as progress, TerminalProgress(unit=" steps") as steps:
        result = train_on_poet(args.corpus, args.poet, args.output, watcher=TerminalWatcher(steps), progress=progress)
    print(result.summary())


if __name__ == "__main__":
    sys.exit(main_guard(main))
