"""``verify``: does a SavedModel compute what its checkpoint computes?

The two sides share nothing but the ``.pt`` reader: ``parallel_reference`` runs the shards as Megatron would, TensorFlow
runs the exported graph. Both get the same token ids, and all logits of all positions are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convert.arguments import add_source_options
from convert.checkpoint import Array, Checkpoint
from convert.errors import ConvertError
from convert.formats.megatron import open_megatron
from convert.parity import TOLERANCES, Comparison, ParityReport, PromptParity, VerificationError
from convert.progress import progress
from convert.texts import MAX_TOKENS, read_prompts, read_text
from exports.assets import CONFIG
from exports.pruning import prune
from exports.quiet import quiet_stderr, tensorflow_says
from tf_model.config import GPT2Config
from tf_model.storage import DTYPES

HELP = "compare the logits of a SavedModel with those of the checkpoint it was made from"
DESCRIPTION = """\
Runs the checkpoint as Megatron would, every shard on its own, in float32, and the SavedModel in TensorFlow, on the
same prompts, and compares the logits. Fails where they differ by more than the SavedModel's dtype explains. With a
text (--text, --prompts) the perplexity of both models on it is told, and has to be the same within 0.5 % (float32:
0.01 %) where 1,000 tokens or more were predicted. Both sides take the same number of heads: whether --heads is the
one of the training, only the perplexity tells.
"""
EXAMPLE = "python -m convert verify CPM-Generate cpm-savedmodel"

SEED = 20201115
"""Of the random prompts."""

_ROWS = 32
"""Positions whose logits are compared in one step."""

_M_MMAP_THRESHOLD = -3  # <malloc.h>
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_MAPPED = 1 << 20
"""Bytes from which on memory is mapped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="folder with latest_checkpointed_iteration.txt, or one iteration's folder, or a single .pt file",
    )
    parser.add_argument("savedmodel", type=Path, metavar="SAVEDMODEL", help="the folder that was made from it")
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
    checkpoint = open_megatron(args.checkpoint, n_head=args.heads, iteration=args.iteration)
    _dtype_of(args.savedmodel, checkpoint.config)
    file = args.prompts or args.text
    if file is None and args.max_tokens is not None:
        raise ConvertError("--max-tokens: expected --text or --prompts beside it, the file that it is about")
    prompts = None
    if file is not None:
        read = read_prompts if args.prompts else read_text
        prompts = read(file, args.savedmodel / "assets", checkpoint.config.n_positions, args.max_tokens or MAX_TOKENS)
    report = verify(checkpoint, args.savedmodel, prompts)
    print(json.dumps(report.to_dict(), allow_nan=False) if args.json else report.table())
    report.check(args.savedmodel)


def _positive(text: str) -> int:
    if not text.isdecimal() or not (number := int(text)):
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: expected a number of tokens, 1 or more")
    return number


def _end_with_parent() -> None:
    """In a new process: asks the kernel for a SIGTERM when the process that started it is gone, however it went."""
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _spare_memory() -> None:
    """Sets TensorFlow, unless it is in use already, to run one operation at a time and without oneDNN.

    oneDNN keeps copies of weights in other layouts, 0.6 GB for a vocabulary of 30,000 and h = 2560, and its results
    depend on the processor. The C library would keep 0.1 GB of what TensorFlow frees, but not what it has mapped.
    """
    if "tensorflow" in sys.modules:
        return
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED)
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with quiet_stderr():
        import tensorflow as tf
    tf.config.threading.set_inter_op_parallelism_threads(1)


def verify(
    checkpoint: Checkpoint, folder: Path, prompts: list[list[int]] | None = None, *, quiet: bool = False
) -> ParityReport:
    """Compares the SavedModel in ``folder`` with the checkpoint that it was made from.

    The source goes first and leaves its logits in a temporary file (``tokens * V * 4`` bytes). Then the SavedModel is
    loaded, and the logits of either are compared in blocks of positions.

    Args:
        checkpoint: Megatron's; of it only the files, their order, the sizes and the number of heads are used.
        folder: with ``saved_model.pb`` in it; under whatever name.
        prompts: token ids of texts, whose perplexity is told; ``random_prompts`` when None.
        quiet: no progress on stderr.

    Returns:
        The report, passed or not: ``ParityReport.check`` raises.

    Raises:
        ConvertError: one of the two cannot be read, is of other sizes, or is not what this program makes.
    """
    if checkpoint.format != "megatron":
        raise ConvertError(f"{checkpoint.files[0]}: only Megatron checkpoints can be verified, not {checkpoint.format}")
    config = checkpoint.config
    bounds = TOLERANCES[dtype := _dtype_of(folder, config)]
    seed = SEED if prompts is None else None
    prompts = random_prompts(config) if prompts is None else prompts
    if not prompts or any(not 0 < len(p) <= config.n_positions for p in prompts):
        raise ConvertError(f"prompts: expected one or more, each of 1 to {config.n_positions} tokens")
    if any(not 0 <= token < config.vocab_size for p in prompts for token in p):
        raise ConvertError(f"prompts: expected token ids from 0 to {config.vocab_size - 1}")
    with quiet_stderr():  # takes seconds: only once the input is known to be good
        import tensorflow as tf
    _check_signature(folder)
    # Longest first: later on, memory that was freed in small pieces would be missing for the large ones.
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    results: dict[int, PromptParity] = {}
    with _temporary_folder() as temporary:
        with progress("source", checkpoint.nbytes, quiet=quiet) as done:
            spooled = temporary / "logits"
            ordered = [prompts[number] for number in order]
            _spool_source(checkpoint, ordered, spooled, lambda share: done(round(share * checkpoint.nbytes)))
        with spooled.open("rb") as file, progress("converted", spooled.stat().st_size, quiet=quiet) as done:
            logits = _signature(tf, folder, temporary)
            for number in order:
                converted = logits(prompts[number])
                comparison = Comparison(bounds, prompts[number] if seed is None else ())
                for at in range(0, len(prompts[number]), _ROWS):
                    block = converted(at, at + _ROWS)
                    source = np.fromfile(file, np.float32, block.size).reshape(block.shape)
                    comparison.add(source, block)
                    done(source.nbytes)
                results[number] = comparison.result()
                del converted  # a prompt's logits: not beside those of the next
    return ParityReport(dtype, bounds, seed, tuple(results[number] for number in range(len(prompts))))


def verify_apart(checkpoint: Path, folder: Path, n_head: int, iteration: str | None, *, quiet: bool) -> ParityReport:
    """``verify`` with its own prompts, by the command of that name in another process.

    What writing the SavedModel has left in this one, TensorFlow with its buffers, is not beside the model then.

    Raises:
        ConvertError: as ``verify``.
    """
    options = ["--heads", str(n_head), *([] if iteration is None else ["--iteration", iteration])]
    process = subprocess.Popen(
        [sys.executable, "-m", "convert", "verify", str(checkpoint), str(folder), "--json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(folder)},
        preexec_fn=_end_with_parent,
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


def _spool_source(
    checkpoint: Checkpoint, prompts: list[list[int]], output: Path, on_progress: Callable[[float], object]
) -> None:
    """``parallel_reference.spool``, in another process: PyTorch's libraries and caches are gone before the SavedModel
    is loaded. Where PyTorch is loaded already that would save nothing, and it is done here.

    Raises:
        ConvertError: as ``spool``.
    """
    if "torch" in sys.modules:
        from convert.parallel_reference import spool

        spool(checkpoint.files, checkpoint.config.n_head, prompts, output, on_progress)
        return
    task = {
        "files": [str(file) for file in checkpoint.files],
        "n_head": checkpoint.config.n_head,
        "prompts": prompts,
        "output": str(output),
    }
    path = filter(None, sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", "convert.parallel_reference"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(_MAPPED), "PYTHONPATH": os.pathsep.join(path)},
        start_new_session=True,  # Ctrl-C comes to us alone, and we end it
        preexec_fn=_end_with_parent,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    error = ""
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it has ended: the exit code says how
            json.dump(task, pipe)
        for line in process.stdout:
            if isinstance(value := json.loads(line), str):
                error = value
            else:
                on_progress(value)
    except BaseException:
        process.kill()
        raise
    finally:
        process.wait()
        process.stdout.close()
    if error or process.returncode:
        raise ConvertError(error or f"the reference ended with code {process.returncode} (-9: too little memory)")


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        temporary = tempfile.TemporaryDirectory(prefix="gpt2-savedmodel-")
    except OSError as error:
        raise ConvertError(f"no folder for temporary files, {error.strerror}: set TMPDIR to one") from error
    with temporary as path:
        yield Path(path)


def _dtype_of(folder: Path, config: GPT2Config) -> str:
    """The dtype of a SavedModel that this program wrote, of the sizes in ``config``.

    Raises:
        ConvertError: it is none, or has other sizes.
    """
    if not folder.is_dir():
        raise ConvertError(f"{folder}: no such folder")
    for name in ("saved_model.pb", "variables/variables.index", f"assets/{CONFIG}"):
        if not (folder / name).is_file():
            raise ConvertError(f"{folder}: expected a SavedModel that `pytorch-to-tf` wrote: it has no {name}")
    path = folder / "assets" / CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
        found = GPT2Config.from_dict(values)
        dtype = values.get("dtype")
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError) as error:  # ConfigError is a ValueError
        raise ConvertError(f"{path}: expected the sizes of a model: {error}") from error
    if dtype not in DTYPES:
        raise ConvertError(f"{path}: expected a dtype ({', '.join(DTYPES)}), found {dtype!a}")
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    if wrong := [
        f"{name} is {getattr(found, name)}, the checkpoint's {getattr(config, name)}"
        for name in sizes
        if getattr(found, name) != getattr(config, name)
    ]:
        raise ConvertError(f"{folder}: not made from this checkpoint: {'; '.join(wrong)}")
    return str(dtype)


def _check_signature(folder: Path) -> None:
    """Looks at the graph's file only: that nobody waits for minutes to learn that it is another graph."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    try:
        graphs = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ConvertError(f"{path}: not a SavedModel's graph: it is damaged, convert again") from error
    signature = graphs[0].signature_def.get("logits") if graphs else None
    if signature is None or "input_ids" not in signature.inputs or "logits" not in signature.outputs:
        raise ConvertError(f"{folder}: has no signature logits from input_ids to logits: not written by this program")


def _signature(tf: Any, folder: Path, temporary: Path) -> Callable[[list[int]], Callable[[int, int], Array]]:
    """Loads the SavedModel, of its signatures the one that is needed.

    Gives a function from a prompt to its logits, of which blocks of positions can be had.
    """

    try:
        (pruned := temporary / "model").mkdir()
        prune(folder, pruned, "logits")
        model = tf.saved_model.load(str(pruned))
    except Exception as error:  # besides tf.errors.OpError: what a damaged object graph leads to
        raise ConvertError(f"{folder}: TensorFlow cannot load it: {tensorflow_says(error)}") from error

    def logits(prompt: list[int]) -> Callable[[int, int], Array]:
        try:
            values = model.signatures["logits"](input_ids=tf.constant([prompt], tf.int64))["logits"]
        except tf.errors.OpError as error:
            raise ConvertError(f"{folder}: fails on {len(prompt)} tokens: {tensorflow_says(error)}") from error

        def block(start: int, stop: int) -> Array:
            part: Array = values[0, start:stop].numpy()
            return part

        return block

    return logits
