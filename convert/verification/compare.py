"""``verify``: does a SavedModel, or another checkpoint, compute what its source computes?

Both models get the same token ids, and all logits of all positions are compared. TensorFlow runs a SavedModel. CPM's
shards are run as Megatron would, by ``megatron_forward``, which shares nothing with the conversion but the ``.pt``
reader; checkpoints of other formats are run by ``reference_forward``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.formats.registry import CheckpointSpec, open_checkpoint
from convert.verification import worker
from convert.verification.checkpoint_logits import check_torch
from convert.verification.logits_sources import CheckpointModel, LogitsSource, Model, open_model
from convert.verification.metrics import TOLERANCES, LogitsComparison
from convert.verification.report import ParityReport
from convert.verification.text_windows import MAX_TOKENS, TextWindows, read_prompts, read_text
from support.errors import ConvertError
from support.progress import Progress, no_progress
from support.tensorflow_runtime import set_mmap_threshold
from tf_model.config import GPT2Config

SEED = 20201115
"""The seed of the random prompts."""

_ROWS = 32
"""Positions whose logits are compared in one step."""


def verify(
    source: str | Path | Checkpoint,
    converted: str | Path,
    *,
    text: str | Path | None = None,
    prompts: str | Path | None = None,
    max_tokens: int | None = None,
    progress: Progress = no_progress,
) -> ParityReport:
    """Compare what is at ``converted`` with the checkpoint that it was made from.

    The source goes first, in another process, and leaves its logits in a temporary file (``tokens * V * 4`` bytes).
    Then the other model is loaded, and the logits of both are compared in blocks of positions. So the two models are
    never in memory together.

    Args:
        source: where the checkpoint is, or an open one: ``open_checkpoint`` takes what the files do not record.
        converted: a SavedModel, which runs in this process, or a checkpoint of any format.
        text: a file of text, to compare the perplexity, too: UTF-8, or JSON lines with a document a line.
        prompts: a UTF-8 file with one prompt a line. Without ``text`` and ``prompts`` the token ids are random.
        max_tokens: how many tokens of the file are used; ``MAX_TOKENS`` by default.
        progress: called with the stages ``source``, ``converted`` and ``compare``.

    Returns:
        The report, whether it has passed or not: ``ParityReport.check`` raises.

    Raises:
        UserError: one of the two cannot be read or run, they are of different sizes, or the file cannot be used.
    """
    check_torch()
    checkpoint = open_checkpoint(source) if isinstance(source, (str, Path)) else source
    first, second = CheckpointModel(checkpoint), open_model(Path(converted), checkpoint)
    texts = _read_texts(first, second, text, prompts, max_tokens)
    shared = min(first.config, second.config, key=lambda config: config.vocab_size)
    windows = random_prompts(shared) if texts is None else texts.windows
    check_token_ids(windows, shared)
    second.check_runs()
    bounds = TOLERANCES[second.dtype]
    if texts is None:
        comparisons = [LogitsComparison(bounds) for _ in windows]
    else:
        places = zip(windows, texts.places, strict=True)
        comparisons = [LogitsComparison(bounds, window, place) for window, place in places]
    # Longest first: later on, memory that was freed in small pieces would be missing for the large ones.
    order = sorted(range(len(windows)), key=lambda number: -len(windows[number]))
    ordered = [windows[number] for number in order]
    with _temporary_folders("source", "converted") as (source_folder, converted_folder):
        expected = first.logits(ordered, source_folder, "source", progress)
        found = second.logits(ordered, converted_folder, "converted", progress)
        columns = slice(shared.vocab_size)
        _compare(expected, found, ordered, [comparisons[number] for number in order], columns, progress)
    return ParityReport(
        dtype=second.dtype,
        bounds=bounds,
        seed=SEED if texts is None else None,
        prompts=tuple(comparison.result() for comparison in comparisons),
        notes=(*_vocabulary_notes(first, second), *([] if texts is None else texts.notes)),
    )


def verify_apart(checkpoint: Checkpoint, folder: Path, progress: Progress = no_progress) -> ParityReport:
    """Compare a SavedModel with its source as ``verify`` does, on random token ids, in a process of its own.

    What writing the SavedModel has left in this process, TensorFlow with its buffers, is not in the memory of that one.

    Args:
        checkpoint: the source; one that is only in memory is compared in this process.
        folder: the SavedModel; temporary files are put there.
        progress: as ``verify``.

    Raises:
        ConvertError: as ``verify``.
    """
    source = checkpoint.info.source
    if source is None:
        return verify(checkpoint, folder, progress=progress)
    arguments = {"source": source.to_dict(), "converted": str(folder)}
    return ParityReport.from_dict(worker.call(verify_task, arguments, progress))


def verify_task(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Do the work of ``verify_apart`` in a worker."""
    tempfile.tempdir = arguments["converted"]
    spare_memory()
    checkpoint = CheckpointSpec.from_dict(arguments["source"]).open()
    return verify(checkpoint, arguments["converted"], progress=progress).to_dict()


def spare_memory() -> None:
    """Have TensorFlow, which need not be imported yet, run one operation at a time, without oneDNN and on the CPU.

    oneDNN keeps copies of weights in other layouts, 0.6 GB for a vocabulary of 30,000 and h = 2560, and its results
    depend on the processor. The C library would keep 0.1 GB of what TensorFlow frees, but not what it has mapped.
    TensorFlow looks at these variables when it is imported: where it is in use already, nothing is changed.
    """
    if "tensorflow" in sys.modules:
        return
    set_mmap_threshold(worker.MMAP_THRESHOLD)
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def random_prompts(config: GPT2Config) -> list[list[int]]:
    """Make random token ids: few, many, and as many as the model takes; the same for one size of model in every run."""
    limit = config.n_positions
    rng = np.random.default_rng(SEED)
    sizes = sorted({size for size in (1, 2, 33, limit // 2, limit) if 0 < size <= limit})
    return [[int(token) for token in rng.integers(0, config.vocab_size, size)] for size in sizes]


def check_token_ids(prompts: Sequence[Sequence[int]], config: GPT2Config) -> None:
    """Raise ``ConvertError`` where a model of these sizes cannot read the prompts."""
    if not prompts or any(not 0 < len(prompt) <= config.n_positions for prompt in prompts):
        raise ConvertError(f"prompts: expected one or more, each of 1 to {config.n_positions} tokens")
    if any(not 0 <= token < config.vocab_size for prompt in prompts for token in prompt):
        raise ConvertError(f"prompts: expected token ids from 0 to {config.vocab_size - 1}")


def _read_texts(
    source: CheckpointModel,
    converted: Model,
    text: str | Path | None,
    prompts: str | Path | None,
    max_tokens: int | None,
) -> TextWindows | None:
    """Read the one file that is given, with the tokenizer of the converted model, else of the source."""
    file = text or prompts
    if text and prompts:
        raise ConvertError("expected one of --text and --prompts, found both")
    if file is None:
        if max_tokens is not None:
            raise ConvertError("--max-tokens: expected --text or --prompts with it")
        return None
    tokenizer = converted.tokenizer or source.tokenizer
    if tokenizer is None:
        raise ConvertError(
            f"{converted.path}: neither it nor its source has a tokenizer: leave out --text and --prompts"
        )
    read = read_text if text else read_prompts
    limit = MAX_TOKENS if max_tokens is None else max_tokens
    return read(Path(file), tokenizer, source.config.n_positions, limit)


def _vocabulary_notes(source: CheckpointModel, converted: Model) -> Iterator[str]:
    """Say which tokens are compared where one of the models has rows that pad its vocabulary."""
    sizes = source.config.vocab_size, converted.config.vocab_size
    if sizes[0] != sizes[1]:
        yield (
            f"{converted.path}: its vocabulary has {sizes[1]:,} tokens, that of {source.path} {sizes[0]:,}: the logits "
            f"of the first {min(sizes):,}, which both have, are compared"
        )


def _compare(
    expected: LogitsSource,
    found: LogitsSource,
    prompts: Sequence[Sequence[int]],
    comparisons: Sequence[LogitsComparison],
    columns: slice,
    progress: Progress,
) -> None:
    """Feed the logits of both models, of the tokens ``columns``, to each prompt's comparison in blocks of positions."""
    total, done = sum(map(len, prompts)), 0
    for number, (prompt, comparison) in enumerate(zip(prompts, comparisons, strict=True)):
        for start in range(0, len(prompt), _ROWS):
            stop = min(start + _ROWS, len(prompt))
            block = found.rows(number, start, stop)
            comparison.add(expected.rows(number, start, stop)[:, columns], block[:, columns])
            done += stop - start
            progress("compare", done * block[0].nbytes, total * block[0].nbytes)


@contextlib.contextmanager
def _temporary_folders(*names: str) -> Iterator[list[Path]]:
    try:
        temporary = tempfile.TemporaryDirectory(prefix="gpt2-savedmodel-")
    except OSError as error:
        raise ConvertError(f"no folder for temporary files, {error.strerror}: set TMPDIR to one") from error
    with temporary as path:
        folders = [Path(path) / name for name in names]
        for folder in folders:
            folder.mkdir()
        yield folders
