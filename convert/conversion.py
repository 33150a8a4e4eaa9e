"""Write a checkpoint in another format: opened, noted, hashed, written, described; complete or not at all."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.formats.format import Writer, WriteRequest, resolve_options
from convert.formats.limits import check_holds
from convert.formats.padding import padding_note, unused_rows_note
from convert.formats.registry import open_checkpoint
from convert.formats.rows import find_row
from convert.formats.text_pieces import with_pieces
from convert.formats.tokenizer_files import tokenizer_for, tokens_for
from convert.formats.uer_layer_norm import with_layer_norm
from convert.output.atomic_folder import Kind, new_folder
from convert.output.hashing import Hasher
from convert.output.manifest import ROOT_MANIFEST, has_only_its_own
from convert.provenance import describe_copy, may_be_known
from convert.tensors import BFLOAT16, Array, DType
from support.errors import ConvertError
from support.messages import list_names, pluralize, short_repr
from support.progress import Progress, no_progress
from tf_model.config import STANDARD

DTYPES: dict[str, DType] = {
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    "float32": np.dtype(np.float32),
}
"""The types that a checkpoint can be written in."""

COPY = Kind(
    others="that this program did not write",
    is_older=lambda folder: (folder / ROOT_MANIFEST).is_file() and has_only_its_own(folder),
)
"""Replace only a folder whose files are all in its manifest: other files may belong to a training that continued."""

_MANIFEST_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class CheckpointResult:
    """A checkpoint that was written.

    Attributes:
        folder: where it is.
        format: the name of its format.
        parameters: the number of weights.
        files: the files with the weights and the tokenizer.
        nbytes: bytes of those files.
        dtypes: the types of the weights, that of the most tensors first.
        seconds: how long it took.
        notes: what a user should know about the source and the result, a line each.
    """

    folder: Path
    format: str
    parameters: int
    files: tuple[Path, ...]
    nbytes: int
    dtypes: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        values = dataclasses.asdict(self)
        return {**values, "folder": str(self.folder), "files": [str(file) for file in self.files]}

    def summary(self) -> str:
        """Return one line for people."""
        return (
            f"{self.parameters:,} parameters as {list_names(self.dtypes, 4)} in {pluralize(len(self.files), 'file')}, "
            f"{self.nbytes / 1e6:,.1f} MB, {self.seconds:.1f} s: {self.folder}"
        )


def to_checkpoint(
    checkpoint: Checkpoint | str | Path,
    folder: str | Path,
    *,
    format: str,
    dtype: str | None = None,
    tokenizer: str | Path | None = None,
    tokenizer_kind: str | None = None,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> CheckpointResult:
    """Write ``checkpoint`` as another checkpoint: all of it appears at ``folder``, or nothing.

    Args:
        checkpoint: any, such as one that ``open_checkpoint`` returned, or a model in memory; or the path of one.
        folder: the new checkpoint's folder.
        format: the name of the format to write, or an alias.
        dtype: the type of all weights, one of ``DTYPES``; None: the format's, or each tensor keeps its own.
        tokenizer: the folder of the tokenizer that is saved with the weights; None: the checkpoint's own.
        tokenizer_kind: how its files are read, of ``tokenization.KINDS``, where they can be read in two ways.
        overwrite: replace an older checkpoint at ``folder`` that gpt2-savedmodel wrote.
        options: the format's own options, such as ``tensor_parallel``.
        progress: called with the bytes that have been read.

    Raises:
        ConvertError: the format cannot hold the model, an option cannot have its value, the weights are damaged, or
            ``folder`` cannot be written.
        TokenizerError: the tokenizer cannot be used, or has more pieces than the model.
    """
    started = time.monotonic()
    checkpoint, folder = opened(checkpoint), Path(folder)
    row, writer = find_row(format), find_writer(format)
    dtype = writer.default_dtype if dtype is None else dtype
    request = check_writable(
        checkpoint, format, dtype=dtype, tokenizer=tokenizer, tokenizer_kind=tokenizer_kind, options=options
    )
    inputs = [*checkpoint.info.inputs, *([] if tokenizer is None else [Path(tokenizer)])]
    size = writer.size(request) + _MANIFEST_BYTES
    with new_folder(folder, force=overwrite, size=size, inputs=inputs, kind=COPY) as new:
        with Hasher() as hasher:
            hash_files(checkpoint, hasher)
            widest = max(found.itemsize for found in request.dtypes.values())
            files = writer.write(request, new, counted_reader(request.checkpoint, progress, itemsize=widest))
            if request.tokenizer is not None and writer.save_tokenizer is not None:
                files = [*files, *writer.save_tokenizer(request.tokenizer, new)]
            describe_copy(new, request.checkpoint, _record(request, writer, dtype), hasher)
        nbytes = sum(file.stat().st_size for file in files)
        names = [file.relative_to(new) for file in files]
    counted = Counter(found.name for found in request.dtypes.values())
    return CheckpointResult(
        folder,
        row.name,
        checkpoint.config.parameter_count,
        tuple(folder / name for name in names),
        nbytes,
        tuple(name for name, _ in counted.most_common()),
        time.monotonic() - started,
        (
            *source_notes(request.checkpoint),
            *request.notes,
            *_left_out(checkpoint),
            *_padding(request),
            *writer.notes(request),
        ),
    )


def check_writable(
    checkpoint: Checkpoint,
    format: str,
    *,
    dtype: str | None,
    tokenizer: str | Path | None = None,
    tokenizer_kind: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> WriteRequest:
    """Return what is to be written, after checking that the format can hold it; no weight is read.

    Raises:
        ConvertError, TokenizerError: as ``to_checkpoint``, but for the folder.
    """
    row, writer = find_row(format), find_writer(format)
    chosen = _Tokenizer(None if tokenizer is None else Path(tokenizer), tokenizer_kind)
    request = _request(checkpoint, writer, row.name, dtype, chosen, options)
    check_holds(request.checkpoint.config, writer.holds, f"the format {row.name}")
    writer.check(request)
    return request


def find_writer(format: str) -> Writer:
    """Look up how a format is written.

    Raises:
        ConvertError: there is no such format, or it is written by ``to_savedmodel``.
    """
    writer = find_row(format).load().writer
    if writer is None:
        raise ConvertError(f"{format}: not a format of checkpoints that can be written: use to_savedmodel")
    return writer


@dataclasses.dataclass(frozen=True)
class _Tokenizer:
    """The tokenizer that the user names, and how its files are read."""

    path: Path | None
    kind: str | None


def _request(
    checkpoint: Checkpoint,
    writer: Writer,
    format: str,
    dtype: str | None,
    tokenizer: _Tokenizer,
    options: Mapping[str, Any] | None,
) -> WriteRequest:
    """Complete what the user asks for: options, types, layer norms of the format's kind, tokenizer and its tokens."""
    values = resolve_options(writer.options, options, format)
    if dtype is not None and dtype not in DTYPES:
        raise ConvertError(f"dtype {short_repr(dtype)}: expected one of {', '.join(DTYPES)}")
    given = tokenizer.path
    if given is not None and writer.save_tokenizer is None:
        raise ConvertError(f"{given}: the format {format} has no place for a tokenizer")
    adapted = with_layer_norm(checkpoint, writer.layer_norm, copy=values.get("uer_layer_norm") == STANDARD)
    found, notes = tokenizer_for(given, adapted, tokenizer.kind) if writer.save_tokenizer is not None else (None, ())
    return WriteRequest(
        adapted,
        {name: own if dtype is None else DTYPES[dtype] for name, own in adapted.dtypes.items()},
        values,
        with_pieces(tokens_for(given, found, adapted), values, found, adapted.config.vocab_size),
        found,
        notes,
    )


def _record(request: WriteRequest, writer: Writer, dtype: str | None) -> dict[str, Any]:
    """Return what the manifest records about how the checkpoint was written."""
    tokenizer = {} if writer.save_tokenizer is None else {"tokenizer": request.tokenizer is not None}
    return {"dtype": dtype, **tokenizer, **request.options, **writer.record(request)}


def opened(checkpoint: Checkpoint | str | Path) -> Checkpoint:
    """Return ``checkpoint``, or open what is at this path.

    Raises:
        ConvertError: as ``open_checkpoint``.
    """
    return open_checkpoint(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint


def source_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Say what a user should know about a checkpoint that can be used, a line each."""
    yield from checkpoint.info.notes
    for file in checkpoint.info.without_checksums:
        yield f"{file}: has no checksums, so damage to its weights cannot be noticed"


def _left_out(checkpoint: Checkpoint) -> Iterator[str]:
    info = checkpoint.info
    if info.left_out:
        where = info.where if info.source is None else info.source.path
        yield f"{where}: only the weights are written; left out: {list_names(info.left_out, 9)}"


def _padding(request: WriteRequest) -> Iterator[str]:
    """Say that the copy keeps rows of the vocabulary that no text becomes: a training may go on with it."""
    if request.tokenizer is None:
        note = padding_note(request.checkpoint)
    else:
        note = unused_rows_note(request.checkpoint, request.tokenizer.vocab_size)
    if note is not None:
        yield note


def hash_files(checkpoint: Checkpoint, hasher: Hasher) -> None:
    """Start hashing the files of a checkpoint, next to the work that reads them."""
    known = may_be_known(checkpoint.config, len(checkpoint.info.files))
    for file in checkpoint.info.files:
        hasher.add(file, ("sha256", "sha1") if known else ("sha256",))


def counted_reader(
    checkpoint: Checkpoint, progress: Progress = no_progress, *, itemsize: int = 4
) -> Callable[[str, DType], Array]:
    """Give ``Checkpoint.read`` with one piece of memory for all tensors, and report each to ``progress``.

    A tensor is good until the next one is read. The stage is called ``convert``; it begins at once, with nothing done.

    Args:
        checkpoint: what is read.
        progress: called with the bytes read so far, of all bytes in the files.
        itemsize: bytes of the widest type that will be asked for.
    """
    counts = {name: math.prod(shape) for name, shape in checkpoint.config.tensor_shapes().items()}
    buffer = np.empty(itemsize * max(counts.values()), np.uint8)
    total = sum(count * checkpoint.dtypes[name].itemsize for name, count in counts.items())
    done = 0
    progress("convert", done, total)

    def read(name: str, dtype: DType) -> Array:
        nonlocal done
        value = checkpoint.read(name, dtype, buffer)
        done += value.size * checkpoint.dtypes[name].itemsize
        progress("convert", done, total)
        return value

    return read
