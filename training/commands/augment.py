"""``augment``: labels in, texts of them out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from convert.commands.options import print_notes
from exports.generation_options import BEAM_OPTIONS
from inference.commands.options import add_model, add_options, given_options, load_generator, read_requests
from support.command_line import check_paths, utf8_text

if TYPE_CHECKING:
    from training.augmentation.augmenting import LabelledText

DESCRIPTION = """\
Writes new texts for the labels of a classifier, as JSON lines with text, label and probability. The model has been
trained on labelled texts, JSON lines such as {"text": "...", "label": "..."}, by finetune --prefix label. A text is
left out if it has no end, is a copy of a known text, or if the model finds another label more probable.
"""
EXAMPLES = ("{command} out/song-ci --labels 浣溪沙 西江月 --number 2 --output out/poems.jsonl",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--labels-from",
        type=Path,
        metavar="FILE",
        help="the labelled texts that the model was trained on: their labels are taken, and no copies of them are kept",
    )
    parser.add_argument("--label-field", default="label", metavar="NAME", help="where a label is (default: label)")
    parser.add_argument(
        "--labels", nargs="+", type=utf8_text, metavar="LABEL", help="the labels (default: all of --labels-from)"
    )
    parser.add_argument("--number", type=int, default=100, metavar="N", help="texts for each label (default: 100)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines, to be made")
    parser.add_argument(
        "--min-probability",
        type=float,
        default=0.9,
        metavar="X",
        help="the least probability that the model gives the label of a text, 0 for any (default: 0.9)",
    )
    parser.add_argument(
        "--max-overlap",
        type=float,
        default=0.5,
        metavar="X",
        help="the greatest share of a text, in pieces of four characters, that known texts have (default: 0.5)",
    )
    parser.add_argument("--min-characters", type=int, default=1, metavar="N", help="of a text (default: 1)")
    parser.add_argument("--max-characters", type=int, metavar="N", help="of a text (default: any number)")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="texts written at once (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first text of a label (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace --output")
    parser.add_argument("--json", action="store_true", help="print how many texts there are as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes and no closing line")
    add_options(parser, "seed", *BEAM_OPTIONS, presets=False)


def run(args: argparse.Namespace) -> None:
    """Read labels, load the model, write texts."""
    from inference.text_generator import check_batch_size
    from support.progress import TerminalProgress
    from training.augmentation.augmenting import Filters, augment, check_output, write_texts
    from training.augmentation.label_model import GeneratorOfLabels, loses_chinese_marks

    check_paths([args.output, *([args.labels_from] if args.labels_from else [])])
    check_batch_size(args.batch_size)
    filters = Filters(args.min_probability, args.max_overlap, args.min_characters, args.max_characters)
    known = _known(args)
    labels = list(dict.fromkeys(args.labels or [one.label for one in known]))
    check_output(args.output, [args.model, *([args.labels_from] if args.labels_from else [])], overwrite=args.force)
    requests = read_requests(args)
    requests.check_reads_text()
    options = {name: value for name, value in given_options(args).items() if name != "seed"}  # it counts texts here
    generator = load_generator(args, requests, args.batch_size, quiet=args.quiet or args.json)
    model = GeneratorOfLabels(
        generator,
        labels,
        args.batch_size,
        is_chinese=loses_chinese_marks(generator, [one.text for one in known]),
        **options,
    )
    with TerminalProgress(quiet=args.quiet or args.json, unit=" texts") as progress:
        result = augment(
            model,
            labels,
            args.number,
            known=known,
            filters=filters,
            seed=args.seed,
            batch_size=args.batch_size,
            on_progress=lambda done, total: progress("augment", done, total),
        )
    write_texts(result.texts, args.output)
    if args.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
    elif not args.quiet:
        print_notes(result.notes)
        print(f"{args.output}: {result.summary()}")


def _known(args: argparse.Namespace) -> list[LabelledText]:
    from training.augmentation.augmenting import AugmentationError, read_labelled

    if args.labels_from is None and not args.labels:
        raise AugmentationError("no labels: give --labels-from FILE, or --labels LABEL LABEL ...")
    return read_labelled(args.labels_from, args.label_field) if args.labels_from else []
