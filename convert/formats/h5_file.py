"""HDF5 files with tensors: ``tf_model.h5`` of transformers' TensorFlow GPT-2, and weights that Keras saves.

    transformer/tfgpt2lm_head_model/transformer/wte/weight:0                    or wte/embeddings:0
    transformer/tfgpt2lm_head_model/transformer/h_._0/attn/c_attn/bias:0        [1, 3h]
    transformer/wte/weight:0                                                    in a shard of transformers 4.21 or newer

Sources: ``modeling_tf_gpt2.py`` and ``modeling_tf_utils.py`` of transformers 2 to 4, ``hdf5_format.py`` of Keras.

h5py parses the file's structure, and nothing else: values are mapped, or unpacked, here, so that a file cannot make
HDF5 open another file, load a plugin, or fill memory with values that are not there.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convert.formats.h5_chunks import Chunk, ChunkedTensor, Filters, UnknownFilterError
from convert.formats.safetensors_file import files_of
from convert.formats.tensor_map import LazyTensor
from convert.tensors import Array, DType
from support.errors import CheckpointError
from support.messages import list_names

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_USER_BLOCK = 1 << 20
_MAX_OBJECTS, _MAX_DEPTH, _MAX_CHUNKS = 200_000, 32, 1_000_000
_MAX_RATIO = 16
"""Bytes of values for each byte of the file: compressed weights take half of their size or more."""
_SKIPPED = ("optimizer_weights",)
"""Groups of a model that ``model.save`` wrote that hold what training needs."""
_TOP_LEVEL = "top_level_model_weights"
_GPT2_PART = re.compile(r"(wte|wpe|ln_f)|h_\._(\d+)", re.ASCII)
_KINDS = {"embeddings": "weight", "gamma": "weight", "beta": "bias"}


@dataclasses.dataclass(frozen=True)
class MappedTensor:
    """A tensor whose values lie in the file in one piece: a ``LazyTensor``. The format has no checksums."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: DType
    offset: int
    lacks_checksum: bool = False

    @property
    def extents(self) -> Iterator[tuple[int, int]]:
        """Where the values begin and end in the file."""
        yield self.offset, self.offset + math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> Array:
        if self.dtype.hasobject:
            raise CheckpointError(f"{self.file}: {list_names([self.name])}: holds no numbers")
        try:
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape).view(np.ndarray)
        except (OSError, ValueError) as error:  # it has become shorter
            raise CheckpointError(f"{self.file}: cannot be read: {error}") from error


H5Tensor = MappedTensor | ChunkedTensor


def is_h5(file: Path) -> bool:
    """Whether ``file`` is HDF5 by its signature, which may follow a user block.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        places = [0, *(1 << power for power in range(9, _MAX_USER_BLOCK.bit_length()))]
        size = opened.seek(0, 2)
        for place in places:
            if place + len(SIGNATURE) > size:
                return False
            opened.seek(place)
            if opened.read(len(SIGNATURE)) == SIGNATURE:
                return True
    return False


def read_h5(file: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a file, those of a GPT-2 by the names and with the shapes of PyTorch's state dict.

    ``.../h_._0/attn/c_attn/bias:0`` ``[1, n]`` becomes ``transformer.h.0.attn.c_attn.bias`` ``[n]``. Other tensors keep
    what Keras calls them, without the name of the model: ``multiple_choice_head.summary.kernel``.

    Raises:
        CheckpointError: the file is damaged, refers to other files, or has less values than it says.
    """
    tensors: dict[str, LazyTensor] = {}
    found = read_datasets(file)
    # A variable that Keras saves twice, with the model and its layer or with two layers, is taken once.
    for path in sorted(found, key=lambda path: path.startswith(_TOP_LEVEL)):
        name = state_dict_name(path)
        if name in tensors:
            if path.startswith(_TOP_LEVEL) or _variable(path) == _variable(tensors[name].name):
                continue
            raise CheckpointError(
                f"{file}: two tensors for {list_names([name])}: {list_names([tensors[name].name, path])}: several "
                "models in one file, save one of them alone"
            )
        shape = found[path].shape
        is_row = name.endswith(".bias") and len(shape) == 2 and shape[0] == 1
        tensors[name] = dataclasses.replace(found[path], shape=shape[1:]) if is_row else found[path]
    return tensors


def _variable(path: str) -> str:
    """Return the name of a variable, given the path of its dataset: what follows the group of the layer."""
    return path.removeprefix("model_weights/").partition("/")[2]


def read_h5_index(index: Path) -> dict[str, LazyTensor]:
    """Return the tensors of the files that ``tf_model.h5.index.json`` names, as ``read_h5`` does.

    Raises:
        CheckpointError: the index or a file cannot be read, or they contradict each other.
    """
    tensors: dict[str, LazyTensor] = {}
    for file, names in files_of(index).items():
        found = read_h5(file)
        wanted = [state_dict_name(name) for name in names]
        if missing := [name for name in wanted if name not in found]:
            raise CheckpointError(f"{file}: {list_names(missing)}: not in this file, though {index.name} says so")
        tensors.update({name: found[name] for name in wanted})
    return tensors


def state_dict_name(path: str) -> str:
    """Return PyTorch's name of a GPT-2's weight, given the path of its dataset; another one's name without its model.

    The rules are those of ``convert_tf_weight_name_to_pt_weight_name`` in ``modeling_tf_pytorch_utils.py``.
    """
    parts = path.removesuffix(":0").split("/")
    for index, part in enumerate(parts[:-1]):
        if match := _GPT2_PART.fullmatch(part):
            *inner, kind = parts[index + 1 :]
            first = match[1] or f"h.{match[2]}"
            return ".".join(("transformer", first, *inner, _KINDS.get(kind, kind)))
    if len(parts) > 1 and parts[0] == _TOP_LEVEL:
        parts = parts[1:]
    repeated = max(index for index, part in enumerate(parts) if part == parts[0])  # the group, then the weight's name
    return ".".join(parts[repeated:])


def read_datasets(file: Path) -> dict[str, H5Tensor]:
    """Return every dataset of a file by its path, but for those of the optimizer. No value is read.

    Raises:
        CheckpointError: as ``read_h5``.
    """
    with _opened(file) as (root, h5py):
        size = file.stat().st_size
        tensors: dict[str, H5Tensor] = {}
        for path, dataset in _walk(file, root, h5py):
            if (tensor := _tensor(file, path, dataset, h5py)) is not None:
                tensors[path.removeprefix("model_weights/")] = tensor
    _check_extents(file, size, tensors.values())
    return tensors


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the root group of a file and the module h5py; every error of HDF5's becomes one line."""
    import h5py  # takes a tenth of a second

    try:
        with h5py.File(file, "r", locking=False) as opened:
            yield opened.id, h5py
    except CheckpointError:
        raise
    except Exception as error:  # h5py has RuntimeError, ValueError, KeyError and others for one and the same damage
        why = " ".join(str(error).strip("'\"").split())[:150]
        raise CheckpointError(f"{file}: cannot be read as HDF5: {why}: damaged or cut off, get it again") from error


def _walk(file: Path, root: Any, h5py: Any) -> Iterator[tuple[str, Any]]:
    """Yield every dataset with its path; hard links only are followed, and none to where the walk has been."""
    seen = {h5py.h5o.get_info(root).addr}
    groups = [("", root)]
    while groups:
        prefix, group = groups.pop()
        names: list[bytes] = []
        group.links.iterate(lambda name, names=names: names.append(name) or (len(names) > _MAX_OBJECTS or None))
        if len(names) + len(seen) > _MAX_OBJECTS or prefix.count("/") > _MAX_DEPTH:
            raise CheckpointError(f"{file}: more than {_MAX_OBJECTS} objects, or groups too deep: no file of weights")
        for raw in sorted(names):
            path = prefix + raw.decode("utf-8", "backslashreplace")
            if path in _SKIPPED:
                continue
            if b"/" in raw or raw == b"." or group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
                raise CheckpointError(f"{file}: {list_names([path])}: a link to elsewhere: no file of weights has one")
            child = h5py.h5o.open(group, raw)
            if (address := h5py.h5o.get_info(child).addr) in seen:
                raise CheckpointError(f"{file}: {list_names([path])}: a second link to one object: damaged")
            seen.add(address)
            if isinstance(child, h5py.h5g.GroupID):
                groups.append((f"{path}/", child))
            elif isinstance(child, h5py.h5d.DatasetID):
                yield path, child


def _tensor(file: Path, path: str, dataset: Any, h5py: Any) -> H5Tensor | None:
    """Describe a dataset; None where it holds nothing at all.

    The layout is asked for before anything else: the size of a virtual dataset may be that of other files.
    """
    where = f"{file}: {list_names([path])}"
    properties = dataset.get_create_plist()
    layout = properties.get_layout()
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or properties.get_external_count():
        raise CheckpointError(f"{where}: its values are not in the file in a way that weights are: save it again")
    space = dataset.get_space()
    if space.get_simple_extent_type() == h5py.h5s.NULL:
        return None
    shape = tuple(int(size) for size in space.get_simple_extent_dims())
    dtype = _dtype(dataset.get_type(), h5py)
    if 0 in shape or dtype.hasobject:  # such as texts: nothing that a model needs
        return MappedTensor(file, path, shape if 0 in shape else (), np.dtype(object), 0)
    if layout == h5py.h5d.CONTIGUOUS:
        if (offset := dataset.get_offset()) is None:
            raise CheckpointError(f"{where}: {list(shape)} has no values in the file: damaged, save it again")
        return MappedTensor(file, path, shape, dtype, int(offset))
    try:
        filters = Filters.of(properties, dtype.itemsize)
    except UnknownFilterError as error:
        raise CheckpointError(f"{where}: packed by the filter {error}: repack it with h5repack -f NONE") from error
    chunks: list[Chunk] = []

    def add(info: Any) -> bool | None:
        chunks.append(Chunk(tuple(info.chunk_offset), int(info.byte_offset), int(info.size), int(info.filter_mask)))
        return True if len(chunks) > _MAX_CHUNKS else None

    dataset.chunk_iter(add)
    grid = tuple(int(size) for size in properties.get_chunk())
    tensor = ChunkedTensor(file, path, shape, dtype, shape, grid, tuple(chunks), filters)
    if len(chunks) > _MAX_CHUNKS or not tensor.is_complete():
        raise CheckpointError(f"{where}: {list(shape)} has {len(chunks)} pieces of {list(grid)} in the file: damaged")
    return tensor


def _dtype(kind: Any, h5py: Any) -> DType:
    """Return NumPy's type of a dataset's; ``object`` where it holds no numbers, or numbers that NumPy lacks."""
    if isinstance(kind, (h5py.h5t.TypeFloatID, h5py.h5t.TypeIntegerID)):
        try:
            found: DType = np.dtype(kind.dtype)
        except (TypeError, ValueError):
            return np.dtype(object)
        if kind.equal(h5py.h5t.py_create(found)):
            return found
    return np.dtype(object)


def _check_extents(file: Path, size: int, tensors: Iterable[H5Tensor]) -> None:
    """Check that the values of all tensors are in the file, each in a place of its own, and not blown up."""
    tensors = [tensor for tensor in tensors if not tensor.dtype.hasobject]
    total = sum(tensor.unpacked_bytes for tensor in tensors if isinstance(tensor, ChunkedTensor))
    if total > _MAX_RATIO * size + (1 << 20):
        raise CheckpointError(f"{file}: {size} bytes that unpack to {total}: no file of weights")
    end = 0
    for start, stop, name in sorted((*extent, tensor.name) for tensor in tensors for extent in tensor.extents):
        if start < end:
            raise CheckpointError(f"{file}: {list_names([name])}: lies in the same bytes as another: damaged")
        if stop > size:
            raise CheckpointError(
                f"{file}: {list_names([name])}: ends at byte {stop}, but the file has {size}: cut off, get it again"
            )
        end = stop
