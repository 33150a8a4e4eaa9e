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
from collections.abc import Mapping
from pathlib import Path

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.heads import head_count_from_manifest, resolve_head_count
from convert.formats.megatron.rank_files import RankFile, check_saved_ranks, resolve_rank_files
from convert.formats.megatron.sharding import (
    COLUMN,
    QKV,
    REPLICATED,
    ROW,
    ShardingError,
    ShardSpec,
    check_shards,
    merge,
    shard_shape,
)
from convert.tensors import FLOATS, Array, DType, check_finite, empty, widest
from convert.torch_format.reader import TensorRef, read_torch_file
from support.errors import CheckpointError
from support.messages import list_names, pluralize, short_repr
from tf_model.config import ConfigError, GPT2Config
from tokenization.special_tokens import CPM_TOKENS, SpecialTokens

TENSORS: dict[str, tuple[str, ShardSpec]] = {
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

BOOKKEEPING: Mapping[str, int | list[str] | None] = {
    "optimizer": None,
    "lr_scheduler": None,
    "csr_tensor_module_names": [],
    "skipped_steps": 0,
    "global_steps": 0,
    "global_samples": 0,
    "dp_world_size": 1,
}
"""What DeepSpeed's loader asks for beside ``module`` and ``mp_world_size``, as it is before a training has begun.

Source: ``_load_checkpoint`` in ``deepspeed/runtime/engine.py`` of DeepSpeed 0.3. The names are a set there, of which
only ``in`` is asked.
"""

_COUNTS = frozenset(key for key, neutral in BOOKKEEPING.items() if neutral is not None)

_LAYER = re.compile(r"transformer\.layers\.(0|[1-9]\d{0,3})\.")


def source_name(name: str) -> tuple[str, ShardSpec]:
    """Megatron's name and the split of the canonical tensor ``name``."""
    layer = re.match(r"h\.(\d+)\.", name)
    template, kind = TENSORS[f"h.{{}}.{name[layer.end() :]}" if layer else name]
    return template.format(layer[1] if layer else ""), kind


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One rank's file: its tensors under Megatron's names, two numbers that it may hold, and what else is in it."""

    file: Path
    tensors: Mapping[str, TensorRef]
    iteration: int | None
    world_size: int | None
    left_out: list[str]
    saved_name: str | None


def _load_shard(file: Path) -> _Shard:
    torch_file = read_torch_file(file)
    top = torch_file.value
    if not isinstance(top, dict):
        raise CheckpointError(
            f"{file}: expected a dict with the weights under 'module' or 'model', found {short_repr(top)}"
        )
    key = next((key for key in ("module", "model") if isinstance(top.get(key), dict)), None)
    if key is None:
        raise CheckpointError(f"{file}: expected a dict under 'module' or 'model', found the keys {list_names(top, 9)}")
    if top.get("checkpoint_version"):  # Q, K and V are in another order since 1.0
        raise CheckpointError(
            f"{file}: checkpoint_version is {short_repr(top['checkpoint_version'])}, which CPM's Megatron "
            "has not: expected "
            "none, or a language_model under 'model', as newer Megatron-LM has it"
        )
    state = top[key]
    prefixes = (re.match(r"(?:module\.)*", name) if isinstance(name, str) else None for name in state)
    if shared := min((prefix.end() if prefix else 0 for prefix in prefixes), default=0):
        state = {name[shared:]: value for name, value in state.items()}
    for name, value in state.items():
        if not isinstance(value, TensorRef):
            raise CheckpointError(f"{file}: {list_names([name])}: expected a tensor, found {short_repr(value)}")
        if value.nbytes > value.storage.nbytes:  # a view that repeats values: small in the file, huge in memory
            raise CheckpointError(f"{file}: {list_names([name])}: {value.nbytes} bytes, of which the file has fewer")
        if value.dtype not in FLOATS:
            raise CheckpointError(
                f"{file}: {list_names([name])}: expected {list_names(FLOATS, 4)}, found {value.dtype.name}"
            )
    numbers = {key: top[key] for key in ("iteration", "mp_world_size") if type(top.get(key)) is int}
    names = {name if isinstance(name, str) else short_repr(name): value for name, value in top.items()}
    # Upstream's change_mp.py leaves None where something was. Counts of steps, samples and ranks are no loss.
    known = {key, *numbers, *_COUNTS}
    left_out = [name for name, value in names.items() if value is not None and name not in known]
    return _Shard(file, state, numbers.get("iteration"), numbers.get("mp_world_size"), left_out, torch_file.saved_name)


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
                problems.append(f"{shard.file}: {pluralize(len(names), f'{what} tensor')}: {list_names(names)}")
    if problems:
        raise CheckpointError("; ".join(problems))
    return n_layer


def _shape(shard: _Shard, canonical: str) -> tuple[int, ...]:
    name, _ = source_name(canonical)
    shape = shard.tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"{shard.file}: {name}: expected a matrix, found the shape {list(shape)}")
    return shape


def _check_ranks(files: list[RankFile], first: _Shard, alone: bool) -> None:
    """Checks that there are as many files as the fused projection and the one behind it say that there are ranks.

    Where the two disagree the number of ranks is not what is wrong: ``_sizes`` names the shape that is.
    """
    hidden = _shape(first, "wpe.weight")[1]
    by_qkv, rest = divmod(3 * hidden, _shape(first, "h.0.attn.c_attn.weight")[0])
    ranks = hidden / _shape(first, "h.0.attn.c_proj.weight")[1]
    if rest or by_qkv != ranks or ranks == len(files):
        return
    this = f"{first.file}: from a model split over {pluralize(by_qkv, 'rank')}"
    found = f"{pluralize(len(files), 'file')} found"
    if alone:
        who = f"rank {files[0].rank}" if files[0].name_pattern else "one"
        raise CheckpointError(f"{first.file}: {who} of a model split over {by_qkv} ranks: give the folder of them all")
    if len(files) > ranks:
        raise CheckpointError(f"{this}, but {found}: those beside it are not of this model, or it was split wrongly")
    missing = files[-1].name_of(len(files))
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
                    f"{shard.file}: {name}: expected the shape {list(expected)} on each of {pluralize(p, 'rank')}, "
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
            found = pluralize(len(shards), "file")
            raise CheckpointError(f"{shard.file}: mp_world_size is {shard.world_size}, but {found} found")
    named = [shard for shard in shards if shard.iteration is not None]
    for shard in named:
        if shard.iteration != named[0].iteration:
            other = f"{named[0].file} is of {named[0].iteration}"
            raise CheckpointError(f"{shard.file}: of iteration {shard.iteration}, but {other}: mixed-up files")
    return named[0].iteration if named else None


class MegatronCheckpoint:
    """A ``Checkpoint`` of p shards, opened by ``open_megatron``; nothing but headers has been read so far."""

    tokenizer: Path | None = None

    def __init__(self, config: GPT2Config, shards: list[_Shard], iteration: int | None) -> None:
        self.config = config
        self.tokens: SpecialTokens | None = CPM_TOKENS if config.vocab_size > 7 else None  # its ids are 5 and 7
        details: dict[str, str | int] = {"tensor_parallel": len(shards)}
        if iteration is not None:
            details["iteration"] = iteration
        self._refs = {
            name: [shard.tensors[source_name(name)[0]] for shard in shards] for name in config.tensor_shapes()
        }
        self.dtypes: Mapping[str, DType] = {
            name: widest(ref.dtype for ref in refs) for name, refs in self._refs.items()
        }
        storages = [ref.storage for refs in self._refs.values() for ref in refs]
        self.info = CheckpointInfo(
            "megatron",
            tuple(shard.file for shard in shards),
            sum(ref.nbytes for refs in self._refs.values() for ref in refs),
            details,
            left_out=tuple(dict.fromkeys(name for shard in shards for name in shard.left_out)),
            without_checksums=tuple(sorted({storage.file for storage in storages if storage.crc is None})),
        )
        self._shapes = config.tensor_shapes()
        self._checked: set[tuple[Path, str]] = set()

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
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
        whole = empty(self._shapes[name], dtype, buffer)
        merge(shards, kind, whole)
        sources = list(zip(self.info.files, shards, strict=True))
        check_shards(source, kind, sources)
        if kind is REPLICATED:
            del sources[1:]
        check_finite(source, whole, self.info.files[0].parent, sources)
        return whole


def open_megatron(
    path: Path, *, n_head: int | None = None, iteration: str | None = None, allow_unknown_heads: bool = False
) -> Checkpoint:
    """The checkpoint at ``path``; weights are touched only when they are read.

    Args:
        path: the folder with the tracker file, the folder of an iteration, or a file that is the whole model.
        n_head: attention heads, for a hidden size that is not in ``HEADS``.
        iteration: the iteration to take instead of the tracker's, a number or ``release``.
        allow_unknown_heads: where nobody knows ``n_head``, it is p, for those who do not compute with it.

    Raises:
        CheckpointError: anything that keeps the files from being one whole model.
    """
    try:
        files = resolve_rank_files(path, iteration)
        if files[-1].stage:
            raise CheckpointError(f"{files[-1].path}: of a pipeline stage, and CPM's Megatron has none")
        shards = [_load_shard(file.path) for file in files]
        n_layer = _check_names(shards)
        _check_ranks(files, shards[0], alone=path.is_file())
        check_saved_ranks(zip(files, (shard.saved_name for shard in shards), strict=True))
        config = _sizes(shards, n_layer)
        number = _check_numbers(shards)
        given = head_count_from_manifest(path, config.n_embd) if n_head is None else n_head
        heads = resolve_head_count(shards[0].file, config.n_embd, len(shards), given, allow_unknown_heads)
        return MegatronCheckpoint(dataclasses.replace(config, n_head=heads), shards, number)
    except (ConfigError, ShardingError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
