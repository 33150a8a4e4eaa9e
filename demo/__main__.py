"""The demo: converts the checkpoint in this folder, loads the SavedModel with tensorflow_hub, prints poems.

python -m demo [--tune NAME ...] [--number N] [--seed N] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from support.command_line import Parser, set_environment, utf8_text
from support.main_guard import main_guard

CHECKPOINT = Path(__file__).parent / "song-ci"
TUNES = ("浣溪沙", "鹧鸪天", "菩萨蛮", "如梦令")
HEADS = 4


def convert_checkpoint(folder: Path, source: Path = CHECKPOINT) -> None:
    """Write the SavedModel of the demo's checkpoint, or one like it, to ``folder``; an older one is replaced."""
    import convert

    checkpoint = convert.open_checkpoint(source, heads=HEADS)
    convert.to_savedmodel(checkpoint, folder, tokenizer=source / "tokenizer", overwrite=True)


def verses(folder: Path, tunes: list[str], number: int, seed: int = -1) -> list[str]:
    """Sample ``number`` poems for each tune from the SavedModel in ``folder``."""
    import inference
    from tokenization import chinese_punctuation

    generator = inference.load(folder)
    prompts = [f"{tune}\n" for tune in tunes]
    poems = generator.generate(
        prompts, num_return_sequences=number, batch_size=16, max_new_tokens=150, temperature=0.9, top_p=0.7, seed=seed
    )
    return [chinese_punctuation(poem.full_text).strip() for poem in poems]


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected 1 or more")
    return number


def tune_name(text: str) -> str:
    name = utf8_text(text).strip()
    if not 0 < len(name) <= 20:
        raise argparse.ArgumentTypeError(f"{name[:20]!r}: expected a name of 1 to 20 characters")
    return name


def main() -> None:
    parser = Parser(prog="python -m demo", description="Converts the demo checkpoint and prints poems.")
    parser.add_argument(
        "--tune", nargs="+", type=tune_name, default=list(TUNES), metavar="NAME", help=f"default: {' '.join(TUNES)}"
    )
    parser.add_argument("--number", type=positive, default=1, metavar="N", help="poems per tune (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=-1, metavar="N", help="the same seed gives the same poems")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep the SavedModel here (default: nowhere)")
    args = parser.parse_args()
    set_environment(hide_gpus=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary) / "song-ci-savedmodel"
        kept = f" to {folder}" if args.output else ""
        print(f"Converting {CHECKPOINT.name}{kept} and loading it with tensorflow_hub ...", flush=True)
        convert_checkpoint(folder)
        for poem in verses(folder, args.tune, args.number, args.seed):
            print(f"\n{poem}")


if __name__ == "__main__":
    sys.exit(main_guard(main))
