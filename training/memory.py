"""How much memory a training takes, and which plan fits into this machine. No TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from support.errors import UserError
from support.messages import show_bytes
from tf_model.config import GPT2Config

BASE_BYTES = 900_000_000
"""Of Python and TensorFlow with the graph of a step."""
ROWS_OF_LOGITS = 256
"""Rows whose logits are in memory at once: 31 MB of a vocabulary of 30,000."""
FASTEST_TOKENS = 2048
"""Tokens of a micro-batch above which a step is no faster."""
_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_BYTES_PER_TRAINED_WEIGHT = 16
"""The weight, its gradient and two moments, float32."""
_ADDRESS_BYTES = 2_500_000_000
"""Of address space that TensorFlow reserves and does not use: with 3.1 GB of it in all (``ulimit -v``) it hangs."""
_USABLE_SHARE = 0.9
"""Of the free memory that a training may take where it has a choice: the estimate is right to a tenth."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The parts of a training that memory depends on.

    Attributes:
        config: the sizes.
        trained, frozen: numbers of weights; adapters are trained ones.
        trains_embedding: whether the token embedding is trained: its gradient is as large as it is.
        length: tokens of a row.
        batch_size: rows of an update.
        teacher: the sizes of the model that teaches; None without one.
    """

    config: GPT2Config
    trained: int
    frozen: int
    trains_embedding: bool
    length: int
    batch_size: int
    teacher: GPT2Config | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the work is done, and the bytes of memory that it takes."""

    micro_batch: int
    recompute: bool
    frozen_dtype: str
    teacher_dtype: str
    nbytes: int


def estimate(
    work: Work,
    micro_batch: int,
    *,
    recompute: bool,
    frozen_dtype: str = "float32",
    teacher_dtype: str = "float32",
) -> int:
    """Return the bytes that a training takes at its peak, about."""
    config = work.config
    h, inner = config.n_embd, config.n_inner
    tokens = micro_batch * work.length
    weights = _BYTES_PER_TRAINED_WEIGHT * work.trained + _WEIGHT_BYTES[frozen_dtype] * work.frozen
    if work.trains_embedding:
        weights += 4 * config.vocab_size * h
    if frozen_dtype != "float32":
        weights += 4 * max(3 * h * h, h * inner)  # the matrix at hand, made float32
    if work.teacher is not None:
        weights += _teacher(work.teacher, tokens, work.length, teacher_dtype)
    block = _block(config, work.length)
    kept = config.n_layer * (4 * h if recompute else block)
    activations = tokens * (kept + 3 * block)
    logits = 3 * 4 * min(tokens, ROWS_OF_LOGITS) * config.vocab_size
    return BASE_BYTES + weights + activations + logits


def _block(config: GPT2Config, length: int) -> int:
    """Return the bytes of what a block computes of one token."""
    return 4 * (8 * config.n_embd + 2 * config.n_inner) + 4 * config.n_head * length


def _teacher(config: GPT2Config, tokens: int, length: int, dtype: str) -> int:
    """Return the bytes of a teacher: its weights, the output matrix made float32, a block and a piece of logits."""
    weights = _WEIGHT_BYTES[dtype] * config.parameter_count
    if dtype != "float32":
        weights += 4 * config.n_embd * max(config.vocab_size, config.n_inner, 3 * config.n_embd)
    logits = 3 * 4 * min(tokens, ROWS_OF_LOGITS) * config.vocab_size
    return weights + tokens * 3 * _block(config, length) + logits


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that are free for this process; None where the system does not say."""
    return min(_limits(meminfo, cgroup), default=None)


def _limits(meminfo: Path, cgroup: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        if found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()):
            yield int(found[1]) * 1024
    with contextlib.suppress(OSError):
        limit = (cgroup / "memory.max").read_text().strip()
        used = re.search(r"^anon (\d+)", (cgroup / "memory.stat").read_text(), re.MULTILINE)
        if limit.isdecimal() and used:  # "max" is no limit
            yield int(limit) - int(used[1])
    limit_of_addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit_of_addresses != resource.RLIM_INFINITY:
        yield max(0, limit_of_addresses - _ADDRESS_BYTES)


def make_plan(
    work: Work,
    available: int | None,
    *,
    micro_batch: int | None = None,
    recompute: bool | None = None,
    frozen_dtype: str | None = None,
    teacher_dtype: str | None = None,
) -> Plan:
    """Choose the values that are None so that the work fits: as little recomputing as possible, the widest types.

    Raises:
        UserError: nothing fits.
    """
    dtypes = [frozen_dtype] if frozen_dtype else list(_WEIGHT_BYTES)
    if teacher_dtype is not None or work.teacher is None:
        teacher_dtypes = [teacher_dtype or "float32"]
    else:
        teacher_dtypes = list(_WEIGHT_BYTES)
    plans = [
        Plan(
            rows,
            again,
            dtype,
            theirs,
            estimate(work, rows, recompute=again, frozen_dtype=dtype, teacher_dtype=theirs),
        )
        for theirs in teacher_dtypes
        for dtype in dtypes
        for again in ([False, True] if recompute is None else [recompute])
        for rows in ([micro_batch] if micro_batch else _micro_batches(work))
    ]
    if available is None:
        return plans[0]
    fitting = [plan for plan in plans if plan.nbytes <= _USABLE_SHARE * available]
    if fitting:
        return fitting[0]
    least = min(plans, key=lambda plan: plan.nbytes)
    if least.nbytes <= available:
        return least
    raise UserError(
        f"{show_bytes(least.nbytes)} of memory are needed at least, {show_bytes(available)} are free: {_advice(work)}"
    )


def _micro_batches(work: Work) -> list[int]:
    """Return how many rows may be computed at once, most first."""
    most = max(1, min(work.batch_size, FASTEST_TOKENS // work.length))
    return [rows for rows in range(most, 0, -1) if rows in (most, 4, 2, 1)]


def _advice(work: Work) -> str:
    if work.trained > work.frozen:
        return "give --lora 8, or a smaller --length"
    return "give a smaller --length or --batch-size, or --frozen-dtype int8 where it is not"
