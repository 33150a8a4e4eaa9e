"""The logits of a checkpoint, computed by PyTorch in another process and left in a file."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from convert.checkpoint import Checkpoint
from convert.formats.megatron.layout import CPM
from convert.formats.registry import CheckpointSpec
from convert.verification import worker
from support.errors import ConvertError
from support.progress import Progress

_GROUP_TOKENS = 2048
"""Tokens that go through the layers together: what bounds the memory of the activations."""

_ROWS = 128
"""Positions whose logits are made in one step: 15 MB with 30,000 tokens."""


def check_torch() -> None:
    """Raise ``ConvertError`` where PyTorch, which runs checkpoints, is not installed; PyTorch is not imported."""
    try:
        found = importlib.util.find_spec("torch") is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ConvertError(f"verify needs PyTorch: {sys.executable} -m pip install 'gpt2-savedmodel[verify]'")


def write_logits(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], output: Path, on_progress: Callable[[int, int], object]
) -> None:
    """Write the logits of all prompts to ``output``: float32, prompt after prompt, ``[S, V]`` each, no header.

    Another process does it, so that PyTorch's libraries and caches are gone before the other model is loaded. Where
    PyTorch is loaded already another process would save nothing, and a checkpoint that is only in memory cannot be
    opened by another one.

    Args:
        checkpoint: the model. Of CPM's checkpoints only the files, their order and the number of heads are used.
        prompts: token ids, each prompt 1 to ``n_positions`` of them.
        output: tokens * V * 4 bytes; 0.2 GB for 1,572 tokens of 30,000.
        on_progress: called after each layer with the share of the work as (done, total) bytes of weights.

    Raises:
        ConvertError: the checkpoint cannot be read, or ``output`` cannot be written.
    """
    info = checkpoint.info
    is_cpm = info.format == CPM and not info.is_changed
    if "torch" in sys.modules or not (is_cpm or info.source):
        reference = cpm_reference(info.files, checkpoint.config.n_head) if is_cpm else any_reference(checkpoint)
        total = info.nbytes
        write_reference_logits(
            reference,
            prompts,
            output,
            lambda share: on_progress(round(share * total), total),
            vocab_size=checkpoint.config.vocab_size,
        )
        return
    arguments: dict[str, Any] = {"prompts": prompts, "output": str(output), "total": info.nbytes}
    arguments["vocab_size"] = checkpoint.config.vocab_size
    if is_cpm:  # the reader that the conversion uses has no part in it
        arguments.update(files=[str(file) for file in info.files], n_head=checkpoint.config.n_head)
    elif info.source:
        arguments.update(source=info.source.to_dict())
    worker.call(write_logits_task, arguments, lambda stage, done, total: on_progress(done, total))


def write_logits_task(arguments: Mapping[str, Any], progress: Progress) -> None:
    """Do the work of ``write_logits`` in a worker."""
    if "files" in arguments:
        reference = cpm_reference([Path(file) for file in arguments["files"]], arguments["n_head"])
    else:
        reference = any_reference(CheckpointSpec.from_dict(arguments["source"]).open())
    total = arguments["total"]

    def on_share(share: float) -> None:
        progress("logits", round(share * total), total)

    write_reference_logits(
        reference, arguments["prompts"], Path(arguments["output"]), on_share, vocab_size=arguments["vocab_size"]
    )


class Reference(Protocol):
    """A model in PyTorch that reads each weight when its layer is due; tensors are PyTorch's.

    Attributes:
        n_layer, vocab_size: its sizes.
    """

    n_layer: int
    vocab_size: int

    def rows_of(self, prompts: Sequence[Sequence[int]], on_layer: Callable[[], object]) -> list[Any]:
        """Return what the last layer gives, float32 ``[S, h]`` for each prompt; ``on_layer`` is called after each."""
        ...

    def project(self, rows: Any) -> Any:
        """Return the logits float32 ``[N, V]`` of hidden states ``[N, h]``."""
        ...


def cpm_reference(files: Sequence[Path], n_head: int) -> Reference:
    """Run the forward pass of CPM's shards, which shares nothing with the conversion but the ``.pt`` reader."""
    from convert.verification.megatron_forward import MegatronReference

    return MegatronReference(files, n_head)


def any_reference(checkpoint: Checkpoint) -> Reference:
    """Run the forward pass of a checkpoint of any format, through the reader that the conversion uses."""
    from convert.verification.reference_forward import CheckpointReference

    return CheckpointReference(checkpoint)


def write_reference_logits(
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    output: Path,
    on_share: Callable[[float], object] = lambda share: None,
    *,
    vocab_size: int | None = None,
    group_tokens: int = _GROUP_TOKENS,
    rows: int = _ROWS,
) -> None:
    """Write the logits of all prompts to ``output``, as ``write_logits`` describes them.

    Args:
        reference: the model.
        prompts: token ids, each prompt 1 to ``n_positions`` of them.
        output: tokens * V * 4 bytes; 0.2 GB for 1,572 tokens of 30,000.
        on_share: called after each layer with the share of the work that is done, up to 1.
        vocab_size: V, where the model has more rows, which pad its vocabulary; None: all of them.
        group_tokens: how many tokens go through the layers together, but for a single prompt that is longer.
        rows: positions whose logits are made in one step.

    Raises:
        ConvertError: a file of the model cannot be read, or ``output`` cannot be written.
    """
    tokens = sum(map(len, prompts))
    done = 0.0

    def on_layer(part: float) -> None:
        nonlocal done
        done += part
        on_share(done)

    try:
        with output.open("wb") as file:
            for group in _groups(prompts, group_tokens):
                part = sum(map(len, group)) / tokens / reference.n_layer
                for hidden in reference.rows_of(group, functools.partial(on_layer, part)):
                    for start in range(0, len(hidden), rows):
                        logits = reference.project(hidden[start : start + rows])[:, :vocab_size]
                        file.write(logits.contiguous().numpy().data)
    except OSError as error:
        size = tokens * (vocab_size or reference.vocab_size) * 4 / 1e9
        raise ConvertError(
            f"{output}: {size:.2f} GB cannot be written: {error.strerror}: set TMPDIR to a folder with more room"
        ) from error


def _groups(prompts: Sequence[Sequence[int]], limit: int) -> Iterator[list[Sequence[int]]]:
    """Consecutive prompts of ``limit`` tokens at most, or a single one."""
    group: list[Sequence[int]] = []
    for prompt in prompts:
        if group and sum(map(len, group)) + len(prompt) > limit:
            yield group
            group = []
        group.append(prompt)
    yield group
