"""Checkpoints of CPM and of the Megatron-LM that it was trained with, in p model-parallel shards.

Sources: ``utils.py``, ``change_mp.py``, ``mpu/`` of CPM-1-Generate; ``utils.py`` of CPM-1-Finetune, CPM-1-Distill.

    <root>/latest_checkpointed_iteration.txt             "80000" or "release"
    <root>/80000/mp_rank_00_model_states.pt              DeepSpeed, and CPM's releases
    <root>/iter_0080000/mp_rank_00/model_optim_rng.pt    plain Megatron

A file is a pickled dict with the rank's tensors under ``module`` or ``model`` and with what training needs to go on,
which is ignored. It holds no sizes: they are read off the shapes, except the number of heads, which shapes do not tell.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from convert.checkpoint import FLOATS, Array, Checkpoint, DType, check_finite, same_values, widest
from convert.formats.heads import HEADS, possible_heads
from convert.pickle_values import shown
from convert.sharding import COLUMN, QKV, REPLICATED, ROW, ShardingError, Split, merge, shard_shape
from convert.torch_file import CheckpointError, TensorRef, load, saved_name
from tf_model.config import ConfigError, GPT2Config

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
TENSORS: dict[str, tuple[str, Split]] = {
    "wte.weight": ("word_embeddings.weight", COLUMN),
    "wpe.weight": ("position_embeddings.weight", REPLICATED),
    "h.{}.ln_1.weight": ("transformer.layers.{}.input_layernorm.weight", REPLICATED),
    "h.{}.ln_1.bias": ("transformer.layers.{}.input_layernorm.bias", REPLICATED),
    "h.{}.attn.c_attn.weight": ("transformer.layers.{}.attention.query_key_value.weight", QKV),
    "h.{}.attn.c_attn.bias": ("transformer.layers.{}.attention.query_key_value.bias", QKV),
    "h.{}.attn.c_proj.weight": ("transformer.layers.{}.attention.dense.weight", ROW),
    "h.{}.attn.c_proj.bias": ("transformer.layers.{}.attention.dense.bias", REPLICATED),
    "h.{}.ln_2.weight": ("transformer.layers.{}.post_attention_layernorm.weight", REPLICATED),
    "h.{}.ln_2.bias": ("transformer.layers.{}.post_attention_layernorm.bias", REPLICATED),
    "h.{}.mlp.c_fc.weight": ("transformer.layers.{}.mlp.dense_h_to_4h.weight", COLUMN),
    "h.{}.mlp.c_fc.bias": ("transformer.layers.{}.mlp.dense_h_to_4h.bias", COLUMN),
    "h.{}.mlp.c_proj.weight": ("transformer.layers.{}.mlp.dense_4h_to_h.weight", ROW),
    "h.{}.mlp.c_proj.bias": ("transformer.layers.{}.mlp.dense_4h_to_h.bias", REPLICATED),
    "ln_f.weight": ("transformer.final_layernorm.weight", REPLICATED),
    "ln_f.bias": ("transformer.final_layernorm.bias", REPLICATED),
}
"""Canonical name -> (Megatron's name, split); ``{}`` is the layer."""

_DEEPSPEED_FILE = re.compile(r"mp_rank_([0-9]+)_model_states\.pt")
_MEGATRON_FOLDER, _MEGATRON_FILE = re.compile(r"mp_rank_([0-9]+)"), "model_optim_rng.pt"
_ITERATION_FOLDER = re.compile(r"(?:iter_)?\d+|release")
_LAYER = re.compile(r"transformer\.layers\.(0|[1-9]\d{0,3})\.")


def source_name(name: str) -> tuple[str, Split]:
    """Megatron's name and the split of the canonical tensor ``name``."""
    layer = re.match(r"h\.(\d+)\.", name)
    template, kind = TENSORS[f"h.{{}}.{name[layer.end() :]}" if layer else name]
    return template.format(layer[1] if layer else ""), kind


def _some(values: Iterable[object], limit: int = 3) -> str:
    """The first of ``values`` and how many more there are, on one line whatever a file called them."""
    texts = [text if text.isprintable() else ascii(text) for text in map(str, values)]
    texts = [text if len(text) <= 100 else f"{text[:97]}..." for text in texts]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s'[: count != 1]}"


@dataclasses.dataclass(frozen=True)
class _RankFile:
    """The file of one rank. ``pattern`` makes another rank's file name; it is empty when this one's says no rank."""

    rank: int
    path: Path
    pattern: str


def _rank_file(path: Path) -> _RankFile | None:
    """The rank that the name of ``path`` says: of a shard, or of the folder that plain Megatron puts a shard in."""
    if (match := _DEEPSPEED_FILE.fullmatch(path.name)) and path.is_file():
        return _RankFile(int(match[1]), path, "mp_rank_{:02d}_model_states.pt")
    if (match := _MEGATRON_FOLDER.fullmatch(path.name)) and (path / _MEGATRON_FILE).is_file():
        return _RankFile(int(match[1]), path / _MEGATRON_FILE, f"mp_rank_{{:02d}}/{_MEGATRON_FILE}")
    return None


def _rank_files(folder: Path) -> list[_RankFile]:
    """The shards in ``folder``, by rank; no other file counts.

    Raises:
        CheckpointError: two files of one rank, or a rank below the highest has none.
    """
    by_rank: dict[int, _RankFile] = {}
    for path in sorted(folder.iterdir()):
        if (file := _rank_file(path)) is None:
            continue
        if (other := by_rank.setdefault(file.rank, file)) is not file:
            names = " and ".join(sorted(str(f.path.relative_to(folder)) for f in (file, other)))
            raise CheckpointError(f"{folder}: two files of rank {file.rank}: {names}: remove one")
    files = [by_rank[rank] for rank in sorted(by_rank)]
    for expected, file in enumerate(files):
        if file.rank != expected:
            missing = file.pattern.format(expected)
            raise CheckpointError(f"{folder}: {missing} is missing: the ranks found are {_some(sorted(by_rank), 9)}")
    return files


def _available(root: Path) -> str:
    """The end of a message about an iteration that was not found: which ones there are."""
    if any(map(_rank_file, root.iterdir())):
        return "it is the folder of an iteration itself"
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and _ITERATION_FOLDER.fullmatch(path.name)]
    names = [path.name for path in folders if any(map(_rank_file, path.iterdir()))]
    return f"it has the iterations {_some(names, 9)}" if names else "it has no iteration folder with mp_rank_* files"


def _parse_iteration(text: str) -> int | str | None:
    """A number above 0 or ``release``; None for anything else."""
    if text == RELEASE:
        return text
    number = int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0
    return number or None


def _tracked_iteration(root: Path) -> int | str:
    """The iteration that the tracker file of ``root`` names.

    Upstream goes on with random weights when the file is missing; here that is an error.
    """
    tracker = root / TRACKER
    advice = f"give one as iteration (--iteration), or its folder as the path; {_available(root)}"
    if not tracker.exists():
        raise CheckpointError(f"{root}: neither mp_rank_* files nor {TRACKER} here: {advice}")
    try:
        with tracker.open("rb") as file:
            text = file.read(200).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{tracker}: not a text file: {advice}") from error
    except OSError as error:
        raise CheckpointError(f"{tracker}: cannot be read: {error.strerror}: {advice}") from error
    iteration = _parse_iteration(text)
    if iteration is None:
        found = ascii(text if len(text) <= 40 else f"{text[:37]}...") if text else "an empty file"
        raise CheckpointError(f"{tracker}: expected a number above 0 or {RELEASE}, found {found}: {advice}")
    return iteration


def _iteration_files(root: Path, iteration: int | str) -> list[_RankFile]:
    """The shards of ``iteration`` below ``root``, in whichever folder they are."""
    names = [RELEASE] if iteration == RELEASE else [f"{iteration}", f"iter_{iteration:07d}"]
    found = [(name, files) for name in names if (root / name).is_dir() and (files := _rank_files(root / name))]
    if len(found) != 1:
        where = f"{' and '.join(names)}: give one as the path" if found else f"{' or '.join(names)}: {_available(root)}"
        count = "are there twice, in" if found else "are not there, in"
        raise CheckpointError(f"{root}: mp_rank_* files of iteration {iteration} {count} {where}")
    return found[0][1]


def _find(path: Path, iteration: str | None) -> list[_RankFile]:
    """The shards that ``path`` stands for: a root, the folder of an iteration, or one file."""
    wanted = None if iteration is None else _parse_iteration(iteration.strip())
    if iteration is not None and wanted is None:
        raise CheckpointError(f"iteration {iteration!a}: expected a number above 0 or {RELEASE}")
    if path.is_file():
        if wanted is not None:
            raise CheckpointError(f"{path}: a file has no iterations to choose from: leave out iteration {wanted}")
        named = _rank_file(path) or (_rank_file(path.parent) if path.name == _MEGATRON_FILE else None)
        return [named or _RankFile(0, path, "")]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder")
    if wanted is None:
        return _rank_files(path) or _iteration_files(path, _tracked_iteration(path))
    return _iteration_files(path, wanted)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One rank's file: its tensors under Megatron's names, and two numbers that it may hold."""

    file: Path
    tensors: Mapping[str, TensorRef]
    iteration: int | None
    world_size: int | None


def _load_shard(file: Path) -> _Shard:
    top = load(file)
    if not isinstance(top, dict):
        raise CheckpointError(f"{file}: expected a dict with the weights under 'module' or 'model', found {shown(top)}")
    state = next((top[key] for key in ("module", "model") if isinstance(top.get(key), dict)), None)
    if state is None:
        raise CheckpointError(f"{file}: expected a dict under 'module' or 'model', found the keys {_some(top, 9)}")
    prefixes = (re.match(r"(?:module\.)*", name) if isinstance(name, str) else None for name in state)
    if shared := min((prefix.end() if prefix else 0 for prefix in prefixes), default=0):
        state = {name[shared:]: value for name, value in state.items()}
    for name, value in state.items():
        if not isinstance(value, TensorRef):
            raise CheckpointError(f"{file}: {_some([name])}: expected a tensor, found {shown(value)}")
        if value.nbytes > value.storage.nbytes:  # a view that repeats values: small in the file, huge in memory
            raise CheckpointError(f"{file}: {_some([name])}: {value.nbytes} bytes, of which the file has fewer")
        if value.dtype not in FLOATS:
            raise CheckpointError(f"{file}: {_some([name])}: expected {_some(FLOATS, 4)}, found {value.dtype.name}")
    numbers = {key: top[key] for key in ("iteration", "mp_world_size") if type(top.get(key)) is int}
    return _Shard(file, state, numbers.get("iteration"), numbers.get("mp_world_size"))


def _check_saved_ranks(files: list[_RankFile]) -> None:
    """Checks that no file has taken another rank's name: shards in another order fit together just as well.

    Raises:
        CheckpointError: one was saved under another rank than its name says now.
    """
    for file in files:
        saved = _DEEPSPEED_FILE.fullmatch(f"{saved_name(file.path)}.pt")
        if saved and int(saved[1]) != file.rank:
            raise CheckpointError(f"{file.path}: is the shard of rank {int(saved[1])}, renamed: give it its name back")


def _check_names(shards: list[_Shard]) -> int:
    """The number of layers. Every shard has the tensors of each of them, and no others.

    Raises:
        CheckpointError: with all that are missing and all that are too many, in all files.
    """
    layers = (_LAYER.match(str(name)) for shard in shards for name in shard.tensors)
    n_layer = 1 + max((int(match[1]) for match in layers if match), default=0)
    templates = [template for template, _ in TENSORS.values()]
    expected = {name.format(i): None for name in templates for i in range(n_layer if "{}" in name else 1)}
    problems = []
    for shard in shards:
        for what, names in (
            ("missing", [name for name in expected if name not in shard.tensors]),
            ("unexpected", [name for name in shard.tensors if name not in expected]),
        ):
            if names:
                problems.append(f"{shard.file}: {_plural(len(names), f'{what} tensor')}: {_some(names)}")
    if problems:
        raise CheckpointError("; ".join(problems))
    return n_layer


def _shape(shard: _Shard, canonical: str) -> tuple[int, ...]:
    name, _ = source_name(canonical)
    shape = shard.tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"{shard.file}: {name}: expected a matrix, found the shape {list(shape)}")
    return shape


def _check_ranks(files: list[_RankFile], first: _Shard, alone: bool) -> None:
    """Checks that there are as many files as the fused projection and the one behind it say that there are ranks.

    Where the two disagree the number of ranks is not what is wrong: ``_sizes`` names the shape that is.
    """
    hidden = _shape(first, "wpe.weight")[1]
    by_qkv, rest = divmod(3 * hidden, _shape(first, "h.0.attn.c_attn.weight")[0])
    ranks = hidden / _shape(first, "h.0.attn.c_proj.weight")[1]
    if rest or by_qkv != ranks or ranks == len(files):
        return
    this = f"{first.file}: from a model split over {_plural(by_qkv, 'rank')}"
    found = f"{_plural(len(files), 'file')} found"
    if alone:
        who = f"rank {files[0].rank}" if files[0].pattern else "one"
        raise CheckpointError(f"{first.file}: {who} of a model split over {by_qkv} ranks: give the folder of them all")
    if len(files) > ranks:
        raise CheckpointError(f"{this}, but {found}: those beside it are not of this model, or it was split wrongly")
    missing = files[-1].pattern.format(len(files))
    raise CheckpointError(f"{this}, but {found}: {missing} is missing")


def _sizes(shards: list[_Shard], n_layer: int) -> GPT2Config:
    """The sizes, from the shapes of rank 0 and with one head; every shape of every rank fits them.

    Raises:
        CheckpointError: one does not.
    """
    p, first = len(shards), shards[0]
    n_positions, hidden = _shape(first, "wpe.weight")
    vocab_size, n_inner = (p * _shape(first, name)[0] for name in ("wte.weight", "h.0.mlp.c_fc.weight"))
    config = GPT2Config(vocab_size, n_positions, hidden, n_layer, n_head=1, n_inner=n_inner)
    for canonical, whole in config.tensor_shapes().items():
        name, kind = source_name(canonical)
        expected = shard_shape(whole, kind, p)
        for shard in shards:
            if (found := shard.tensors[name].shape) != expected:
                raise CheckpointError(
                    f"{shard.file}: {name}: expected the shape {list(expected)} on each of {_plural(p, 'rank')}, "
                    f"found {list(found)}"
                )
    return config


def _check_numbers(shards: list[_Shard]) -> int | None:
    """The iteration that the files name, if any. All files agree on it and on the number of ranks.

    Raises:
        CheckpointError: they do not.
    """
    for shard in shards:
        if shard.world_size not in (None, len(shards)):
            found = _plural(len(shards), "file")
            raise CheckpointError(f"{shard.file}: mp_world_size is {shard.world_size}, but {found} found")
    named = [shard for shard in shards if shard.iteration is not None]
    for shard in named:
        if shard.iteration != named[0].iteration:
            other = f"{named[0].file} is of {named[0].iteration}"
            raise CheckpointError(f"{shard.file}: of iteration {shard.iteration}, but {other}: mixed-up files")
    return named[0].iteration if named else None


def _heads(file: Path, hidden: int, p: int, given: int | None, any_heads: bool) -> int:
    """The number of heads: as given, else that of the published model of this hidden size, else p for ``any_heads``.

    Raises:
        CheckpointError: heads do not divide the hidden size or cannot be shared out to the ranks, or nobody knows them.
    """
    heads = HEADS.get(hidden) if given is None else given
    possible = possible_heads(hidden, p)
    if heads in possible:
        return heads
    if given is None and any_heads:
        return p
    likely = [n for n in possible if 32 <= hidden // n <= 128]
    hint = f"likely {_some(likely, 20)} (32 to 128 wide), " if likely else ""
    problem = "the number of heads is not in the file" if given is None else f"{given} heads do not fit"
    problem += f" (hidden size {hidden}, {_plural(p, 'rank')})"
    raise CheckpointError(f"{file}: {problem}: give n_head (--heads), {hint}possible {_some(possible, 40)}")


class MegatronCheckpoint:
    """A ``Checkpoint`` of p shards, opened by ``open_megatron``; nothing but headers has been read so far."""

    format = "megatron"

    def __init__(self, config: GPT2Config, shards: list[_Shard], iteration: int | None) -> None:
        self.config = config
        self.details: dict[str, str | int] = {"tensor_parallel": len(shards)}
        if iteration is not None:
            self.details["iteration"] = iteration
        self.files = [shard.file for shard in shards]
        self._refs = {
            name: [shard.tensors[source_name(name)[0]] for shard in shards] for name in config.tensor_shapes()
        }
        self.dtypes: Mapping[str, DType] = {
            name: widest(ref.dtype for ref in refs) for name, refs in self._refs.items()
        }
        self.nbytes = sum(ref.nbytes for refs in self._refs.values() for ref in refs)
        self._checked: set[tuple[Path, str]] = set()

    def read(self, name: str, dtype: DType) -> Array:
        """As ``Checkpoint.read``; also checks the CRC-32 of the storages and that replicated tensors are replicas.

        Beside the result only blocks of a few MB are allocated: the shards are mapped files.
        """
        source, kind = source_name(name)
        refs = self._refs[name]
        for ref in refs:
            storage = ref.storage
            if (key := (storage.file, storage.key)) not in self._checked:
                storage.check()
                self._checked.add(key)
        shards = [ref.numpy() for ref in refs]
        whole = np.empty(self.config.tensor_shapes()[name], dtype)
        merge(shards, kind, whole)
        sources = list(zip(self.files, shards, strict=True))
        if kind is REPLICATED:
            for file, shard in sources[1:]:
                if not same_values(shards[0], shard):
                    raise CheckpointError(
                        f"{file}: {source}: differs from {self.files[0]}, but all ranks hold the same: one of the "
                        f"files is of another model or iteration"
                    )
            del sources[1:]
        check_finite(source, whole, self.files[0].parent, sources)
        return whole


def open_megatron(
    path: Path, *, n_head: int | None = None, iteration: str | None = None, any_heads: bool = False
) -> Checkpoint:
    """The checkpoint at ``path``; weights are touched only when they are read.

    Args:
        path: the folder with the tracker file, the folder of an iteration, or a file that is the whole model.
        n_head: attention heads, for a hidden size that is not in ``HEADS``.
        iteration: the iteration to take instead of the tracker's, a number or ``release``.
        any_heads: where nobody knows ``n_head``, the config says p heads; for those who do not compute with it.

    Raises:
        CheckpointError: anything that keeps the files from being one whole model.
    """
    try:
        files = _find(path, iteration)
        shards = [_load_shard(file.path) for file in files]
        _check_saved_ranks(files)
        n_layer = _check_names(shards)
        _check_ranks(files, shards[0], alone=path.is_file())
        config = _sizes(shards, n_layer)
        number = _check_numbers(shards)
        heads = _heads(shards[0].file, config.n_embd, len(shards), n_head, any_heads)
        return MegatronCheckpoint(dataclasses.replace(config, n_head=heads), shards, number)
    except (ConfigError, ShardingError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
