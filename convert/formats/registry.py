"""Open a checkpoint of any format: recognise it, open it, say in one line what is wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointAdapter
from convert.formats import rows
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions
from convert.formats.padding import trim_vocabulary
from convert.formats.state_dict import pattern_of
from convert.formats.uer_layer_norm import with_layer_norm
from support.errors import CheckpointError, ConvertError
from support.files import describe_read_error
from support.messages import short_repr
from tf_model.config import LAYER_NORMS, STANDARD, TANH_GELU, UER, ConfigError


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """A checkpoint on disk with the options that open it; another process can open it again.

    Attributes:
        path: a file or a folder, as the format has it.
        n_head: the number of attention heads, where the files do not record it.
        iteration: the iteration to open, a number or ``release``, instead of the one that the files name.
        format: one of ``rows.NAMES`` or an alias; None: the format is recognised.
        uer_layer_norm: ``uer``: UER-py's layer norms compute what UER-py's do; ``standard``: their weights are taken
            for those of the usual layer norm, as UER-py's own scripts do.
        vocab_size: the number of tokens, where the files have more rows; the rows behind them pad the vocabulary.
        activation_function: the activation, by Hugging Face's names, where the files do not record it.
        adapter: the folder of a LoRA adapter of peft's, which is merged while the weights are read.
    """

    path: Path
    n_head: int | None = None
    iteration: str | None = None
    format: str | None = None
    uer_layer_norm: str = UER
    vocab_size: int | None = None
    activation_function: str | None = None
    adapter: Path | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckpointSpec:
        """Make what ``to_dict`` was called on."""
        paths = {name: Path(values[name]) for name in ("path", "adapter") if values.get(name) is not None}
        return cls(**{**values, **paths})

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        adapter = None if self.adapter is None else str(self.adapter)
        return {**dataclasses.asdict(self), "path": str(self.path), "adapter": adapter}

    def with_vocab_size(self, vocab_size: int) -> CheckpointSpec:
        """Return what opens the same checkpoint with so many tokens."""
        return dataclasses.replace(self, vocab_size=vocab_size)

    def open(self, *, allow_unknown_heads: bool = False) -> Checkpoint:
        """Open the checkpoint; weights are touched only when they are read.

        Args:
            allow_unknown_heads: as ``OpenOptions.allow_unknown_heads``.

        Raises:
            ConvertError: nothing is there, no format fits, or anything keeps the files from being one whole model.
        """
        if self.uer_layer_norm not in LAYER_NORMS:
            found = short_repr(self.uer_layer_norm)
            raise ConvertError(f"uer_layer_norm {found}: expected one of {', '.join(LAYER_NORMS)}")
        candidate = Candidate(self.path)
        options = OpenOptions(
            self.n_head, self.iteration, allow_unknown_heads, self.vocab_size, self.activation_function
        )
        try:
            format = recognise(candidate) if self.format is None else rows.find_row(self.format).load()
            if self.iteration is not None and format.without_iterations is not None:
                what = format.without_iterations
                raise CheckpointError(f"{self.path}: {what} has no iterations: leave out --iteration {self.iteration}")
            checkpoint = _open_as(format, candidate, options)
            self._check_activation(checkpoint)
            if self.uer_layer_norm == STANDARD:
                checkpoint = with_layer_norm(checkpoint, STANDARD, copy=True)
            if self.adapter is not None:
                from convert.formats.lora import merge_adapter  # only where it is needed: inspect takes half a second

                checkpoint = merge_adapter(checkpoint, self.adapter, self.vocab_size)
        except ConfigError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        except OSError as error:
            raise CheckpointError(describe_read_error(error, self.path)) from error
        if self.vocab_size is not None:
            checkpoint = trim_vocabulary(checkpoint, self.vocab_size)
        notes = _adapter_notes(self.path) if self.adapter is None else ()
        info = dataclasses.replace(checkpoint.info, notes=(*checkpoint.info.notes, *notes), source=self)
        return CheckpointAdapter(checkpoint, info=info)

    def _check_activation(self, checkpoint: Checkpoint) -> None:
        """Raise ``CheckpointError`` where the files, or the format, say another activation than was asked for."""
        found, wanted = checkpoint.config.activation_function, self.activation_function
        if wanted not in (None, found) and not {wanted, found} <= {*TANH_GELU}:
            raise CheckpointError(
                f"{self.path}: the activation is {found}, by its files or its format {checkpoint.info.format}: leave "
                f"out --activation-function {wanted}"
            )


def open_checkpoint(
    path: str | Path,
    *,
    heads: int | None = None,
    iteration: str | int | None = None,
    format: str | None = None,
    uer_layer_norm: str = UER,
    vocab_size: int | None = None,
    activation_function: str | None = None,
    adapter: str | Path | None = None,
    allow_unknown_heads: bool = False,
) -> Checkpoint:
    """Open the checkpoint at ``path``, of whatever format; weights are touched only when they are read.

    Args:
        path: a file or a folder, as the format has it.
        heads, iteration, format, uer_layer_norm, vocab_size, activation_function, adapter: as ``CheckpointSpec`` has
            them.
        allow_unknown_heads: as ``OpenOptions.allow_unknown_heads``.

    Raises:
        ConvertError: as ``CheckpointSpec.open``.
    """
    name = None if iteration is None else str(iteration)
    spec = CheckpointSpec(
        Path(path),
        heads,
        name,
        format,
        uer_layer_norm,
        vocab_size,
        activation_function,
        None if adapter is None else Path(adapter),
    )
    return spec.open(allow_unknown_heads=allow_unknown_heads)


def _adapter_notes(path: Path) -> tuple[str, ...]:
    """Return a note about an adapter next to a checkpoint that nobody asked for."""
    folder = path if path.is_dir() else path.parent
    if not any(folder.glob("adapter_*")):
        return ()
    from convert.formats.lora import other_adapters

    return other_adapters(path)


def _open_as(format: Format, candidate: Candidate, options: OpenOptions) -> Checkpoint:
    """Open a candidate; where that fails, and it is something known that nobody can read as it is, say what it is."""
    try:
        return format.open(candidate, options)
    except CheckpointError as error:
        from convert.formats import refusals  # only where it is needed, too

        if (reason := refusals.explain_error(candidate)) is None:
            raise
        raise CheckpointError(f"{candidate.path}: {reason}") from error


def recognise(candidate: Candidate) -> Format:
    """Tell the format of a candidate by the names of its files and tensors.

    Raises:
        CheckpointError: nothing is there, no format fits, or several do.
        OSError: a folder cannot be read.
    """
    path = candidate.path
    if "\0" in str(path):
        raise CheckpointError(f"{path}: cannot be read: a NUL in its name")
    possible = [(row, row.load()) for row in rows.ROWS if _may_be(candidate, row)]
    fitting = [(row, format) for row, format in possible if format.recognise(candidate)]
    preferred = [(row, format) for row, format in fitting if not row.is_fallback] or fitting
    if len(preferred) > 1:
        names = " and ".join(row.name for row, _ in preferred)
        raise CheckpointError(f"{path}: looks like {names}: say which with --from")
    if preferred:
        return preferred[0][1]
    raise _unknown(candidate)


def _may_be(candidate: Candidate, row: rows.FormatRow) -> bool:
    """Whether a path may be of a format, by the names of its tensors; the code of other formats is not imported."""
    weights = candidate.weights
    if weights is None or not weights.tensors or not row.tensor_names:
        return True
    return any(map(pattern_of(row.name).match, weights.tensors))


def _unknown(candidate: Candidate) -> CheckpointError:
    """Make the error about a path that no format recognises.

    Raises:
        OSError: a folder cannot be read.
    """
    from convert.formats import refusals

    path = candidate.path
    if (reason := refusals.explain_error(candidate)) is not None:
        return CheckpointError(f"{path}: {reason}")
    if candidate.weights_error is not None:
        return candidate.weights_error
    if (reason := refusals.explain(candidate)) is not None:
        return CheckpointError(f"{path}: {reason}")
    if not path.exists():
        return CheckpointError(f"{path}: no such file or folder")
    return CheckpointError(f"{path}: {refusals.describe_unknown(candidate)}")
