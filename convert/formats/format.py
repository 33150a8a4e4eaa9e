"""A format of checkpoints: how it is recognised, opened and written. Each format's file has one such object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.formats.candidate import Candidate
from convert.formats.heads import HEADS, possible_heads, resolve_head_count
from convert.formats.limits import GPT2, Holds
from convert.tensors import Array, DType
from support.errors import ConvertError
from support.messages import list_names, short_repr
from tf_model.config import STANDARD
from tokenization import Tokenizer
from tokenization.special_tokens import NO_TOKENS, SpecialTokens

Read = Callable[[str, DType], Array]
"""Reads a whole tensor by its canonical name, in a type; its memory may be used again at the next call."""


@dataclasses.dataclass(frozen=True)
class OpenOptions:
    """What a user knows about a checkpoint that its files may not say.

    Attributes:
        n_head: the number of attention heads.
        iteration: the iteration to open, instead of the one that the files name.
        allow_unknown_heads: take the lowest possible number of heads where nobody knows it, for those who do not
            compute with the checkpoint.
        vocab_size: the number of tokens, where the files have more rows than that. ``CheckpointSpec.open`` leaves the
            rows out; a format needs it only where it does not know the size otherwise.
        activation_function: the activation, by Hugging Face's names; for formats whose files do not record it.
    """

    n_head: int | None = None
    iteration: str | None = None
    allow_unknown_heads: bool = False
    vocab_size: int | None = None
    activation_function: str | None = None

    def heads(self, where: Path, hidden: int, ranks: int = 1, stored: int | None = None) -> int:
        """Resolve the number of heads of a model; see ``resolve_head_count``.

        Args:
            where: the file for messages.
            hidden: the hidden size.
            ranks: model-parallel ranks that the heads are shared out to.
            stored: what the files say.
        """
        is_unknown = self.n_head is None and stored is None and HEADS.get(hidden) not in possible_heads(hidden, ranks)
        if is_unknown and self.allow_unknown_heads:
            return ranks
        return resolve_head_count(where, hidden, ranks, self.n_head, stored)


OWN_OPTIONS = (
    *("checkpoint", "output", "dtype", "layout", "formats", "tokenizer", "force", "quiet", "help", "tokenizer_kind"),
    *("from", "from_format", "heads", "iteration", "uer_layer_norm", "vocab_size", "activation_function", "adapter"),
    "tokenizer_kind",
)
"""What the options of a command that writes are called where they are not the format's own."""

_KINDS = {int: "a whole number", str: "text"}


@dataclasses.dataclass(frozen=True)
class WriteOption:
    """An option of a writer, as the command line, its help and ``to_checkpoint(options=...)`` take it.

    Attributes:
        name: the name in Python; on the command line it has ``--`` in front and dashes for underscores.
        help: one line.
        kind: the type of the value, ``str`` or ``int``.
        default: the value where none is given.
        required: whether it must be given.
        choices: the values that it can have; empty where all are allowed.
        range: the lowest and the highest number; None where every number is allowed.
        metavar: the value's name in the help.
        is_shared: whether it is an option for reading checkpoints too, which every command has.
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    range: tuple[int, int] | None = None
    metavar: str | None = None
    is_shared: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"the option {self.name}: kind is {self.kind!r}: expected str or int")
        if self.name in OWN_OPTIONS and not self.is_shared:
            raise ValueError(f"the option {self.name}: commands have one of their own: choose another name")
        if self.is_shared and self.name not in OWN_OPTIONS:
            raise ValueError(f"the option {self.name}: not an option of the commands: cannot be shared")

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: Any) -> None:
        """Raise ``ConvertError`` where the option cannot have ``value``."""
        if type(value) is not self.kind:
            raise ConvertError(f"{self.flag} {short_repr(value)}: expected {_KINDS[self.kind]}")
        if self.choices and value not in self.choices:
            raise ConvertError(f"{self.flag} {short_repr(value)}: expected one of {', '.join(self.choices)}")
        if isinstance(value, int) and self.range is not None and not self.range[0] <= value <= self.range[1]:
            raise ConvertError(f"{self.flag} {value}: expected a number from {self.range[0]} to {self.range[1]}")


def resolve_options(table: Sequence[WriteOption], given: Mapping[str, Any] | None, format: str) -> dict[str, Any]:
    """Check the options given to the writer of ``format`` by its table, and complete them with defaults.

    An option that is given as None is not given.

    Raises:
        ConvertError: an option is unknown, is missing, or has a value that it cannot have.
    """
    if not isinstance(given, (Mapping, type(None))):
        raise ConvertError(f"options {short_repr(given)}: expected names and values of the format {format}")
    values = {name: value for name, value in (given or {}).items() if value is not None}
    known = {option.name: option for option in table}
    for name in values:
        if name not in known:
            possible = list_names(known, 9) or "none"
            raise ConvertError(f"{short_repr(name)}: not an option of the format {format}: possible: {possible}")
        known[name].check(values[name])
    for option in table:
        if option.required and option.name not in values:
            raise ConvertError(f"{option.flag}: the format {format} requires it: {option.help}")
    return {option.name: values.get(option.name, option.default) for option in table}


@dataclasses.dataclass(frozen=True)
class WriteRequest:
    """A checkpoint that is to be written, with everything that a writer may want to know about it.

    Attributes:
        checkpoint: the model, its layer norms of the kind that the format has.
        dtypes: canonical name -> the type to write it in, for every tensor.
        options: those of the writer's table, complete.
        tokens: the end of a text, the padding, and how texts are generated by default.
        tokenizer: the tokenizer that is saved with the weights; None where there is none.
        notes: what a user should know about the tokenizer, a line each.
    """

    checkpoint: Checkpoint
    dtypes: Mapping[str, DType]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokens: SpecialTokens = NO_TOKENS
    tokenizer: Tokenizer | None = None
    notes: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in the types that they are written in."""
        shapes = self.checkpoint.config.tensor_shapes()
        return sum(math.prod(shape) * self.dtypes[name].itemsize for name, shape in shapes.items())


def _nothing(request: WriteRequest) -> None:
    """Check nothing more than ``Writer.holds``."""


@dataclasses.dataclass(frozen=True)
class Writer:
    """How a format is written.

    Attributes:
        write: writes the weights and the sizes into an empty folder and returns the files with the weights. An
            ``OSError`` and whatever ``Read`` raises come through.
        size: an upper bound of the bytes that ``write`` and the tokenizer take.
        holds: what a model may have there, where that is not just what ``limits.GPT2`` says. Everything else is refused
            before the first byte.
        check: raises ``ConvertError`` where the format cannot hold the model for another reason. It runs after that.
        options: the table of the writer's options.
        layer_norm: the kind of layer norms that the format has, one of ``tf_model.config.LAYER_NORMS``.
        default_dtype: the type of all weights where the user asks for none; None keeps that of each tensor.
        save_tokenizer: saves a tokenizer's files under the names that the format's programs look for; None where the
            format has no place for a tokenizer.
        notes: what a user should know about the result, a line each.
        record: what the manifest records about the result in addition to the options.
    """

    write: Callable[[WriteRequest, Path, Read], list[Path]]
    size: Callable[[WriteRequest], int]
    holds: Holds = dataclasses.field(default_factory=dict)
    check: Callable[[WriteRequest], None] = _nothing
    options: tuple[WriteOption, ...] = ()
    layer_norm: str = STANDARD
    default_dtype: str | None = None
    save_tokenizer: Callable[[Tokenizer, Path], list[Path]] | None = None
    notes: Callable[[WriteRequest], Iterable[str]] = lambda request: ()
    record: Callable[[WriteRequest], Mapping[str, Any]] = lambda request: {}

    def __post_init__(self) -> None:
        if unknown := self.holds.keys() - GPT2.keys() - {"n_inner"}:
            raise ValueError(f"holds: {list_names(sorted(unknown))}: expected {list_names(['n_inner', *GPT2], 9)}")


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Attributes:
        name: as ``--from`` takes it, and the row of the registry.
        recognise: whether a path looks like one. Nothing large is read, and damage is no error yet.
        open: opens it; it raises ``CheckpointError`` where the files are not one whole model. ``ConfigError`` and
            ``OSError`` may come through: ``open_checkpoint`` translates them.
        without_iterations: the subject of the message that there are no iterations, such as "a SavedModel"; None where
            ``OpenOptions.iteration`` chooses one of several.
        writer: how it is written; None where it is only read.
    """

    name: str
    recognise: Callable[[Candidate], bool]
    open: Callable[[Candidate, OpenOptions], Checkpoint]
    without_iterations: str | None = None
    writer: Writer | None = None
