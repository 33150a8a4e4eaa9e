"""How many poems have the form of their tune, of several checkpoints next to each other.

    python -m demo.forms demo/song-ci out/song-ci-trained --number 60

The poems of all checkpoints are drawn with the same seed.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from demo.__main__ import convert_checkpoint, positive, verses
from support.command_line import Parser, set_environment
from support.main_guard import main_guard

FORMS = {
    "浣溪沙": [7, 7, 7, 7, 7, 7],
    "菩萨蛮": [7, 7, 5, 5, 5, 5, 5, 5],
    "鹧鸪天": [7, 7, 7, 7, 3, 3, 7, 7, 7],
    "西江月": [6, 6, 7, 6, 6, 6, 7, 6],
    "如梦令": [6, 6, 5, 6, 2, 2, 6],
}
"""Characters of each phrase, from any handbook of ci."""


def phrases(poem: str) -> list[int]:
    """Characters of each phrase, without the tune's name."""
    return [len(phrase) for phrase in re.split("[，。、\n]+", poem.partition("\n")[2]) if phrase]


def share_in_form(folder: Path, tune: str, number: int, seed: int) -> float:
    """The share of poems of the SavedModel in ``folder`` that have exactly the phrases of their tune."""
    return sum(phrases(poem) == FORMS[tune] for poem in verses(folder, [tune], number, seed)) / number


def main() -> None:
    parser = Parser(prog="python -m demo.forms", description="Counts poems that have the form of their tune.")
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="DIR", help="each with its tokenizer in it")
    parser.add_argument("--number", type=positive, default=60, metavar="N", help="poems a tune (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    args = parser.parse_args()
    set_environment(hide_gpus=True)
    print("tune", *args.checkpoints, sep="\t")
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(index)) for index in range(len(args.checkpoints))]
        for checkpoint, folder in zip(args.checkpoints, folders, strict=True):
            convert_checkpoint(folder, checkpoint)
        for tune in FORMS:
            shares = [share_in_form(folder, tune, args.number, args.seed) for folder in folders]
            print(tune, *(f"{share:.2f}" for share in shares), sep="\t", flush=True)


if __name__ == "__main__":
    sys.exit(main_guard(main))
