"""A checkpoint whose tensors are each made of one or more tensors in files: what all formats have in common.

A format is a table, canonical name -> ``TensorRecipe``: which tensors of the files make it, and how.
``TensorMapCheckpoint`` reads by that table, one tensor at a time.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from convert.checkpoint import CheckpointInfo
from convert.tensors import FLOATS, Array, DType, assign, check_finite, empty, same_values, transpose, widest
from convert.torch_format.torch_file import TorchTensor
from support.errors import CheckpointError
from support.messages import list_names, pluralize, short_repr
from tf_model.config import MAX_SIZE, GPT2Config
from tokenization.special_tokens import SpecialTokens

_LAYER = re.compile(r"h\.(\d+)\.")


class LazyTensor(Protocol):
    """A tensor in a file, whose values are read when asked for."""

    @property
    def file(self) -> Path: ...

    @property
    def name(self) -> str:
        """As the file calls it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> DType: ...

    @property
    def lacks_checksum(self) -> bool:
        """Whether it has none, in a format whose files mostly have: damage would not be noticed."""

    def numpy(self) -> Array:
        """Return the values, mapped where the file allows it; ``CheckpointError`` where they are damaged."""


@dataclasses.dataclass(frozen=True)
class Zeros:
    """A bias that a file does not have: a ``LazyTensor`` of zeros, which takes no memory."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: DType
    lacks_checksum: bool = False

    def numpy(self) -> Array:
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)


class TensorRecipe(NamedTuple):
    """How a canonical tensor is made.

    Attributes:
        tensors: those of the files that it is made of.
        assemble: writes it into an array of its shape, cast to that array's type, given the values of ``tensors``.
    """

    tensors: Sequence[LazyTensor]
    assemble: Callable[[Sequence[Array], Array], None]


def copy_whole(values: Sequence[Array], out: Array) -> None:
    """Copy the one tensor as it is; dimensions of 1 in front of it are dropped."""
    assign(out, values[0].reshape(out.shape) if values[0].shape != out.shape else values[0])


def concat_rows(values: Sequence[Array], out: Array) -> None:
    """Copy the tensors, one below the other."""
    start = 0
    for value in values:
        assign(out[start : start + len(value)], value)
        start += len(value)


def concat_transposed(values: Sequence[Array], out: Array) -> None:
    """Copy the matrices ``[in, out]`` as ``[out, in]``, one below the other; dimensions of 1 in front are dropped."""
    start = 0
    for value in values:
        end = start + value.shape[-1]
        transpose(value.reshape(value.shape[-2:]), out[start:end])
        start = end


class TensorMapCheckpoint:
    """A ``Checkpoint`` read by a table; nothing but headers has been read so far.

    Args:
        config: the sizes.
        recipes: every canonical tensor of the config.
        info: see ``Checkpoint``; files, bytes and missing checksums are those of the tensors where ``info`` has none.
        tokens, tokenizer: see ``Checkpoint``.
        check: called once, before the first tensor is read: for checks that take reading.

    Raises:
        CheckpointError: a tensor's type is not one of ``FLOATS``.
    """

    def __init__(
        self,
        config: GPT2Config,
        recipes: Mapping[str, TensorRecipe],
        info: CheckpointInfo,
        *,
        tokens: SpecialTokens | None = None,
        tokenizer: Path | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.config, self.tokens, self.tokenizer = config, tokens, tokenizer
        self._recipes, self._check = recipes, check
        self._shapes = config.tensor_shapes()
        tensors = [tensor for recipe in recipes.values() for tensor in recipe.tensors]
        for tensor in tensors:
            if tensor.dtype not in FLOATS:
                found = f"expected {list_names(FLOATS, 4)}, found {_spell(tensor.dtype)}"
                raise CheckpointError(f"{tensor.file}: {list_names([tensor.name])}: {found}")
        self.dtypes: Mapping[str, DType] = {
            name: widest(tensor.dtype for tensor in recipes[name].tensors) for name in self._shapes
        }
        self.info = dataclasses.replace(
            info,
            files=info.files or tuple(dict.fromkeys(tensor.file for tensor in tensors)),
            nbytes=info.nbytes or sum(map(tensor_bytes, tensors)),
            without_checksums=tuple(sorted({tensor.file for tensor in tensors if tensor.lacks_checksum})),
        )

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """Read a tensor as ``Checkpoint.read``."""
        recipe, shape = self._recipes[name], self._shapes[name]
        if self._check is not None:
            check, self._check = self._check, None
            check()
        out = empty(shape, dtype, buffer)
        values = [tensor.numpy() for tensor in recipe.tensors]
        recipe.assemble(values, out)
        files = [tensor.file for tensor in recipe.tensors]
        where = Path(os.path.commonpath(files))
        check_finite(recipe.tensors[0].name, out, where, list(zip(files, values, strict=True)))
        return out


def _spell(dtype: DType) -> str:
    """Return the name of a type, or ``>f4`` where the order of its bytes is not this machine's."""
    return dtype.name if dtype.isnative else str(dtype)


def tensor_bytes(tensor: LazyTensor) -> int:
    """Bytes of the values of ``tensor``."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


class ExpectedTensors(NamedTuple):
    """The tensors that a format has, for ``check_tensors``."""

    shapes: Mapping[str, tuple[int, ...]]
    """Name -> shape."""
    ignored: Callable[[str], bool] = lambda name: False
    """Whether a name that is not expected is known to hold nothing that a model needs."""


def name_problems(
    tensors: Mapping[str, LazyTensor], expected: Collection[str], ignored: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """List which of the expected names are missing and which other names are there, in one text each.

    Args:
        tensors: those that are there.
        expected: the names of those that must be there.
        ignored: whether a name may be there that is not expected.
    """
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected and not ignored(name)]
    named = (("missing", missing), ("unexpected", unexpected))
    return [f"{pluralize(len(names), f'{what} tensor')}: {list_names(names)}" for what, names in named if names]


def layer_template(name: str) -> tuple[str, str]:
    """Return a canonical name with ``{}`` for the layer's number, as the tables of names have it, and that number.

    The number is a text; it is empty where the tensor belongs to no layer.
    """
    layer = _LAYER.match(name)
    return (f"h.{{}}.{name[layer.end() :]}", layer[1]) if layer else (name, "")


def check_tensors(where: Path, tensors: Mapping[str, LazyTensor], expected: ExpectedTensors) -> None:
    """Check that every tensor of a format is there, with its shape, and no other.

    Raises:
        CheckpointError: with all that are missing, too many, or of another shape.
    """
    if problems := name_problems(tensors, expected.shapes, expected.ignored):
        raise CheckpointError(f"{where}: {'; '.join(problems)}")
    for name, shape in expected.shapes.items():
        if (found := tensors[name].shape) != shape:
            file = tensors[name].file
            raise CheckpointError(f"{file}: {name}: expected the shape {list(shape)}, found {list(found)}")


def check_no_bias(tensor: LazyTensor) -> None:
    """Check that an output bias, which no GPT-2 has, is zero: then it may be left out.

    Raises:
        CheckpointError: it is not.
    """
    if tensor.dtype not in FLOATS or tensor.numpy().any():
        raise CheckpointError(f"{tensor.file}: {tensor.name} is not zero: a GPT-2 has no output bias: no GPT-2")


def check_not_partitioned(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Check that the weights are in a rank's file.

    Raises:
        CheckpointError: all of them are empty: ZeRO-3 has a part of each in every optimizer's file.
    """
    if tensors and all(tensor.shape == (0,) for tensor in tensors.values()):
        raise CheckpointError(
            f"{path}: its tensors have the shape [0], as ZeRO-3 saves them: run DeepSpeed's zero_to_fp32.py, which is "
            "in the folder above, and give what it writes"
        )


def matrix_shape(where: Path, tensors: Mapping[str, LazyTensor], name: str) -> tuple[int, int]:
    """Return the shape of a matrix that sizes are read from; dimensions of 1 in front of it are dropped.

    Raises:
        CheckpointError: it is not there, or no matrix.
    """
    if name not in tensors:
        raise CheckpointError(f"{where}: missing tensor: {name}: not a GPT-2 of this format")
    shape = tensors[name].shape
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(
            f"{tensors[name].file}: {name}: expected a matrix, found the shape {list(tensors[name].shape)}"
        )
    return shape[0], shape[1]


def count_layers(where: Path, names: Mapping[str, LazyTensor], before: str) -> int:
    """One more than the highest number that follows ``before`` in a name; layers in between may still be missing.

    Raises:
        CheckpointError: none does, or one is beyond all reason.
    """
    pattern = re.compile(re.escape(before) + r"(\d{1,4})(?=[./]|$)", re.ASCII)
    numbers = [int(match[1]) for name in names if (match := pattern.match(name))]
    if not numbers:
        raise CheckpointError(f"{where}: expected tensors named {before}0..., found {list_names(names)}")
    return 1 + max(numbers)


def is_linear(name: str) -> bool:
    """Whether a canonical tensor is the matrix ``[out, in]`` of a linear layer in a block."""
    return re.fullmatch(r"h\.\d+\.(attn|mlp)\.c_\w+\.weight", name) is not None


def has_linear_matrices(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether matrices by transformers' names are those of ``nn.Linear``, ``[out, in]``, and not of its ``Conv1D``.

    A square matrix cannot tell.
    """
    for name, tensor in tensors.items():
        shape = tensor.shape
        if name.startswith("h.") and len(shape) == 2 and name.endswith(("attn.c_attn.weight", "mlp.c_fc.weight")):
            if name.endswith("attn.c_attn.weight"):
                return shape[0] == 3 * shape[1]
            hidden = tensors["wte.weight"].shape[-1:] if "wte.weight" in tensors else ()
            if shape[0] != shape[1] and hidden in (shape[:1], shape[1:]):
                return hidden == shape[1:]
    return False


def is_tied_copy(embedding: LazyTensor, head: LazyTensor) -> bool:
    """Whether the output matrix is the embedding: in one storage, or a copy of it, which takes reading both."""
    if isinstance(embedding, TorchTensor) and isinstance(head, TorchTensor):
        ours, theirs = embedding.ref, head.ref
        if (ours.storage, ours.offset, ours.shape) == (theirs.storage, theirs.offset, theirs.shape):
            return True
    return embedding.shape == head.shape and same_values(embedding.numpy(), head.numpy())


def check_sizes(where: Path, values: Mapping[str, Any], sizes: Mapping[str, int], holder: str = "the tensors") -> None:
    """Check that a configuration has no other sizes than the tensors.

    Args:
        where: the file with the configuration.
        values: its content; a size that is missing or None is right.
        sizes: its key -> the size that the tensors have.
        holder: what a message calls the tensors.

    Raises:
        CheckpointError: a size is another one.
    """
    for key, size in sizes.items():
        if values.get(key) not in (None, size):
            raise CheckpointError(f"{where}: {key} is {short_repr(values[key])}, but {holder} have {size}")


def stored_heads(where: Path, values: Mapping[str, Any], key: str) -> int | None:
    """Return the number of heads that a configuration has under ``key``; None where it has none.

    Raises:
        CheckpointError: it is no number.
    """
    heads = values.get(key)
    if heads is not None and (type(heads) is not int or abs(heads) > MAX_SIZE):
        raise CheckpointError(f"{where}: {key} is {short_repr(heads)}: expected a number")
    return heads
