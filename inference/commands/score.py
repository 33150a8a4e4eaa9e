"""``score``: the perplexity of a text under one model."""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exports.generation_config import OptionError
from inference.commands.options import add_model, load_generator, read_requests

if TYPE_CHECKING:
    from inference.scoring import CorpusScore
    from support.documents import Document

DESCRIPTION = """\
Prints how well the model predicts a text: tokens, characters, perplexity (of a token) and bits per character, for each
document and for all together. Perplexities of models with different tokenizers cannot be compared, bits per character
can. A document longer than the model is read in windows that overlap by half. The first token of a document counts only
where the model has a token to start from (CPM's has none). The end of a document does not count.
"""
EXAMPLES = (
    "{command} out/song-ci --text demo/held-out.jsonl",
    "{command} out/song-ci --text demo/held-out.jsonl --json",
)

_ROW = "{:<12} {:>10} {:>10} {:>12} {:>20}"
_HEADER = ("document", "tokens", "characters", "perplexity", "bits per character")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--text",
        type=Path,
        required=True,
        metavar="FILE",
        help='UTF-8: one document, or JSON lines (.jsonl) or an array (.json) of strings, or of objects with "text"',
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines: one for each document, then the total")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="documents read at once (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> None:
    """Read the documents, load the model, print a line for each and one for all."""
    from inference.scoring import CorpusScore
    from support.documents import json_note, read_documents
    from support.errors import UserError
    from support.progress import TerminalProgress

    if args.batch_size < 1:
        raise OptionError(f"--batch-size is {args.batch_size}: expected 1 or more")
    requests = read_requests(args)
    requests.check_reads_text()
    documents = read_documents(args.text, UserError)
    first = next(documents)  # a file that cannot be used is reported before the model is loaded
    if (note := json_note(args.text, first)) is not None and not args.quiet:
        print(f"note: {note}", file=sys.stderr)
    generator = load_generator(args, requests, args.batch_size, quiet=args.quiet)
    read: collections.deque[Document] = collections.deque()
    size = max(1, args.text.stat().st_size)
    table = _Table(as_json=args.json)
    total, unknown = CorpusScore.of(()), 0
    with TerminalProgress(quiet=args.quiet) as progress:
        for score in generator.score_each(
            _texts(itertools.chain([first], documents), read),
            batch_size=args.batch_size,
            on_progress=lambda done: progress("score", min(done, size), size),
        ):
            figures = CorpusScore.of([score])
            table.print_document(read.popleft(), figures)
            total += figures
            unknown += score.tokens.count(requests.tokenizer.unknown_token_id)
    if not total.tokens:
        raise UserError(f"{args.text}: expected a text of 2 tokens or more: the first one has no probability")
    table.print_total(total)
    if unknown and not args.quiet:
        print(
            f"note: the model's vocabulary does not have {unknown:,} of {total.tokens:,} tokens: the figures say "
            "little about them",
            file=sys.stderr,
        )


def _texts(documents: Iterable[Document], read: collections.deque[Document]) -> Iterator[str]:
    """Yield the texts of documents, and append to ``read`` where they are."""
    for document in documents:
        read.append(document._replace(text=""))
        yield document.text


class _Table:
    """Prints figures as lines of a table, or of JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._has_header = False

    def print_document(self, document: Document, figures: CorpusScore) -> None:
        """Print the figures of a document; those of the only one are the total."""
        if self._as_json:
            self._print_json({document.unit: document.line}, figures)
        elif document.name is not None:
            self._print_row(document.name, figures)

    def print_total(self, figures: CorpusScore) -> None:
        """Print the figures of all documents together."""
        if self._as_json:
            self._print_json({"total": True}, figures)
        else:
            self._print_row("total", figures)

    def _print_json(self, head: dict[str, Any], figures: CorpusScore) -> None:
        _print_line(json.dumps({**head, **figures.to_dict()}))

    def _print_row(self, name: str, figures: CorpusScore) -> None:
        if not self._has_header:
            _print_line(_ROW.format(*_HEADER))
            self._has_header = True
        values = (figures.perplexity, figures.bits_per_character)
        texts = [f"{value:.3f}" if math.isfinite(value) else "-" for value in values]
        _print_line(_ROW.format(name, figures.tokens, figures.characters, *texts))


def _print_line(line: str) -> None:
    """Print a line where a progress bar may be."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()
