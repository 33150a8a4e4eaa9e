"""What the parts of a tensor that model-parallel ranks hold must have in common, or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convert.formats.megatron.sharding import REPLICATED, Split
from convert.tensors import Array, same_values
from support.errors import CheckpointError


def check_parts(name: str, kind: Split, parts: Sequence[tuple[Path, Array]]) -> None:
    """Checks that replicas are replicas, and that no rank's part of a split tensor is a copy of another's.

    A file copied over another rank's fits as well as the right one; what is constant, such as new biases, may repeat.
    Two that changed places would fit, too, where the format does not keep the name a file was saved under: those
    nothing tells apart.

    Raises:
        CheckpointError: they are not, or two are the same.
    """
    if kind is REPLICATED:
        for file, part in parts[1:]:
            if not same_values(parts[0][1], part):
                raise CheckpointError(
                    f"{file}: {name}: differs from {parts[0][0]}, but all ranks hold the same: one of the files is of "
                    "another model or iteration"
                )
        return
    first_seen: dict[bytes, tuple[Path, Array]] = {}
    for file, part in parts:
        other = first_seen.setdefault(part[:1].tobytes(), (file, part))
        if other[0] is not file and same_values(other[1], part) and (part != part.flat[0]).any():
            raise CheckpointError(
                f"{file}: {name}: the same as in {other[0]}, but each rank has a part of its own: a copy of that file"
            )
