"""In which types a model's tensors are stored and computed with, for each ``--dtype``. Needs no TensorFlow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from tf_model.config import GPT2Config


class Precision(NamedTuple):
    """What the parts of a model are stored as.

    Attributes:
        matrices: what is multiplied with, and the token embedding.
        others: biases and the position embedding; layer norms are float32 always.
        compute: the products, and the cache of keys and values.
        packed: whether int8 kernels keep a copy of their matrix in the order that is fastest to read. Without
            it a model takes half the memory; 8 rows take twice as long.
        levels: the largest int8 of a weight.
        transposed: whether int8 matrices are stored as ``[in, out]``, and multiplied with by a convolution,
            which needs no VNNI instructions.
    """

    matrices: str
    others: str
    compute: str
    packed: bool = True
    levels: int = 127
    transposed: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision("float32", "float32", "float32"),
    "float16": Precision("float16", "float16", "float16"),
    "bfloat16": Precision("bfloat16", "bfloat16", "bfloat16"),
    "int8": Precision("int8", "float32", "float32"),
    "int8-low-memory": Precision("int8", "float32", "float32", packed=False),
    "int8-avx2": Precision("int8", "float32", "float32", levels=63, transposed=True),
}
DTYPES = tuple(PRECISIONS)
"""What an exported model can be."""

BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
"""Of one value."""

INT8_MATMUL_OP = "_QuantizedMatMul"
"""The op of TensorFlow that int8 matrices need; only builds for x86-64 have it."""

INT8_CONV_OP = "_FusedQuantizedConv2D"
"""The op of TensorFlow for matrices that are stored transposed; the same builds have it."""

SCALE = "_scale"
"""Behind the name of an int8 matrix: float32 ``[out]``, what its rows are multiplied with."""

OFFSET = "_offset"
"""Behind the name of an int8 matrix: float32 ``[out]``, -128 times the sums of its rows; see ``quantization``."""

WEIGHTS, STACKS = "weights", "stacks"
"""What a SavedModel calls its variables: those with one tensor, and those with one of each block."""

_BLOCK = re.compile(r"h\.\d+\.")
_LAYER_NORM = re.compile(r"\bln_\w+\.(weight|bias)$")
_MATRIX = re.compile(r"(wte|lm_head)\.weight|h\.\d+\.\w+\.c_\w+\.weight")


class Stored(NamedTuple):
    """A tensor of a SavedModel."""

    shape: tuple[int, ...]
    dtype: str


def stored_tensors(config: GPT2Config, dtype: str) -> dict[str, Stored]:
    """Return a SavedModel's tensors: the canonical ones in order, each int8 matrix before scale and offset."""
    precision = PRECISIONS[dtype]
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        if _LAYER_NORM.search(name):
            tensors[name] = Stored(shape, "float32")
        elif not _MATRIX.fullmatch(name):
            tensors[name] = Stored(shape, precision.others)
        else:
            tensors[name] = Stored(shape[::-1] if is_transposed(name, dtype) else shape, precision.matrices)
            if precision.matrices == "int8":
                tensors.update({name + suffix: Stored(shape[:1], "float32") for suffix in (SCALE, OFFSET)})
    return tensors


def is_transposed(name: str, dtype: str) -> bool:
    """Whether the tensor with the canonical ``name`` is stored as ``[in, out]``."""
    return PRECISIONS[dtype].transposed and _MATRIX.fullmatch(name) is not None


def stack_name(name: str) -> str | None:
    """Return the canonical name of a block's tensor without the block's number; None of another tensor."""
    return _BLOCK.sub("h.", name) if _BLOCK.match(name) else None


def stored_bytes(config: GPT2Config, dtype: str) -> int:
    """Bytes of all tensors of a SavedModel."""
    return sum(math.prod(shape) * BYTES[kind] for shape, kind in stored_tensors(config, dtype).values())


def packed_bytes(config: GPT2Config, dtype: str) -> int:
    """Bytes of the copy of the int8 matrices that the kernels of one signature keep from its first call on."""
    precision = PRECISIONS[dtype]
    if precision.matrices != "int8" or not precision.packed:
        return 0
    return sum(math.prod(shape) for shape, kind in stored_tensors(config, dtype).values() if kind == "int8")
