"""The corpus of the demo: which poems the model was trained on, and which it never saw.

    python -m demo.corpus ../shared/corpora/song_ci.jsonl held-out.jsonl

writes the latter, one a line, for ``python -m convert verify --text``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

HELD_OUT, SEED = 0.02, 20201113
COMMON = 40
"""Poems that a tune must have in the corpus to be learned: the form of a rarer one would not be."""


def documents(corpus: Path) -> list[str]:
    """One text a poem, of the tunes that are common. A tune with two names (A・B) is listed under each in turn."""
    poems = [json.loads(line) for line in corpus.read_text("utf-8").splitlines()]
    count = Counter(poem["tune"] for poem in poems)
    texts = []
    for number, poem in enumerate(poems):
        if count[poem["tune"]] >= COMMON:
            names = poem["tune"].split("・")
            texts.append("\n".join([names[number % len(names)], *poem["lines"], ""]))
    return texts


def split(corpus: Path, rng: random.Random) -> tuple[list[str], list[str]]:
    """The poems held out, and those to be trained on; always the same for a new ``random.Random(SEED)``."""
    texts = documents(corpus)
    rng.shuffle(texts)
    cut = int(len(texts) * HELD_OUT)
    return texts[:cut], texts[cut:]


def write_held_out(corpus: Path, output: Path) -> None:
    """JSON lines, a string each."""
    held_out, _ = split(corpus, random.Random(SEED))
    output.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in held_out), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    try:
        write_held_out(args.corpus, args.output)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except (ValueError, KeyError, TypeError) as error:
        parser.error(f"{args.corpus}: expected JSON lines with tune and lines: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
