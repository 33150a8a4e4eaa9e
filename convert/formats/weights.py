"""The weights that a path stands for, before anybody knows their format: which file, which tensors, what is around.

A file says by its first bytes what it is, and its tensors say by their names which model's they are; names of files say
neither. What programs put around a state dict is taken off (``state_dict.py``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.formats import safetensors_file as safetensors
from convert.formats.rank_files import single_rank_file
from convert.formats.state_dict import find_state_dict, is_known, pattern_of
from convert.formats.tensor_map import LazyTensor, check_not_partitioned
from convert.torch_format.reader import TorchFile
from support.errors import CheckpointError
from support.messages import list_names, pluralize

if TYPE_CHECKING:
    from convert.formats.candidate import Candidate

INDEX = ".index.json"
PREFERRED = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""The first that is there is read, as transformers does, whatever is next to it."""
TENSORFLOW = ("tf_model.h5", f"tf_model.h5{INDEX}")
"""What is read where a folder has nothing else: mostly a copy."""
_SHARD = re.compile(r"(.+)-\d+-of-\d+\.(safetensors|bin|h5)")
"""One file of several, which an index names: it stands for all of them."""
_WEIGHTS = re.compile(r".+\.(pt|pth|ckpt|bin|safetensors|h5|hdf5|tar)|.+\.bin-\d+|.+\.pt-\d+")
_OTHERS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|adapter_model|rng_state\w*|random_states_\w+|tf_model)\.\w+"
    r"|zero_pp_rank_.*|.*optim_states\.pt|distrib_optim\.pt|layer_\d+-model_.*|mp_rank_\d+.*"
)
"""Files of a training that hold no model, copies for another program, and parts that other code finds."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
"""The number that files of ``torch.save`` before PyTorch 1.6 begin with, after the opcodes of a pickle."""
_HEAD = re.compile(r"(score|classifier|summary|head|\w+_head|qa_outputs|pooler|loss|cls|reward|critic|regression)\b")
"""What programs call the heads of other tasks."""
_SNIFFED = 100
"""Files of one folder, with names that tell nothing, of which the first bytes are looked at."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of one file, or of the files of one index, as nothing but names and shapes.

    Attributes:
        where: the file or the index.
        folder: the folder where ``config.json`` and the tokenizer lie.
        tensors: those that may be a model's, by their names in the file, joined with dots where dicts are nested.
        others: the names of the other tensors of the same dict, which no format has.
        left_out: what else the file holds, such as ``optimizer``.
        beside: what stands next to the state dict in a file of ``torch.save``: ``args``, ``model_args``, ``iteration``.
    """

    where: Path
    folder: Path
    tensors: Mapping[str, LazyTensor]
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    beside: Mapping[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class KnownTensors:
    """The tensors of one format among ``Weights``.

    Attributes:
        tensors: by the format's own names, without what stood in front of them.
        prefixes: what stood in front of each of these names.
        others: the names of the tensors that have no known name.
    """

    tensors: Mapping[str, LazyTensor]
    prefixes: Mapping[str, str]
    others: tuple[str, ...]

    def other_heads(self, where: Path, body: str) -> tuple[str, ...]:
        """Return the names of tensors that are next to the model and no part of it: heads of other tasks.

        Args:
            where: the file, for messages.
            body: a name of the model's body.

        Raises:
            CheckpointError: a tensor is within the body: it would change what the model computes.
        """
        prefix = self.prefixes.get(body, "")
        inside = [name.removeprefix(prefix) for name in self.others if name.startswith(prefix)]
        inside = [name for name in inside if not _HEAD.match(name)]
        if inside:
            raise CheckpointError(f"{where}: {pluralize(len(inside), 'unexpected tensor')}: {list_names(inside)}")
        return self.others


def known_tensors(weights: Weights, format: str) -> KnownTensors:
    """Take off what stands in front of the first known part of each name.

    Raises:
        CheckpointError: two tensors have the same name then: the file holds two models.
    """
    pattern = pattern_of(format)
    tensors: dict[str, LazyTensor] = {}
    prefixes: dict[str, str] = {}
    others = [*weights.others]
    for name, tensor in weights.tensors.items():
        match = pattern.match(name)
        if match is None:
            others.append(name)
            continue
        known = name[match.end() :]
        if known in tensors:
            both = f"{prefixes[known]}{known} and {name}"
            raise CheckpointError(f"{weights.where}: two models: {both}: save the state dict of one of them alone")
        tensors[known], prefixes[known] = tensor, match[1]
    return KnownTensors(tensors, prefixes, tuple(others))


def find_weights(candidate: Candidate) -> Weights | None:
    """Find and read the names of the weights that a path stands for; None where it holds no such file.

    Raises:
        CheckpointError: the file is damaged, or there are several and nobody can tell which one is meant.
        OSError: a folder cannot be read.
    """
    file = _find_file(candidate)
    if file is None:
        return None
    folder = file.parent
    while folder != candidate.path and candidate.path in folder.parents and not (folder / "config.json").is_file():
        folder = folder.parent
    if file.name.endswith(f".h5{INDEX}"):
        from convert.formats.h5_file import read_h5_index

        return _of_header(file, folder, read_h5_index(file))
    if file.name.endswith(INDEX):
        return _of_header(file, folder, safetensors.read_index(file, lambda shard: _header(candidate, shard)))
    return _read(candidate, file, folder)


def open_weights(candidate: Candidate, format: str) -> tuple[Weights, KnownTensors]:
    """Return the weights that a path stands for and those of them that have a format's names.

    Raises:
        CheckpointError: there is no file with weights, it is damaged, or it holds two models.
    """
    weights = candidate.weights
    if weights is None:
        raise candidate.weights_error or CheckpointError(f"{candidate.path}: no file with weights: expected one here")
    if any(".lora_A." in name for name in weights.tensors):
        raise CheckpointError(
            f"{weights.where}: a model with a LoRA adapter in it that is not merged: merge it with peft "
            "(merge_and_unload) and save that, or save the adapter alone and give it as --adapter"
        )
    check_not_partitioned(weights.where, weights.tensors)
    return weights, known_tensors(weights, format)


def _find_file(candidate: Candidate) -> Path | None:
    """Return the file with the weights, or the index of several; None where there is none."""
    path = candidate.path
    if candidate.is_file:
        if path.name.endswith(INDEX):
            return path
        if _SHARD.fullmatch(path.name):
            return _index_of(path)
        return path if _WEIGHTS.fullmatch(path.name) or _kind(candidate, path) else None
    if not candidate.is_dir:
        return None
    preferred, tensorflow = (
        next((path / name for name in names if (path / name).is_file()), None) for names in (PREFERRED, TENSORFLOW)
    )
    return preferred or single_rank_file(candidate) or _single_file(candidate) or tensorflow


def _single_file(candidate: Candidate) -> Path | None:
    """Return the only file in a folder that holds a model, whatever it is called.

    Raises:
        CheckpointError: several do.
    """
    files = [file for file in candidate.entries() if not _OTHERS.fullmatch(file.name) and file.is_file()]
    named = [file for file in files if _WEIGHTS.fullmatch(file.name)]
    found = [file for file in named or files[:_SNIFFED] if _kind(candidate, file)]
    if len(found) > 1:
        found = [file for file in found if _holds_model(candidate, file)] or found
    indexes = {_index_of(file) for file in found if _SHARD.fullmatch(file.name)}
    if len(indexes) == 1 and all(_SHARD.fullmatch(file.name) for file in found):
        return indexes.pop()
    if len(found) > 1:
        names = list_names((file.name for file in found), 5)
        raise CheckpointError(f"{candidate.path}: {len(found)} files with weights: {names}: give one as the path")
    # A damaged file is read, too, so that a message says what is wrong with it.
    return found[0] if found else named[0] if len(named) == 1 else None


def _index_of(shard: Path) -> Path:
    """Return the index that names ``shard`` and the files next to it.

    Raises:
        CheckpointError: it is missing.
    """
    index = shard.with_name(_SHARD.sub(rf"\1.\2{INDEX}", shard.name))
    if not index.is_file():
        raise CheckpointError(f"{index}: is missing, {shard.name} is one file of several: get all files of the model")
    return index


def _holds_model(candidate: Candidate, file: Path) -> bool:
    try:
        return bool(_read(candidate, file, file.parent).tensors)
    except CheckpointError:
        return False


def _kind(candidate: Candidate, file: Path) -> str | None:
    """Return ``torch``, ``safetensors`` or ``hdf5`` by the first bytes of a file; None for anything else."""
    head = candidate.head(file)
    if head.startswith(_HDF5) or (file.suffix in (".h5", ".hdf5") and file.is_file() and _is_h5(file)):
        return "hdf5"
    if (head.startswith(b"PK\3\4") and b"data.pkl" in head[:300]) or _LEGACY in head[:20]:
        return "torch"
    is_header = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= file.stat().st_size - 8
    return "safetensors" if is_header else None


def _is_h5(file: Path) -> bool:
    """Whether the file is HDF5 with something in front; the reader is imported for such files only."""
    from convert.formats.h5_file import is_h5

    return is_h5(file)


def _read(candidate: Candidate, file: Path, folder: Path) -> Weights:
    """Read the names in a file, whose first bytes say what it is."""
    kind = _kind(candidate, file) or {".safetensors": "safetensors", ".h5": "hdf5"}.get(file.suffix, "torch")
    if kind == "safetensors":
        return _of_header(file, folder, safetensors.read_header(file))
    if kind == "hdf5":
        from convert.formats.h5_file import read_h5

        return _of_header(file, folder, read_h5(file))
    return _of_torch(candidate.torch_file(file), folder)


def _header(candidate: Candidate, shard: Path) -> dict[str, LazyTensor]:
    """Return all tensors of one of several files."""
    if shard.suffix == ".safetensors":
        return safetensors.read_header(shard)
    return dict(candidate.torch_file(shard).tensors(candidate.torch_state(shard)))


def _of_header(file: Path, folder: Path, tensors: Mapping[str, LazyTensor]) -> Weights:
    known = {name: tensor for name, tensor in tensors.items() if is_known(name)}
    return Weights(file, folder, known, tuple(name for name in tensors if name not in known))


def _of_torch(file: TorchFile, folder: Path) -> Weights:
    found = find_state_dict(file.value if isinstance(file.value, dict) else {}, file.path)
    tensors: dict[str, LazyTensor] = dict(file.tensors(found.state))
    return Weights(file.path, folder, tensors, found.others, found.left_out, found.content)
