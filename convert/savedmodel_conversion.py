"""From a checkpoint to a SavedModel that appears complete or not at all."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.conversion import counted_reader, hash_files, opened, source_notes
from convert.dtype_choice import resolve_dtype
from convert.formats.format import resolve_options
from convert.formats.padding import (
    has_chosen_size,
    padding_note,
    rows_without_text,
    tokens_within,
    trim_to_tokenizer,
    unused_rows_note,
)
from convert.formats.text_pieces import PIECE_OPTIONS, with_pieces
from convert.formats.tokenizer_files import tokenizer_for, tokens_for
from convert.output.atomic_folder import check_destination, new_folder
from convert.output.hashing import Hasher
from convert.provenance import describe
from convert.verification.checkpoint_logits import check_torch
from convert.verification.compare import verify_apart
from convert.verification.report import ParityReport
from exports.assets import write_assets
from exports.saved_model_folder import SIGNATURES, SavedModelFolder
from support.errors import ConvertError
from support.progress import Progress, no_progress
from support.tensorflow_runtime import quiet_stderr
from tf_model.config import GPT2Config
from tf_model.precision import DTYPES, stored_bytes
from tokenization import Tokenizer
from tokenization.special_tokens import SpecialTokens

_GRAPH_BYTES = 1 << 24
"""Room for the graph, the index and the tokenizer, in addition to the weights."""


@dataclasses.dataclass(frozen=True)
class SavedModelResult:
    """A SavedModel that was written.

    Attributes:
        folder: where it is.
        config: the sizes.
        dtype: in which types its weights are stored and computed with.
        nbytes: bytes of all its files.
        seconds: how long the conversion took.
        has_tokenizer: whether it takes text; without a tokenizer it takes token ids only.
        notes: what a user should know about the source and the result, a line each.
        parity: the comparison with the source, where it was asked for.
    """

    folder: Path
    config: GPT2Config
    dtype: str
    nbytes: int
    seconds: float
    has_tokenizer: bool
    notes: tuple[str, ...] = ()
    parity: ParityReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parity = None if self.parity is None else self.parity.to_dict()
        changed = {"folder": str(self.folder), "config": self.config.to_dict(), "notes": list(self.notes)}
        return {**plain, **changed, "parity": parity}

    def summary(self) -> str:
        """One line with what was written and how to load it."""
        ids_only = "" if self.has_tokenizer else ", no tokenizer: token ids only"
        return (
            f"{self.config.parameter_count:,} parameters as {self.dtype}, {self.nbytes / 1e6:,.1f} MB, "
            f"{self.seconds:.1f} s{ids_only}; load it with: "
            f"import tensorflow_hub as hub; model = hub.load({os.path.abspath(self.folder)!r})"
        )


def to_savedmodel(
    checkpoint: Checkpoint | str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    tokenizer_kind: str | None = None,
    dtype: str = DTYPES[0],
    verify: bool = False,
    overwrite: bool = False,
    signatures: Sequence[str] = SIGNATURES,
    options: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> SavedModelResult:
    """Write ``checkpoint`` as a TensorFlow SavedModel that samples inside its own graph.

    One tensor is in memory at a time. The folder appears when it is complete; when anything fails, nothing is left.

    Args:
        checkpoint: as ``open_checkpoint`` gives it, or any other ``Checkpoint``; or the path of one.
        folder: where the SavedModel goes; its parents are made, too.
        tokenizer: the folder of the tokenizer's own files; by default those next to the checkpoint, if there are any.
        tokenizer_kind: how its files are read, of ``tokenization.KINDS``, where they can be read in two ways.
        dtype: one of ``DTYPES``, or ``auto``: the one that generates fastest on this machine's CPU.
        verify: compare the logits with the source's before the folder appears.
        overwrite: replace an older SavedModel of this project; anything else in ``folder`` is left alone.
        signatures: the names of those to write.
        options: ``start_piece``, ``end_piece`` and ``line_piece``: what begins a text, ends it and ends its lines, as
            texts with the names or ids of pieces.
        progress: called with the stage ``convert``, and those of ``verify``.

    Raises:
        UserError: the checkpoint, the tokenizer or the destination cannot be used.
        VerificationError: the SavedModel does not compute what the checkpoint does; nothing was written.
        TokenizerError: the tokenizer cannot be used.
    """
    started = time.monotonic()
    if verify:
        check_torch()
        if "logits" not in signatures:
            raise ConvertError(f"{folder}: verify needs the signature logits, among those that are written")
    checkpoint, folder = opened(checkpoint), Path(folder)
    given = None if tokenizer is None else Path(tokenizer)
    text_tokenizer, tokenizer_notes = tokenizer_for(given, checkpoint, tokenizer_kind)
    pieces = resolve_options(PIECE_OPTIONS, options, "savedmodel")
    found = tokens_for(given, text_tokenizer, checkpoint)
    tokens = with_pieces(found, pieces, text_tokenizer, checkpoint.config.vocab_size)
    is_chosen = has_chosen_size(checkpoint)
    if text_tokenizer is not None:
        checkpoint = trim_to_tokenizer(checkpoint, text_tokenizer.vocab_size, tokens)
        padded = unused_rows_note(checkpoint, max([text_tokenizer.vocab_size, (tokens.eos_token_id or 0) + 1]))
    else:
        padded = padding_note(checkpoint)
    tokens = tokens_within(tokens, checkpoint.config.vocab_size)
    if text_tokenizer is not None:
        blank = rows_without_text(checkpoint, text_tokenizer, tokens, is_chosen=is_chosen)
        tokens = dataclasses.replace(tokens, blank_ids=blank)
    inputs = [*checkpoint.info.inputs, *([] if given is None else [given])]
    check_destination(folder, overwrite, inputs)  # before the choice of a dtype, which may take seconds
    choice = resolve_dtype(dtype, folder, verify=verify)
    size = stored_bytes(checkpoint.config, choice.dtype) + _GRAPH_BYTES
    with new_folder(folder, force=overwrite, size=size, inputs=inputs) as partial, Hasher() as hasher:
        hash_files(checkpoint, hasher)
        _write(partial, checkpoint, choice.dtype, tokens, text_tokenizer, signatures, hasher, progress)
        parity = None
        if verify:
            parity = verify_apart(checkpoint, partial, progress)
            parity.check(folder)
        describe(partial, checkpoint, choice.dtype, tokens, text_tokenizer is not None, hasher, parity)
        nbytes = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    return SavedModelResult(
        folder=folder,
        config=checkpoint.config,
        dtype=choice.dtype,
        nbytes=nbytes,
        seconds=time.monotonic() - started,
        has_tokenizer=text_tokenizer is not None,
        notes=(*source_notes(checkpoint), *tokenizer_notes, *([] if padded is None else [padded]), *choice.notes),
        parity=parity,
    )


def _write(
    folder: Path,
    checkpoint: Checkpoint,
    dtype: str,
    tokens: SpecialTokens,
    tokenizer: Tokenizer | None,
    signatures: Sequence[str],
    hasher: Hasher,
    progress: Progress,
) -> None:
    """Fill ``folder`` with the SavedModel and its assets."""
    read = counted_reader(checkpoint, progress)
    with quiet_stderr():  # takes seconds: only once the input is known to be good
        import tensorflow as tf

        from exports.saved_model import write_saved_model

    try:
        data, sha256 = write_saved_model(folder, checkpoint.config, dtype, tokens, read, signatures)
    except tf.errors.OpError as error:  # the file system, as TensorFlow's writer of the graph sees it
        reason = error.message.splitlines()[0].split("; ")[-1].split(" [Op:")[0]
        number = errno.ENOSPC if isinstance(error, tf.errors.ResourceExhaustedError) else errno.EIO
        raise OSError(number, reason) from error  # the new folder's error names the destination
    hasher.record(data, {"sha256": sha256})
    write_assets(SavedModelFolder(folder).assets, checkpoint.config, dtype, tokens, tokenizer)
