"""``verify``: does a SavedModel, or another checkpoint, compute what its source computes?

Both get the same token ids, and all logits of all positions are compared. TensorFlow runs an exported graph; CPM's
shards are run as Megatron would, by ``parallel_reference``, which shares nothing with the conversion but the ``.pt``
reader; checkpoints of other formats are run by ``reference``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from convert.checkpoint import Checkpoint
from convert.commands.options import CHECKPOINT_HELP, add_source_options
from convert.dtype_choice import check_runs_here
from convert.formats.registry import is_known
from convert.source import SourceOptions
from convert.tensors import Array, widest
from convert.verification.logits_sources import (
    MAPPED,
    check_signature,
    check_sizes,
    dtype_of,
    end_with_parent,
    saved_model_logits,
    spool,
)
from convert.verification.report import TOLERANCES, Comparison, ParityReport, PromptParity, VerificationError
from convert.verification.text_windows import MAX_TOKENS, read_prompts, read_text
from support.errors import ConvertError
from support.progress import progress
from support.tensorflow_runtime import quiet_stderr, set_mmap_threshold
from tf_model.config import GPT2Config

DESCRIPTION = """\
Runs both models on the same prompts and compares the logits: a SavedModel in TensorFlow, a checkpoint in float32, that
of CPM as Megatron would, every shard on its own. Fails where they differ by more than the dtype of the second explains.
With a text (--text, --prompts) the perplexity of both models on it is told, and has to be the same within 0.5 %
(float32: 0.01 %) where 1,000 tokens or more were predicted. Both sides take the same number of heads: whether --heads
is the one of the training, only the perplexity tells.
"""
EXAMPLES = ("{command} CPM-Generate cpm-savedmodel",)

SEED = 20201115
"""Of the random prompts."""

_ROWS = 32
"""Positions whose logits are compared in one step."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument(
        "converted", type=Path, metavar="CONVERTED", help="what was made from it: a SavedModel, or any checkpoint"
    )
    add_source_options(parser)
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="UTF-8 text, one prompt a line, for the SavedModel's own tokenizer (default: random token ids, the same "
        "in every run, from 1 token to as many as the model takes)",
    )
    given.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text as one document, cut into windows of as many tokens as the model takes; or .jsonl, a document "
        'a line: a string, or an object with "text", which ends with the end of text that the model was trained with',
    )
    parser.add_argument(
        "--max-tokens",
        type=_positive,
        metavar="N",
        help=f"how many tokens of FILE at most (default: {MAX_TOKENS}); of a longer --text its beginning is taken. "
        "Each takes 4 bytes times the vocabulary in TMPDIR, and more time than a generated one",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    _spare_memory()
    source = SourceOptions.of(args)
    checkpoint = source.open()
    other = _open_converted(args.converted, source, checkpoint)
    file = args.prompts or args.text
    if file is None and args.max_tokens is not None:
        raise ConvertError("--max-tokens: expected --text or --prompts beside it, the file that it is about")
    prompts = None
    if file is not None:
        read = read_prompts if args.prompts else read_text
        tokenizer = _tokenizer_of(checkpoint, args.converted, other[0] if other else None)
        prompts = read(file, tokenizer, checkpoint.config.n_positions, args.max_tokens or MAX_TOKENS)
    report = verify(checkpoint, args.converted, prompts, source=source, other=other)
    print(json.dumps(report.to_dict(), allow_nan=False) if args.json else report.table())
    report.check(args.converted)


def _positive(text: str) -> int:
    if not text.isdecimal() or not (number := int(text)):
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: expected a number of tokens, 1 or more")
    return number


def _spare_memory() -> None:
    """Sets TensorFlow, unless it is in use already, to run one operation at a time and without oneDNN.

    oneDNN keeps copies of weights in other layouts, 0.6 GB for a vocabulary of 30,000 and h = 2560, and its results
    depend on the processor. The C library would keep 0.1 GB of what TensorFlow frees, but not what it has mapped.
    """
    if "tensorflow" in sys.modules:
        return
    set_mmap_threshold(MAPPED)
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with quiet_stderr():
        import tensorflow as tf
    tf.config.threading.set_inter_op_parallelism_threads(1)


def verify(
    checkpoint: Checkpoint,
    converted: Path,
    prompts: list[list[int]] | None = None,
    *,
    source: SourceOptions | None = None,
    other: tuple[Checkpoint, SourceOptions] | None = None,
    quiet: bool = False,
) -> ParityReport:
    """Compares what is at ``converted`` with the checkpoint that it was made from.

    The source goes first and leaves its logits in a temporary file (``tokens * V * 4`` bytes). Then the other side is
    loaded, and the logits of both are compared in blocks of positions.

    Args:
        checkpoint: of CPM's only the files, their order, the sizes and the number of heads are used.
        converted: the folder of a SavedModel, under whatever name; or what ``other`` was opened from.
        prompts: token ids of texts, whose perplexity is told; ``random_prompts`` when None.
        source: how ``checkpoint`` was opened.
        other: a checkpoint to compare with, and how it was opened, instead of a SavedModel.
        quiet: no progress on stderr.

    Returns:
        The report, passed or not: ``ParityReport.check`` raises.

    Raises:
        ConvertError: one of the two cannot be read, is of other sizes, or is not what this program makes.
    """
    config = checkpoint.config
    if other is None:
        dtype = dtype_of(converted, config)
    else:
        check_sizes(converted, other[0].config, config)
        dtype = min(widest(other[0].dtypes.values()), np.dtype(np.float32)).name
    bounds = TOLERANCES[dtype]
    seed = SEED if prompts is None else None
    prompts = random_prompts(config) if prompts is None else prompts
    if not prompts or any(not 0 < len(p) <= config.n_positions for p in prompts):
        raise ConvertError(f"prompts: expected one or more, each of 1 to {config.n_positions} tokens")
    if any(not 0 <= token < config.vocab_size for p in prompts for token in p):
        raise ConvertError(f"prompts: expected token ids from 0 to {config.vocab_size - 1}")
    if other is None:
        with quiet_stderr():  # takes seconds: only once the input is known to be good
            import tensorflow as tf
        check_signature(converted)
        check_runs_here(dtype, converted, "verify")
    # Longest first: later on, memory that was freed in small pieces would be missing for the large ones.
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    ordered = [prompts[number] for number in order]
    results: dict[int, PromptParity] = {}
    with _temporary_folder() as temporary, contextlib.ExitStack() as stack:
        spooled = temporary / "logits"
        _spool_shown("source", checkpoint, source, ordered, spooled, quiet)
        if other is None:
            logits = saved_model_logits(tf, converted, temporary)
        else:
            _spool_shown("converted", *other, ordered, temporary / "other", quiet)
            logits = _spooled(stack.enter_context((temporary / "other").open("rb")), config.vocab_size)
        file = stack.enter_context(spooled.open("rb"))
        with progress("compare", spooled.stat().st_size, quiet=quiet) as done:
            for number in order:
                blocks = logits(prompts[number])
                comparison = Comparison(bounds, prompts[number] if seed is None else ())
                for at in range(0, len(prompts[number]), _ROWS):
                    block = blocks(at, min(at + _ROWS, len(prompts[number])))
                    expected = np.fromfile(file, np.float32, block.size).reshape(block.shape)
                    comparison.add(expected, block)
                    done(expected.nbytes)
                results[number] = comparison.result()
                del blocks  # a prompt's logits: not beside those of the next
    return ParityReport(dtype, bounds, seed, tuple(results[number] for number in range(len(prompts))))


def _spool_shown(
    what: str, checkpoint: Checkpoint, source: SourceOptions | None, prompts: list[list[int]], output: Path, quiet: bool
) -> None:
    with progress(what, checkpoint.info.nbytes, quiet=quiet) as done:
        spool(checkpoint, source, prompts, output, lambda share: done(round(share * checkpoint.info.nbytes)))


def _spooled(file: IO[bytes], vocab_size: int) -> Callable[[list[int]], Callable[[int, int], Array]]:
    """As ``saved_model_logits``, of a file that ``spool`` wrote; the blocks are asked for in order."""

    def block(start: int, stop: int) -> Array:
        return np.fromfile(file, np.float32, (stop - start) * vocab_size).reshape(-1, vocab_size)

    return lambda prompt: block


def _open_converted(
    path: Path, source: SourceOptions, checkpoint: Checkpoint
) -> tuple[Checkpoint, SourceOptions] | None:
    """The checkpoint at ``path``; None where there is none, but a SavedModel.

    Raises:
        ConvertError: it is neither, or of other sizes than ``checkpoint``.
    """
    if (path / "saved_model.pb").exists() or not is_known(path):
        dtype_of(path, checkpoint.config)
        return None
    options = SourceOptions(path, checkpoint.config.n_head, uer_layer_norm=source.uer_layer_norm)
    other = options.open()
    check_sizes(path, other.config, checkpoint.config)
    return other, options


def _tokenizer_of(checkpoint: Checkpoint, path: Path, other: Checkpoint | None) -> Path:
    """Where the tokenizer for texts is: in the SavedModel, or beside either checkpoint."""
    if other is None:
        return path / "assets"
    found = other.tokenizer or checkpoint.tokenizer
    if found is None:
        raise ConvertError(f"{path}: has no tokenizer beside it, nor has its source: leave out --text and --prompts")
    return found


def verify_apart(source: SourceOptions, folder: Path, n_head: int, *, quiet: bool) -> ParityReport:
    """``verify`` with its own prompts, by the command of that name in another process.

    What writing the SavedModel has left in this one, TensorFlow with its buffers, is not beside the model then.

    Raises:
        ConvertError: as ``verify``.
    """
    options = dataclasses.replace(source, n_head=n_head).words()
    process = subprocess.Popen(
        [sys.executable, "-m", "convert", "verify", str(source.path), str(folder), "--json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(folder)},
        preexec_fn=end_with_parent,
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    error = ""
    try:
        for line in process.stderr:
            if line.startswith("error: "):
                error = line.removeprefix("error: ").rstrip()
            elif not quiet:
                print(line, end="", file=sys.stderr, flush=True)
        output = process.stdout.read()
    except BaseException:
        process.terminate()  # it has a process of its own to end
        raise
    finally:
        process.wait()
        process.stdout.close()
        process.stderr.close()
    if process.returncode not in (0, VerificationError.exit_code):
        raise ConvertError(error or f"verify ended with code {process.returncode} (-9: too little memory)")
    return ParityReport.from_dict(json.loads(output))


def random_prompts(config: GPT2Config) -> list[list[int]]:
    """Short, long, and as long as the model takes; the same for one size of model in every run."""
    limit = config.n_positions
    rng = np.random.default_rng(SEED)
    sizes = sorted({size for size in (1, 2, 33, limit // 2, limit) if 0 < size <= limit})
    return [[int(token) for token in rng.integers(0, config.vocab_size, size)] for size in sizes]


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        temporary = tempfile.TemporaryDirectory(prefix="gpt2-savedmodel-")
    except OSError as error:
        raise ConvertError(f"no folder for temporary files, {error.strerror}: set TMPDIR to one") from error
    with temporary as path:
        yield Path(path)
