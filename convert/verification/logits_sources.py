"""The two sides of ``verify``: a SavedModel's logits by TensorFlow, a checkpoint's by PyTorch, in another process."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.source import SourceOptions
from convert.tensors import Array
from exports.prune import prune
from exports.saved_model_folder import CONFIG
from support.errors import ConvertError
from support.tensorflow_runtime import one_line_message
from tf_model.config import GPT2Config
from tf_model.precision import DTYPES

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
MAPPED = 1 << 20
"""Bytes from which on memory is mapped."""


def end_with_parent() -> None:
    """In a new process: asks the kernel for a SIGTERM when the process that started it is gone, however it went."""
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def spool(
    checkpoint: Checkpoint, source: SourceOptions | None, prompts: list[list[int]], output: Path,
    on_progress: Callable[[float], object],
) -> None:  # fmt: skip
    """Writes the logits of all prompts to ``output`` as ``parallel_reference.spool_logits`` does, in another process:
    PyTorch's libraries and caches are gone before the other side is loaded. Where PyTorch is loaded already that would
    save nothing, and it is done here.

    Args:
        checkpoint: the model.
        source: how it was opened; only without it, or where it is one of CPM, everything happens here.
        prompts, output, on_progress: as ``spool_logits``.

    Raises:
        ConvertError: as ``spool_logits``.
    """
    is_cpm = checkpoint.info.format == "megatron"
    if "torch" in sys.modules or (source is None and not is_cpm):
        from convert.verification.megatron_forward import MegatronReference, Reference, spool_logits
        from convert.verification.reference_forward import CheckpointReference

        heads = checkpoint.config.n_head
        reference: Reference = (
            MegatronReference(checkpoint.info.files, heads) if is_cpm else CheckpointReference(checkpoint)
        )
        spool_logits(reference, prompts, output, on_progress)
        return
    task: dict[str, Any] = {"prompts": prompts, "output": str(output)}
    if is_cpm:
        task.update(files=[str(file) for file in checkpoint.info.files], n_head=checkpoint.config.n_head)
    elif source is not None:
        task.update(source=source.to_dict())
    module = "convert.verification.megatron_forward" if is_cpm else "convert.verification.reference_forward"
    path = filter(None, sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MAPPED), "PYTHONPATH": os.pathsep.join(path)},
        start_new_session=True,  # Ctrl-C comes to us alone, and we end it
        preexec_fn=end_with_parent,
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


def dtype_of(folder: Path, config: GPT2Config) -> str:
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
    check_sizes(folder, found, config)
    return str(dtype)


def check_sizes(folder: Path, found: GPT2Config, config: GPT2Config) -> None:
    """Checks that a model of sizes ``found`` can have been made from one of ``config``.

    Raises:
        ConvertError: a size is another.
    """
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    if wrong := [
        f"{name} is {getattr(found, name)}, the checkpoint's {getattr(config, name)}"
        for name in sizes
        if getattr(found, name) != getattr(config, name)
    ]:
        raise ConvertError(f"{folder}: not made from this checkpoint: {'; '.join(wrong)}")


def check_signature(folder: Path) -> None:
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


def saved_model_logits(tf: Any, folder: Path, temporary: Path) -> Callable[[list[int]], Callable[[int, int], Array]]:
    """Loads the SavedModel, of its signatures the one that is needed.

    Gives a function from a prompt to its logits, of which blocks of positions can be had.
    """

    try:
        (pruned := temporary / "model").mkdir()
        prune(folder, pruned, "logits")
        model = tf.saved_model.load(str(pruned))
    except Exception as error:  # besides tf.errors.OpError: what a damaged object graph leads to
        raise ConvertError(f"{folder}: TensorFlow cannot load it: {one_line_message(error)}") from error

    def logits(prompt: list[int]) -> Callable[[int, int], Array]:
        try:
            values = model.signatures["logits"](input_ids=tf.constant([prompt], tf.int64))["logits"]
        except tf.errors.OpError as error:
            raise ConvertError(f"{folder}: fails on {len(prompt)} tokens: {one_line_message(error)}") from error

        def block(start: int, stop: int) -> Array:
            part: Array = values[0, start:stop].numpy()
            return part

        return block

    return logits
