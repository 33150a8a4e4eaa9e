"""Where a trained model goes, and in which format: checked before the training, written after it."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.conversion import COPY, check_writable, find_writer, to_checkpoint
from convert.dtype_choice import AUTO
from convert.output.atomic_folder import SAVED_MODEL, check_destination
from convert.savedmodel_conversion import to_savedmodel
from support.errors import UserError
from support.messages import show_bytes
from support.progress import Progress
from tf_model.precision import DTYPES
from training.own_folders import training_folder
from training.setting import SettingError, flag
from training.settings import FLOAT32, SAVEDMODEL, Settings
from training.texts.presets import Preset

_EXTRA_BYTES = 1 << 26
"""For logs, samples and the graph."""
_STATE_BYTES_PER_WEIGHT = 28
"""A trained weight and its two moments, float32, in two states; and the weight in the best weights."""


_FORMATS_WITH_PIECES = (SAVEDMODEL, "huggingface")
"""Formats with a ``generation_config.json``."""
_GENERATE_OPTIONS = {"novel": " --preset novel"}
"""Options of ``generate`` for a model of a preset's texts: a novel is long."""


@dataclasses.dataclass(frozen=True)
class Destination:
    """The folder of the result.

    Attributes:
        folder: its path.
        format, dtype: of the result; ``dtype`` is checked.
        options: of the format's writer.
        tokenizer, tokenizer_kind: as the user has named them; None is the model's own.
        overwrite: whether an older result is replaced.
        next_options: what the user's next command needs, and the result itself cannot have.
    """

    folder: Path
    format: str
    dtype: str
    options: dict[str, Any]
    tokenizer: Path | None
    tokenizer_kind: str | None
    overwrite: bool
    next_options: str = ""

    @classmethod
    def of(cls, folder: Path, settings: Settings, *, overwrite: bool) -> Destination:
        """Make it of the settings.

        Raises:
            SettingError: the format has no such dtype.
        """
        dtype = settings.dtype or FLOAT32
        if settings.format == SAVEDMODEL and dtype not in (*DTYPES, AUTO):
            raise SettingError(f"--dtype {dtype}: expected one of {', '.join((*DTYPES, AUTO))}")
        options = {"tensor_parallel": settings.tensor_parallel or 1} if settings.format == "megatron" else {}
        return cls(folder, settings.format, dtype, options, settings.tokenizer, settings.tokenizer_kind, overwrite)

    def with_ends(self, preset: Preset, eos_token_id: int | None) -> Destination:
        """Return the destination of a model that is trained on texts of ``preset``.

        In lyrics an end of text ends each line, and in novels nothing ends a text: a result that has a
        ``generation_config.json`` says so there, and generation goes on.

        Args:
            preset: how documents become token ids.
            eos_token_id: the end of a text in them; None where there is none.
        """
        pieces = {} if eos_token_id is None else _pieces_of(preset, eos_token_id)
        if self.format in _FORMATS_WITH_PIECES:
            next_options = _GENERATE_OPTIONS.get(preset.name, "") if self.format == SAVEDMODEL else ""
            return dataclasses.replace(self, options={**self.options, **pieces}, next_options=next_options)
        next_options = "".join(f" {flag(name)} {value}" for name, value in pieces.items())
        return dataclasses.replace(self, next_options=next_options)

    def check(self, checkpoint: Checkpoint, inputs: Sequence[Path]) -> None:
        """Check that ``checkpoint`` may be written there.

        Raises:
            UserError: the folder cannot be used, or the format cannot hold the model.
        """
        kind = SAVED_MODEL if self.format == SAVEDMODEL else COPY
        check_destination(self.folder, self.overwrite, inputs, kind)
        if self.format != SAVEDMODEL:
            check_writable(
                checkpoint, self.format, dtype=self.dtype, tokenizer=self._saved_tokenizer,
                tokenizer_kind=self._saved_kind, options=self.options,
            )  # fmt: skip

    def check_space(self, parameters: int, trainable: int) -> None:
        """Check that the disk has room for the state, twice while it is replaced, the best weights and the result.

        Args:
            parameters, trainable: weights of the model, and those of them, or of adapters, that are trained.

        Raises:
            UserError: it has too little.
        """
        parent = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
        used = sum(file.stat().st_size for file in training_folder(self.folder).rglob("*") if file.is_file())
        needed = 4 * parameters + _STATE_BYTES_PER_WEIGHT * trainable + _EXTRA_BYTES - used
        free = shutil.disk_usage(parent).free
        if free < needed:
            raise UserError(
                f"{self.folder}: {show_bytes(needed)} are needed for the state of the training and the result, "
                f"{show_bytes(free)} are free on this disk; choose another --output, or make room"
            )

    @property
    def _saved_tokenizer(self) -> Path | None:
        """The tokenizer that is written, where the format has a place for one."""
        return self.tokenizer if find_writer(self.format).save_tokenizer is not None else None

    @property
    def _saved_kind(self) -> str | None:
        return self.tokenizer_kind if self._saved_tokenizer is not None else None

    def write(self, checkpoint: Checkpoint, progress: Progress) -> tuple[str, ...]:
        """Write ``checkpoint``, complete or not at all; return what a user should know about the result.

        Raises:
            UserError: it cannot be written.
        """
        if self.format == SAVEDMODEL:
            return to_savedmodel(
                checkpoint, self.folder, tokenizer=self.tokenizer, tokenizer_kind=self.tokenizer_kind,
                dtype=self.dtype, overwrite=self.overwrite, options=self.options, progress=progress,
            ).notes  # fmt: skip
        return to_checkpoint(
            checkpoint, self.folder, format=self.format, dtype=self.dtype, tokenizer=self._saved_tokenizer,
            tokenizer_kind=self._saved_kind, overwrite=self.overwrite, options=self.options, progress=progress,
        ).notes  # fmt: skip

    def next_command(self, prompt: str) -> str:
        """Return the user's next command: it generates, or makes a SavedModel."""
        folder = shlex.quote(str(self.folder))
        if self.format == SAVEDMODEL:
            return f"gpt2-savedmodel generate {folder} {_shell_word(prompt)}{self.next_options}"
        output = shlex.quote(f"{self.folder}-savedmodel")
        return f"gpt2-savedmodel to-tf --checkpoint {folder} --output {output}{self.next_options}"


def _pieces_of(preset: Preset, eos_token_id: int) -> dict[str, str]:
    """Return the options of a writer that say how texts of ``preset`` end, where an end of text does not end them."""
    if preset.ends_lines:
        return {"end_piece": "none", "line_piece": str(eos_token_id)}
    return {} if preset.ends else {"end_piece": "none"}


def _shell_word(text: str) -> str:
    r"""Quote ``text`` for bash and zsh, which read ``$'\n'`` as a line feed: the command stays on one line."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'").replace("\n", r"\n")
    return "$'" + "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in escaped) + "'"
