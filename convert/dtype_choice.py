"""``--dtype auto``: the type of weights that the machine at hand is made for."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from support.errors import ConvertError
from support.tensorflow_runtime import quiet_stderr
from tf_model.precision import INT8_CONV_OP, INT8_MATMUL_OP, PRECISIONS

AUTO = "auto"

CPUINFO = Path("/proc/cpuinfo")


class Rule(NamedTuple):
    """A dtype, and what the machine has to have.

    Attributes:
        flags: of the CPU, as Linux names them; any of them will do.
        op: of TensorFlow, for which there is a kernel; None when every TensorFlow has what is needed.
    """

    dtype: str
    flags: tuple[str, ...]
    op: str | None = None


RULES = (
    Rule("int8", ("avx512_vnni", "avx_vnni"), INT8_MATMUL_OP),
    Rule("bfloat16", ("avx512_bf16", "amx_bf16")),
    Rule("int8-avx2", ("avx2",), INT8_CONV_OP),
)
"""The first that holds is taken: what generates fastest."""

OTHERWISE = "float32"


class Choice(NamedTuple):
    """``str`` is one line, with the reason."""

    dtype: str
    reason: str

    def __str__(self) -> str:
        return f"--dtype {AUTO}: {self.dtype}: {self.reason}"


class ResolvedDtype(NamedTuple):
    """One of ``DTYPES``, and what a user should know about it, a line each."""

    dtype: str
    notes: tuple[str, ...] = ()


def resolve_dtype(dtype: str, where: object, *, verify: bool = False) -> ResolvedDtype:
    """Resolve ``dtype``, which may be ``auto``, for this machine.

    Args:
        dtype: one of ``DTYPES``, or ``AUTO``.
        where: the SavedModel, for messages.
        verify: whether the SavedModel will be run here, to compare it with its source.

    Raises:
        ConvertError: there is no such dtype, or ``verify`` is asked for and this CPU cannot compute with it.
    """
    if dtype == AUTO:
        choice = choose_dtype()
        return ResolvedDtype(choice.dtype, (str(choice),))
    if dtype not in PRECISIONS:
        raise ConvertError(f"dtype {dtype!r}: expected one of {', '.join((*PRECISIONS, AUTO))}")
    if verify:
        check_runs_here(dtype, where, "Convert and verify")
    if runs_here(dtype):
        return ResolvedDtype(dtype)
    note = f"--dtype {dtype}: needs a CPU with VNNI instructions; this one has none: use int8-avx2 here"
    return ResolvedDtype(dtype, (note,))


def has_kernel(op: str) -> bool:
    """Whether the TensorFlow here has a CPU kernel for ``op``. Imports TensorFlow."""
    with quiet_stderr():
        from tf_model.tensorflow_internals import has_cpu_kernel
    return has_cpu_kernel(op)


def choose_dtype(cpuinfo: Path = CPUINFO, has_kernel: Callable[[str], bool] = has_kernel) -> Choice:
    """Choose for this machine. TensorFlow is imported only where a choice depends on it."""
    return choose(cpu_flags(cpuinfo), f"{platform.system()} {platform.machine()}", has_kernel)


def choose(flags: Collection[str] | None, machine: str, has_kernel: Callable[[str], bool]) -> Choice:
    """Return the first of ``RULES`` that holds.

    Args:
        flags: of the CPU; None where they are not known.
        machine: for the reason.
        has_kernel: whether the TensorFlow here has a kernel for an op.
    """
    if flags is None:
        return Choice(OTHERWISE, f"what the CPU has is not known on {machine}, and this type runs everywhere")
    missing = ""
    for rule in RULES:
        found = [flag for flag in rule.flags if flag in flags]
        if found and rule.op and not has_kernel(rule.op):
            missing = f"TensorFlow has no kernel {rule.op}, which {rule.dtype} needs; "
        elif found:
            kernel = f", and TensorFlow the kernel {rule.op}" if rule.op else ""
            before = RULES[: RULES.index(rule)] if not missing else ()
            lacks = f"; it lacks what faster types need ({wanted(before)})" if before else ""
            return Choice(rule.dtype, f"{missing}the CPU has {', '.join(found)}{kernel}{lacks}")
    return Choice(OTHERWISE, f"{missing}the CPU ({machine}) lacks what the others need: {wanted()}")


def wanted(rules: Sequence[Rule] = RULES) -> str:
    """Return the flags of each rule, for messages."""
    return ", ".join(f"{rule.dtype} with {' or '.join(rule.flags)}" for rule in rules)


def runs_here(dtype: str) -> bool:
    """Return False where it is known that this CPU cannot compute with int8 of ``dtype``."""
    flags = cpu_flags()
    precision = PRECISIONS[dtype]
    if flags is None or precision.matrices != "int8" or precision.transposed:
        return True
    return any(flag in flags for flag in RULES[0].flags)


def check_runs_here(dtype: str, where: object, verb: str) -> None:
    """Raise ``ConvertError`` where this CPU cannot compute with ``dtype``.

    Args:
        dtype: of a SavedModel that is to be compared with its source.
        where: the SavedModel, for the message.
        verb: what to do on another machine, such as ``Verify``.
    """
    if not runs_here(dtype):
        raise ConvertError(
            f"{where}: {dtype} needs a CPU with VNNI instructions; this one has none. {verb} on another machine, or "
            "convert with --dtype int8-avx2"
        )


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """Return the flags of the first CPU; none where Linux has another word for them (not x86), None without a file."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    values = (line.partition(":") for line in lines)
    return frozenset(next((value for name, _, value in values if name.strip() == "flags"), "").split())
