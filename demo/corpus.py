"""The corpus of the demo: which poems the model was trained on, and which it never saw.

    python -m demo.corpus ../shared/corpora/song_ci.jsonl held-out.jsonl

writes the latter, one a line, for ``python -m convert verify --text``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HELD_OUT, SEED = 0.02, 20201113
COMMON = 40
"""Poems that a tune must have in the corpus to be learned: the form of a rarer one would not be."""


def poems_of_tunes(corpus: Path, fewest: int = COMMON, limit: float = math.inf) -> list[dict[str, Any]]:
    """The poems of tunes that have ``fewest`` or more, below ``limit``.

    Of a tune with two names (A・B) each poem has one, in turn.
    """
    poems = read_poems(corpus)
    count = Counter(poem["tune"] for poem in poems)
    chosen = []
    for number, poem in enumerate(poems):
        if fewest <= count[poem["tune"]] < limit:
            names = poem["tune"].split("・")
            chosen.append({**poem, "tune": names[number % len(names)]})
    return chosen


def read_poems(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in corpus.read_text("utf-8").splitlines()]


def text_of(poem: Mapping[str, Any]) -> str:
    """What the demo is trained on of a poem, without its end."""
    return "\n".join([poem["tune"], *poem["lines"], ""])


def split_poems(corpus: Path, rng: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The poems held out, and those to be trained on; always the same for a new ``random.Random(SEED)``."""
    poems = poems_of_tunes(corpus)
    rng.shuffle(poems)
    cut = int(len(poems) * HELD_OUT)
    return poems[:cut], poems[cut:]


def split(corpus: Path, rng: random.Random) -> tuple[list[str], list[str]]:
    """The texts of ``split_poems``."""
    held_out, train = split_poems(corpus, rng)
    return [text_of(poem) for poem in held_out], [text_of(poem) for poem in train]


def write_json_lines(values: Iterable[object], output: Path) -> None:
    """A line each: a text, or an object with fields."""
    output.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "utf-8")


def write_held_out(corpus: Path, output: Path) -> None:
    """Write the poems that are held out."""
    held_out, _ = split(corpus, random.Random(SEED))
    write_json_lines(held_out, output)


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
