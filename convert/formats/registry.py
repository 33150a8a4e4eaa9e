"""Every format of checkpoints: how one is recognised, and what opens it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from convert.checkpoint import Checkpoint
from convert.formats import huggingface, openai_tf1, savedmodel, uer
from convert.formats.candidate import Candidate
from convert.formats.format import Format as FormatObject
from convert.formats.format import OpenOptions
from convert.formats.megatron import cpm, megatron_lm
from support.errors import CheckpointError, ConvertError
from support.messages import list_names
from tf_model.config import ConfigError


class Format(NamedTuple):
    """A format.

    Attributes:
        name: as ``--from`` takes it.
        looks_for: what a path has where it is one, for the message that nothing was recognised.
        matches: whether a path looks like one; nothing large is read.
        open: opens it; ``n_head``, ``iteration`` and ``allow_unknown_heads`` as ``OpenOptions``.
    """

    name: str
    looks_for: str
    matches: Callable[[Path], bool]
    open: Callable[..., Checkpoint]


def _of(format: FormatObject, looks_for: str) -> Format:
    def open_path(path: Path, **options: Any) -> Checkpoint:
        try:
            return format.open(Candidate(path), OpenOptions(**options))
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error

    return Format(format.name, looks_for, lambda path: format.recognise(Candidate(path)), open_path)


FORMATS: tuple[Format, ...] = (
    Format(
        savedmodel.NAME,
        f"a folder with {savedmodel.GRAPH} that this program wrote",
        lambda path: savedmodel.find(path) is not None,
        savedmodel.open_savedmodel,
    ),
    Format(
        huggingface.NAME,
        "a folder with model.safetensors or pytorch_model.bin (or an index of them) and config.json",
        lambda path: huggingface.find(path) is not None,
        huggingface.open_huggingface,
    ),
    Format(
        openai_tf1.NAME,
        f"a folder with {openai_tf1.HPARAMS}, {openai_tf1.TRACKER} and {openai_tf1.MODEL}.index",
        lambda path: openai_tf1.find(path) is not None,
        openai_tf1.open_openai_tf1,
    ),
    Format(
        uer.NAME,
        "a .bin file with tensors named embedding.word... and encoder.transformer...",
        lambda path: uer.find(path) is not None,
        uer.open_uer,
    ),
    _of(megatron_lm.FORMAT, "mp_rank_*/model_optim_rng.pt with a language_model in it"),
    _of(
        cpm.FORMAT,
        "latest_checkpointed_iteration.txt, mp_rank_* files, or a .pt file with 'module' or 'model' in it",
    ),
)
"""In the order in which they are tried."""

NAMES = tuple(format.name for format in FORMATS)


def open_checkpoint(
    path: Path,
    *,
    n_head: int | None = None,
    iteration: str | None = None,
    from_format: str | None = None,
    allow_unknown_heads: bool = False,
) -> Checkpoint:
    """The checkpoint at ``path``, of whatever format; weights are touched only when they are read.

    Args:
        path: a file or a folder, as the format has it.
        n_head, iteration, allow_unknown_heads: as ``OpenOptions``.
        from_format: one of ``NAMES``, to be taken for that whatever it looks like.

    Raises:
        ConvertError: nothing is there, no format fits, or anything keeps the files from being one whole model.
    """
    return recognise(path, from_format).open(
        path, n_head=n_head, iteration=iteration, allow_unknown_heads=allow_unknown_heads
    )


def recognise(path: Path, from_format: str | None = None) -> Format:
    """The format of what is at ``path``.

    Raises:
        ConvertError: as ``open_checkpoint``.
    """
    if from_format is not None:
        return next(format for format in FORMATS if format.name == from_format)
    try:
        if not path.exists():  # what TensorFlow calls a checkpoint is no file
            if openai_tf1.find(path) is None:
                raise CheckpointError(f"{path}: no such file or folder")
            return next(format for format in FORMATS if format.name == openai_tf1.NAME)
        if fitting := [format for format in FORMATS if format.matches(path)]:
            # What looks like Megatron in general may well be the newer kind of it.
            names = [format.name for format in fitting if format is not FORMATS[-1]]
            if len(names) > 1:
                raise CheckpointError(f"{path}: looks like {' and '.join(names)}: say which with --from")
            return fitting[0]
        inside = (
            f"has {list_names(sorted(p.name for p in path.iterdir()), 5) or 'nothing'}" if path.is_dir() else "a file"
        )
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL
        raise ConvertError(f"{path}: cannot be read: {error}") from error
    wanted = "; ".join(f"{format.name}: {format.looks_for}" for format in FORMATS)
    raise CheckpointError(f"{path}: {inside}: no checkpoint of a known format: looked for {wanted}")


def is_known(path: Path) -> bool:
    """Whether there is anything of a known format at ``path``."""
    try:
        return recognise(path) is not None
    except ConvertError:
        return False
