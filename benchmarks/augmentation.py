"""What augmentation is worth: a classifier with few examples, with and without texts that a fine-tuned model wrote.

    python -m benchmarks.augmentation --corpus ../shared/corpora/song_ci.jsonl

The task: a line of a Song lyric had 梅 (plum blossom), 舟 (boat), 酒 (wine) or 寿 (long life) in it, and the character
was taken out; which one was it? All lines are of poems that the demo was not trained on. The classifier is naive Bayes
over characters. With each seed other poems are for training and for the test; the demo is fine-tuned on the examples
alone (``finetune --prefix label``), and writes as many texts for each label as are asked for.
"""

from __future__ import annotations

import argparse
import collections
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import training
from convert.formats.registry import CheckpointSpec
from demo.__main__ import CHECKPOINT, HEADS
from demo.corpus import SEED, read_poems, split, write_json_lines
from training.augmentation.augmenting import AugmentationResult, Candidate, Filters, LabelledText, augment

LABELS = "梅舟酒寿"
SHORTEST = 9
"""Characters of a line: shorter ones say little."""
TESTED = 200
"""Lines of a label that are tested at most."""
BATCH = 64
FILTERS = {
    "all that it wrote": Filters(probability=0, overlap=1),
    "no copies": Filters(probability=0),
    "no copies, probability 0.5": Filters(probability=0.5),
    "no copies, probability 0.8": Filters(probability=0.8),
    "no copies, probability 0.9": Filters(probability=0.9),
}


def labelled_lines(corpus: Path) -> list[list[LabelledText]]:
    """The lines of each poem that the demo was not trained on, without the character that is their label."""
    _, trained = split(corpus, random.Random(SEED))
    seen = {line for text in trained for line in text.split("\n")}
    poems = []
    for poem in read_poems(corpus):
        found = []
        for line in poem["lines"]:
            labels = [label for label in LABELS if label in line]
            if len(labels) == 1 and len(line) >= SHORTEST and line not in seen:
                found.append(LabelledText(line.replace(labels[0], ""), labels[0]))
        if found:
            poems.append(found)
    return poems


def examples(poems: Sequence[list[LabelledText]], number: int, seed: int) -> tuple[list[LabelledText], ...]:
    """``number`` lines of each label to learn from, and as many of each to test with, of other poems."""
    order = list(poems)
    random.Random(seed).shuffle(order)
    parts = []
    for part, most in ((order[len(order) // 3 :], number), (order[: len(order) // 3], TESTED)):
        lines = list(dict.fromkeys(line for poem in part for line in poem))
        counts = collections.Counter(line.label for line in lines)
        most = min(most, *counts.values())
        parts.append([line for label in LABELS for line in [one for one in lines if one.label == label][:most]])
    return tuple(parts)


class NaiveBayes:
    """Multinomial naive Bayes over characters without marks; each character of a label is counted half more."""

    def __init__(self, texts: Sequence[LabelledText]) -> None:
        self._counts = {label: collections.Counter[str]() for label in LABELS}
        for text, label in texts:
            self._counts[label].update(filter(str.isalpha, text))
        self._known = len({character for counts in self._counts.values() for character in counts})
        self._totals = {label: sum(counts.values()) for label, counts in self._counts.items()}

    def classify(self, text: str) -> str:
        def score(label: str) -> float:
            total = self._totals[label] + 0.5 * (self._known + 1)
            return sum(math.log((self._counts[label][one] + 0.5) / total) for one in filter(str.isalpha, text))

        return max(LABELS, key=score)

    def accuracy(self, texts: Sequence[LabelledText]) -> float:
        return sum(self.classify(text) == label for text, label in texts) / len(texts)


class Remembered:
    """A ``LabelModel`` that writes each text once, however often it is asked."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._texts: dict[tuple[str, int], Candidate] = {}
        self._likelihoods: dict[Candidate, Any] = {}

    def write(self, label: str, seeds: Sequence[int]) -> list[Candidate]:
        if new := [seed for seed in seeds if (label, seed) not in self._texts]:
            written = self._model.write(label, new)
            self._texts.update(zip([(label, seed) for seed in new], written, strict=True))
        return [self._texts[label, seed] for seed in seeds]

    def log_likelihoods(self, candidates: Sequence[Candidate], labels: Sequence[str]) -> Any:
        import numpy as np

        if new := [candidate for candidate in dict.fromkeys(candidates) if candidate not in self._likelihoods]:
            self._likelihoods.update(zip(new, self._model.log_likelihoods(new, labels), strict=True))
        return np.stack([self._likelihoods[candidate] for candidate in candidates])


def fine_tuned(train: Sequence[LabelledText], folder: Path, seed: int) -> Remembered:
    """The demo, fine-tuned on labelled texts."""
    file = folder / "labelled.jsonl"
    write_json_lines([line._asdict() for line in train], file)
    training.finetune(
        CheckpointSpec(CHECKPOINT, HEADS), file, folder / "model", prefix=["label"], validation=0, epochs=10,
        learning_rate=5e-4, length=64, batch_size=4, seed=seed, sample=0, tokenizer=CHECKPOINT / "tokenizer",
    )  # fmt: skip
    from inference.text_generator import TextGenerator
    from training.augmentation.label_model import GeneratorOfLabels

    generator = TextGenerator.load(folder / "model", max_batch_size=BATCH)
    options = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 48}
    return Remembered(GeneratorOfLabels(generator, list(LABELS), BATCH, is_chinese=True, **options))


def measure(train: list[LabelledText], test: list[LabelledText], number: int, seed: int) -> dict[str, float]:
    """Accuracy without new texts, and with ``number`` of each label by each filter."""
    with tempfile.TemporaryDirectory() as temporary:
        model = fine_tuned(train, Path(temporary), seed)
        found = {"none": NaiveBayes(train).accuracy(test)}
        for name, filters in FILTERS.items():
            result: AugmentationResult = augment(
                model, list(LABELS), number, known=train, filters=filters, seed=1000 * seed, batch_size=BATCH
            )
            new = [LabelledText(text.text, text.label) for text in result.texts]
            found[name] = NaiveBayes([*train, *new]).accuracy(test)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=20, help="of each label (default %(default)s)")
    parser.add_argument("--number", type=int, default=200, help="new texts of each label (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions (default %(default)s)")
    args = parser.parse_args()
    poems = labelled_lines(args.corpus)
    results = []
    for seed in range(args.seeds):
        train, test = examples(poems, args.examples, seed)
        results.append(measure(train, test, args.number, seed))
        print(f"seed {seed}, {len(train)} examples, {len(test)} tested:", results[-1], flush=True)
    print(f"\n| new texts | accuracy, mean of {args.seeds} | deviation | gain | deviation |\n|---|---|---|---|---|")
    for name in results[0]:
        values = [result[name] for result in results]
        gains = [result[name] - result["none"] for result in results]
        figures = " | ".join(f"{statistics.mean(some):.3f} | {statistics.pstdev(some):.3f}" for some in (values, gains))
        print(f"| {name} | {figures} |")


if __name__ == "__main__":
    main()
