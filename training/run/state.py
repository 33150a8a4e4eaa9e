"""The state of a run: trained variables, optimizer and counters, in one file that is whole or absent.

Frozen variables are not in it: they come from the source. The file is a safetensors file. The format has no checksums,
so the last tensor holds those of the others.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from convert.formats.safetensors_file import read_header, writing
from convert.formats.tensor_map import LazyTensor
from convert.tensors import Array
from support.errors import CheckpointError, UserError
from support.files import replacing
from training.run.run_folder import MAKE_ROOM, START_OVER, RunError, RunFolder, writing_to

_COUNTERS, _BEST, _CHECKSUMS = "counters", "best", "checksums"


class DivergedError(UserError):
    """The loss or the weights are no numbers any more."""


@dataclasses.dataclass
class Counters:
    """Where a run is.

    Attributes:
        step: updates so far.
        tokens: predicted tokens of all updates.
        seconds: spent on them, evaluations included.
        evaluated: the step of the last evaluation, -1 before the first.
        loss_before: validation loss before the first update, nats a token; None without validation.
        loss: the last validation loss.
        best_loss: the lowest validation loss, of step ``best_step``.
        waited: evaluations since then.
        left_out: updates in a row whose gradients were no finite numbers.
        is_stopped: whether patience has ended the run.
        interval_loss, interval_tokens: since the last evaluation: the loss summed over all tokens, and their number.
        row: the row of the log for ``step`` while it waits for its validation loss.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluated: int = -1
    loss_before: float | None = None
    loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    waited: int = 0
    left_out: int = 0
    is_stopped: bool = False
    interval_loss: float = 0.0
    interval_tokens: int = 0
    row: dict[str, Any] | None = None


def save_state(run: RunFolder, model: Any, counters: Counters) -> None:
    """Write the state of a model and its optimizer; the older state stays until the new one is on the disk.

    Raises:
        RunError: the disk is full, or the file cannot be written; the older state stays.
        DivergedError: a trained weight is not a finite number; the older state stays.
    """
    text = np.frombuffer(json.dumps(dataclasses.asdict(counters)).encode(), np.uint8)
    with writing_to(run.state, MAKE_ROOM), replacing(run.state) as new:
        _write(new, state_variables(model), {_COUNTERS: text})


def save_best(run: RunFolder, model: Any, step: int, loss: float) -> None:
    """Write the trained variables as the best ones, of ``step`` with validation loss ``loss``.

    Errors are those of ``save_state``.
    """
    text = np.frombuffer(json.dumps([step, loss]).encode(), np.uint8)
    with writing_to(run.best, MAKE_ROOM), replacing(run.best) as new:
        _write(new, weight_variables(model), {_BEST: text})


def read_counters(run: RunFolder) -> Counters | None:
    """Read where a run is, from its state; None where there is none.

    Raises:
        RunError: it is damaged.
    """
    if not run.state.exists():
        return None
    try:
        content = read_header(run.state)[_COUNTERS].numpy()
    except (CheckpointError, KeyError, ValueError) as error:
        raise _damaged(run.state, str(error).removeprefix(f"{run.state}: ")) from error
    return _counters(run, content)


def restore_state(run: RunFolder, model: Any) -> Counters | None:
    """Read the state into a model whose optimizer is built; None where there is none.

    Raises:
        RunError: it is damaged, or of another model.
    """
    if not run.state.exists():
        return None
    content = _read(run.state, state_variables(model), {_COUNTERS})
    return _counters(run, content[_COUNTERS])


def restore_best(run: RunFolder, model: Any, step: int, loss: float | None) -> None:
    """Read the best weights into the trained variables.

    Args:
        run: has the file.
        model: is changed, unless the file cannot be read or is of another model.
        step, loss: those that the weights are to have been saved with.

    Raises:
        RunError: they are damaged, of another model or step, or missing.
    """
    content = _read(run.best, weight_variables(model), {_BEST})
    found = content[_BEST].tobytes().decode()
    if found != json.dumps([step, loss]):
        raise RunError(
            f"{run.best}: expected the weights of step {step} with loss {loss}, found [step, loss] {found}: "
            f"{START_OVER}"
        )


def weight_variables(model: Any) -> dict[str, Any]:
    """Return the trained variables of a Keras model, named by their order: Keras's paths change with the process."""
    return {f"weight.{number}": variable for number, variable in enumerate(model.trainable_variables)}


def state_variables(model: Any) -> dict[str, Any]:
    """Return the variables that training changes: the trained ones and the optimizer's, its step included."""
    optimizer = {f"optimizer.{number}": variable for number, variable in enumerate(model.optimizer.variables)}
    return {**weight_variables(model), **optimizer}


def _write(path: Path, variables: Mapping[str, Any], others: Mapping[str, Array]) -> None:
    """Write variables, one at a time, and other tensors; then the CRC32C of each."""
    specs = {name: (tuple(variable.shape), np.dtype(variable.dtype)) for name, variable in variables.items()}
    specs |= {name: (values.shape, values.dtype) for name, values in others.items()}
    checksums = []
    with writing(path, {**specs, _CHECKSUMS: ((len(specs),), np.dtype(np.uint32))}) as writer:
        for name, values in _values(variables, others):
            if name.startswith("weight.") and not math.isfinite(float(np.sum(values, dtype=np.float64))):
                raise DivergedError("the weights are no numbers any more")
            checksums.append(_checksum(values))
            writer.write(values)
        writer.write(np.array(checksums, np.uint32))


def _values(variables: Mapping[str, Any], others: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Give the values of one variable after the other."""
    for name, variable in variables.items():
        yield name, np.ascontiguousarray(variable.numpy()).reshape(variable.shape)
    yield from others.items()


def _read(path: Path, variables: Mapping[str, Any], others: set[str]) -> dict[str, Array]:
    """Check the file as a whole, then assign ``variables`` and return ``others``."""
    try:
        tensors = dict(read_header(path))
        checksums = tensors.pop(_CHECKSUMS).numpy()
        damaged = [
            name for (name, tensor), crc in zip(tensors.items(), checksums, strict=True)
            if _checksum(tensor.numpy()) != crc
        ]  # fmt: skip
    except (CheckpointError, KeyError, ValueError) as error:
        raise _damaged(path, str(error).removeprefix(f"{path}: ")) from error
    if damaged:
        raise _damaged(path, f"the checksum of {damaged[0]} is wrong")
    specs = {name: _spec(tensor) for name, tensor in tensors.items() if name not in others}
    if specs != {name: _spec(variable) for name, variable in variables.items()}:
        raise RunError(f"{path}: is of a model with other weights: {START_OVER}")
    for name, variable in variables.items():
        variable.assign(tensors[name].numpy())
    return {name: tensors[name].numpy() for name in others}


def _counters(run: RunFolder, content: Array) -> Counters:
    try:
        return Counters(**json.loads(content.tobytes()))
    except (ValueError, TypeError) as error:
        raise _damaged(run.state, "its counters are no JSON") from error


def _damaged(path: Path, reason: str) -> RunError:
    return RunError(f"{path}: is damaged, training cannot go on from it: {reason}: {START_OVER}")


def _spec(tensor: LazyTensor | Any) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape), np.dtype(tensor.dtype).name


def _checksum(values: Array) -> int:
    return int(google_crc32c.value(values.reshape(-1).view(np.uint8)))
