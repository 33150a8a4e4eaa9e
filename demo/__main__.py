"""The demo: converts the checkpoint in this folder, loads the result with tensorflow_hub, prints verses.

python -m demo [--output DIR] [--tune NAME ...] [--number N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

from convert.__main__ import main as convert
from exports.quiet import quiet_stderr
from tokenization import CPMTokenizer

CHECKPOINT = Path(__file__).parent / "song-ci"
TUNES = ("浣溪沙", "鹧鸪天", "菩萨蛮", "如梦令")
HEADS = 4


def verses(folder: Path, tunes: list[str], number: int, top_p: float = 0.8, temperature: float = 0.9) -> list[str]:
    """``number`` poems for each tune, sampled by the SavedModel in ``folder``."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorflow_hub 0.16.1 imports pkg_resources, which says that it is old
        import tensorflow as tf
        import tensorflow_hub as hub

    model = hub.load(str(folder))
    tokenizer = CPMTokenizer(folder / "assets")
    poems = []
    for tune in tunes:
        prompt = tokenizer.encode(f"{tune}\n")
        sampled = model.signatures["serving_default"](
            inp=tf.constant([prompt] * number, tf.int64),
            length=tf.constant(150, tf.int64),
            top_p=tf.constant(top_p),
            temperature=tf.constant(temperature),
        )["output_0"]
        for row in sampled.numpy().tolist():
            end = row.index(tokenizer.eod_id) if tokenizer.eod_id in row else len(row)
            # CPM's tokenizer makes the comma an ASCII one; a poem looks right with the Chinese one.
            poems.append(tokenizer.decode(row[:end]).replace(",", "，").strip())
    return poems


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected 1 or more")
    return number


def tune_name(text: str) -> str:
    if not 0 < len(text.strip()) <= 20:
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: expected a name of 1 to 20 characters")
    return text.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Converts the demo checkpoint, prints verses.")
    parser.add_argument(
        "--tune", nargs="+", type=tune_name, default=list(TUNES), metavar="NAME", help=f"default: {' '.join(TUNES)}"
    )
    parser.add_argument("--number", type=positive, default=1, metavar="N", help="poems per tune (default: %(default)s)")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "song-ci-savedmodel"
            print(f"Converting {CHECKPOINT.name} and loading it with tensorflow_hub ...", flush=True)
            code = convert(
                ["pytorch-to-tf", "--checkpoint", str(CHECKPOINT), "--tokenizer", str(CHECKPOINT / "tokenizer"),
                 "--heads", str(HEADS), "--output", str(folder), "--quiet"]
            )  # fmt: skip
            if code:
                return code
            for poem in verses(folder, args.tune, args.number):
                print(f"\n{poem}")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
