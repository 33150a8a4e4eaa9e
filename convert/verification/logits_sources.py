"""The two models that ``verify`` compares: a SavedModel in TensorFlow, a checkpoint in PyTorch; and their logits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convert.checkpoint import Checkpoint
from convert.dtype_choice import check_runs_here
from convert.formats.registry import CheckpointSpec, open_checkpoint
from convert.tensors import Array, widest
from convert.verification.checkpoint_logits import check_torch, write_logits
from exports.prune import prune
from exports.saved_model_folder import ModelError, SavedModelFolder
from support.errors import ConvertError
from support.files import describe_read_error
from support.progress import Progress
from support.tensorflow_runtime import one_line_message, quiet_stderr
from tf_model.config import UER, GPT2Config


class LogitsSource(Protocol):
    """The logits of several prompts."""

    def rows(self, prompt: int, start: int, stop: int) -> Array:
        """Return the logits float32 ``[stop - start, V]`` of these positions of prompt number ``prompt``, from 0."""
        ...


class WrittenLogits:
    """Logits in a file: float32, prompt after prompt, ``[S, V]`` each, no header."""

    def __init__(self, file: Path, prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
        self._file, self._vocab_size = file, vocab_size
        self._first_rows = np.cumsum([0, *map(len, prompts)])

    def rows(self, prompt: int, start: int, stop: int) -> Array:
        first = int(self._first_rows[prompt]) + start
        values = np.fromfile(self._file, np.float32, (stop - start) * self._vocab_size, offset=first * self._row_bytes)
        return values.reshape(-1, self._vocab_size)

    @property
    def _row_bytes(self) -> int:
        return self._vocab_size * np.dtype(np.float32).itemsize


class SavedModelLogits:
    """Logits that a SavedModel computes, of one prompt at a time: only its signature ``logits`` is loaded.

    Args:
        folder: the SavedModel.
        prompts: token ids.
        temporary: an empty folder.

    Raises:
        ModelError: TensorFlow cannot load or run it.
    """

    def __init__(self, folder: SavedModelFolder, prompts: Sequence[Sequence[int]], temporary: Path) -> None:
        import tensorflow as tf

        self._folder, self._prompts = folder, prompts
        self._prompt: int | None = None
        self._logits: Any = None
        try:
            prune(folder.path, temporary, "logits")
            self._model = tf.saved_model.load(str(temporary))
        except Exception as error:  # besides tf.errors.OpError: what a damaged object graph leads to
            raise ModelError(f"{folder.path}: TensorFlow cannot load it: {one_line_message(error)}") from error

    def rows(self, prompt: int, start: int, stop: int) -> Array:
        if prompt != self._prompt:
            self._logits = None  # those of two prompts are never in memory together
            self._logits, self._prompt = self._run(self._prompts[prompt]), prompt
        values: Array = self._logits[0, start:stop].numpy()
        return values

    def _run(self, ids: Sequence[int]) -> Any:
        import tensorflow as tf

        try:
            return self._model.signatures["logits"](input_ids=tf.constant([ids], tf.int64))["logits"]
        except tf.errors.OpError as error:
            message = one_line_message(error)
            raise ModelError(f"{self._folder.path}: fails on {len(ids)} tokens: {message}") from error


class Model(Protocol):
    """One side of a comparison.

    Attributes:
        path: where it is, for messages.
        config: its sizes.
        dtype: what its weights were rounded to, a key of ``TOLERANCES``.
        tokenizer: the folder with its tokenizer; None where it has none.
    """

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> GPT2Config: ...
    @property
    def dtype(self) -> str: ...
    @property
    def tokenizer(self) -> Path | None: ...

    def check_runs(self) -> None:
        """Raise ``UserError`` where it is known, without loading the model, that it cannot run here."""
        ...

    def logits(self, prompts: Sequence[Sequence[int]], temporary: Path, stage: str, progress: Progress) -> LogitsSource:
        """Make the logits of ``prompts`` available.

        Args:
            prompts: token ids.
            temporary: an empty folder for files.
            stage: the word for ``progress``.
            progress: called while logits are computed in advance.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A SavedModel, which TensorFlow runs in this process."""

    folder: SavedModelFolder

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def config(self) -> GPT2Config:
        return self.folder.config

    @property
    def dtype(self) -> str:
        return self.folder.dtype

    @property
    def tokenizer(self) -> Path | None:
        return self.folder.assets

    def check_runs(self) -> None:
        self.folder.check_readable()
        index = self.folder.variables.with_suffix(".index")
        if not index.is_file():
            raise ModelError(f"{self.path}: has no {index.relative_to(self.path)}: convert the checkpoint again")
        with quiet_stderr():  # takes seconds: only once all other input is known to be good
            import tensorflow  # noqa: F401
        self.folder.check_signature("logits")
        check_runs_here(self.dtype, self.path, "Verify")

    def logits(self, prompts: Sequence[Sequence[int]], temporary: Path, stage: str, progress: Progress) -> LogitsSource:
        return SavedModelLogits(self.folder, prompts, temporary)


@dataclasses.dataclass(frozen=True)
class CheckpointModel:
    """A checkpoint of any format, which PyTorch runs in another process: CPM's as Megatron would, shard by shard.

    A checkpoint that is only in memory runs in this process.
    """

    checkpoint: Checkpoint

    @property
    def path(self) -> Path:
        info = self.checkpoint.info
        return info.source.path if info.source else Path(info.where)

    @property
    def config(self) -> GPT2Config:
        return self.checkpoint.config

    @property
    def dtype(self) -> str:
        dtype = widest(self.checkpoint.dtypes.values())
        return str(min(dtype, np.dtype(np.float32)).name)

    @property
    def tokenizer(self) -> Path | None:
        return self.checkpoint.tokenizer

    def check_runs(self) -> None:
        check_torch()

    def logits(self, prompts: Sequence[Sequence[int]], temporary: Path, stage: str, progress: Progress) -> LogitsSource:
        file = temporary / "logits"
        write_logits(self.checkpoint, prompts, file, functools.partial(progress, stage))
        return WrittenLogits(file, prompts, self.config.vocab_size)


def open_model(path: Path, source: Checkpoint) -> Model:
    """Open what was made from ``source``: a SavedModel, or a checkpoint of any format.

    Args:
        path: the folder of a SavedModel, or where a checkpoint is.
        source: what was converted. Its sizes are expected; its number of heads, and how it was asked to understand the
            layer norms of UER-py, hold for a checkpoint at ``path``, too.

    Raises:
        UserError: there is neither, or its sizes are not those of ``source``.
    """
    folder = SavedModelFolder(path)
    model: Model
    try:
        is_saved_model = folder.exists()
    except OSError as error:
        raise ConvertError(describe_read_error(error, path)) from error
    if is_saved_model:
        model = SavedModel(folder)
    else:
        spec = source.info.source
        layer_norm = spec.uer_layer_norm if isinstance(spec, CheckpointSpec) else UER
        model = CheckpointModel(open_checkpoint(path, heads=source.config.n_head, uer_layer_norm=layer_norm))
    check_sizes(path, model.config, source.config)
    return model


def check_sizes(path: Path, found: GPT2Config, expected: GPT2Config) -> None:
    """Raise ``ConvertError`` where a model of the sizes ``found`` cannot have been made from one of ``expected``.

    The size of the vocabulary may differ: rows that pad it are left out by a conversion.
    """
    names = ("n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    wrong = [
        f"{name} is {getattr(found, name)}, the checkpoint's {getattr(expected, name)}"
        for name in names
        if getattr(found, name) != getattr(expected, name)
    ]
    if wrong:
        raise ConvertError(f"{path}: not made from this checkpoint: {'; '.join(wrong)}")
