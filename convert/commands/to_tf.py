"""``pytorch-to-tf``: a checkpoint in, one SavedModel out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.commands.options import add_checkpoint_option, add_source_options, add_tokenizer_option, checkpoint_spec
from convert.conversion import counted_reader, hash_files, source_notes
from convert.dtype_choice import AUTO, OTHERWISE, check_runs_here, choose_dtype, runs_here, wanted
from convert.formats.tokenizer_files import tokenizer_for, tokens_for
from convert.output.atomic_folder import check_destination, new_folder
from convert.output.hashing import Hasher
from convert.provenance import describe
from convert.verification.checkpoint_logits import check_torch
from convert.verification.compare import verify_apart
from exports.assets import write_assets
from support.errors import ConvertError
from support.progress import TerminalProgress
from support.tensorflow_runtime import quiet_stderr
from tf_model.precision import DTYPES, stored_bytes
from tokenization import Tokenizer
from tokenization.special_tokens import SpecialTokens

DESCRIPTION = """\
Merges the model-parallel shards of a Chinese GPT-2 (CPM-Generate, CPM-distill, their fine-tuned models) and writes
one TensorFlow SavedModel. Sizes are read from the shards; nothing inside them is run.
"""
EXAMPLES = ("{command} --checkpoint demo/song-ci --tokenizer demo/song-ci/tokenizer --heads 4 --output out/song-ci",)

_GRAPH_BYTES = 1 << 24
"""Room for the graph, the index and the tokenizer, beside the weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the SavedModel's folder, to be made")
    add_tokenizer_option(parser, "to be stored in the SavedModel; without, it knows token ids only")
    parser.add_argument(
        "--dtype",
        choices=(*DTYPES, AUTO),
        default=DTYPES[0],
        help=f"type of the weights written (default: %(default)s); {AUTO} is the one that this machine's CPU is made "
        f"for: {wanted()}, else {OTHERWISE}",
    )
    add_source_options(parser)
    parser.add_argument(
        "--verify", action="store_true", help="compare the result with its source (see verify) before it appears"
    )
    parser.add_argument("--force", action="store_true", help="replace the SavedModel DIR, once the new one is complete")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no closing line")


def run(args: argparse.Namespace) -> None:
    started = time.monotonic()
    if args.verify:
        check_torch()
    source = checkpoint_spec(args)
    checkpoint = source.open()
    tokenizer = tokenizer_for(args.tokenizer, checkpoint)
    tokens = tokens_for(args.tokenizer, tokenizer, checkpoint)
    if not args.quiet:
        for note in source_notes(checkpoint):
            print(f"note: {note}", file=sys.stderr)
    inputs = [path for path in (args.checkpoint, args.tokenizer) if path is not None]
    dtype = _dtype(args, inputs)
    size = stored_bytes(checkpoint.config, dtype)
    with new_folder(args.output, force=args.force, size=size + _GRAPH_BYTES, inputs=inputs) as folder:
        with Hasher() as hasher:
            hash_files(checkpoint, hasher)
            _write(folder, checkpoint, dtype, tokens, tokenizer, hasher, args.quiet)
            parity = None
            if args.verify:
                with TerminalProgress(quiet=args.quiet) as progress:
                    parity = verify_apart(source, folder, progress)
                parity.check(args.output)
            describe(folder, checkpoint, dtype, tokens, tokenizer is not None, hasher, parity)
        written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if not args.quiet:
        if parity:
            print(parity)
        print(
            f"{checkpoint.config.parameter_count:,} parameters as {dtype}, {written / 1e6:,.1f} MB, "
            f"{time.monotonic() - started:.1f} s{'' if tokenizer else ', no tokenizer: token ids only'}; load it with: "
            f"import tensorflow_hub as hub; model = hub.load({os.path.abspath(args.output)!r})"
        )


def _dtype(args: argparse.Namespace, inputs: list[Path]) -> str:
    """Return what ``--dtype`` says or, for ``auto``, what this machine is made for, told on stderr."""
    if args.dtype != AUTO:
        if args.verify:
            check_runs_here(args.dtype, args.output, "Convert and verify")
        if not runs_here(args.dtype) and not args.quiet:
            print(
                f"note: --dtype {args.dtype} needs a CPU with VNNI instructions; this one has none: use int8-avx2 here",
                file=sys.stderr,
            )
        return str(args.dtype)
    check_destination(args.output, args.force, inputs)  # the choice may need TensorFlow, which takes seconds
    choice = choose_dtype()
    if not args.quiet:
        print(f"note: {choice}", file=sys.stderr)
    return choice.dtype


def _write(
    folder: Path, checkpoint: Checkpoint, dtype: str, tokens: SpecialTokens, tokenizer: Tokenizer | None,
    hasher: Hasher, quiet: bool,
) -> None:  # fmt: skip
    """Fill ``folder`` with the SavedModel and its assets."""
    with quiet_stderr():  # takes seconds: only once the input is known to be good
        import tensorflow as tf

        from exports.saved_model import write_saved_model

    with TerminalProgress(quiet=quiet) as progress:
        try:
            read = counted_reader(checkpoint, progress)
            data, sha256 = write_saved_model(folder, checkpoint.config, dtype, tokens, read)
        except tf.errors.OpError as error:  # the file system, as TensorFlow's writer of the graph sees it
            reason = error.message.splitlines()[0].split("; ")[-1].split(" [Op:")[0]
            raise ConvertError(f"{folder}: cannot be written: {reason}; nothing was left behind") from error
    hasher.record(data, {"sha256": sha256})
    write_assets(folder / "assets", checkpoint.config, dtype, tokens, tokenizer)
