"""LoRA adapters of peft, merged into a checkpoint while its weights are read.

A matrix becomes ``W + scale * B A``, in float32, and then the type that it has in the checkpoint, as ``merge`` of
peft's ``tuners/lora/layer.py`` has it. Modules that were trained whole take the place of the checkpoint's.

Where the output matrix is tied to the token embedding and one of the two has an adapter, or a copy of its own, they
differ afterwards: the result is what the adapter was trained with. (``merge_and_unload`` of peft adds the embedding's
adapter to both in that case, which is another model; it warns.)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from convert.checkpoint import Checkpoint, CheckpointAdapter, CheckpointInfo
from convert.formats.lora_files import SAFETENSORS, TORCH, Adapter, read_adapter
from convert.formats.lora_options import CONFIG, LowRank
from convert.formats.padding import trim_vocabulary
from convert.formats.tensor_map import is_linear
from convert.formats.tokenizer_files import has_tokenizer
from convert.tensors import Array, DType, assign, check_finite, empty, row_blocks, transpose
from support.errors import CheckpointError
from support.messages import list_names
from tf_model.config import UER, GPT2Config

_EMBEDDING, _HEAD = "wte", "lm_head"
_LINEAR = "nanogpt"
"""The format whose model has transformers' names, and matrices of another order."""


def other_adapters(path: Path) -> tuple[str, ...]:
    """Return a note where an adapter lies next to a checkpoint at ``path``, or in it, that nobody asked for."""
    folder = path if path.is_dir() else path.parent
    found = [folder / name for name in (SAFETENSORS, TORCH, CONFIG) if (folder / name).exists()]
    return tuple(f"{file}: an adapter, which is left out: --adapter {folder} merges it" for file in found[:1])


def merge_adapter(checkpoint: Checkpoint, folder: Path, vocab_size: int | None = None) -> Checkpoint:
    """Return ``checkpoint`` with the adapter in ``folder`` merged into its weights.

    Args:
        checkpoint: the base.
        folder: the adapter's.
        vocab_size: the number of tokens that the user chose: where the adapter was trained with so many, the base's
            other rows are left out before it is merged. The caller trims the result.

    Raises:
        CheckpointError: the adapter cannot be read or merged, or is one of another model.
    """
    adapter = read_adapter(folder)
    if not (adapter.low_rank or adapter.replaced or adapter.tokens):
        raise CheckpointError(f"{adapter.folder}: an adapter without any tensors: nothing to merge")
    if vocab_size is not None and vocab_size < checkpoint.config.vocab_size and _rows(adapter) == {vocab_size}:
        checkpoint = trim_vocabulary(checkpoint, vocab_size)
    return _Merged(checkpoint, adapter)


def _rows(adapter: Adapter) -> set[int]:
    """Return the sizes of the vocabulary that the adapter's own embeddings and output matrices have."""
    whole = [adapter.replaced[name] for name in (f"{_EMBEDDING}.weight", f"{_HEAD}.weight") if name in adapter.replaced]
    rows = {tensor.shape[0] for tensor in whole if tensor.shape}
    if _EMBEDDING in adapter.low_rank:
        rows.add(adapter.low_rank[_EMBEDDING].a.shape[1])
    if _HEAD in adapter.low_rank:
        rows.add(adapter.low_rank[_HEAD].b.shape[0])
    return rows


class _Merged(CheckpointAdapter):
    """A checkpoint whose weights are merged with those of an adapter, one tensor at a time."""

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        self._adapter = adapter
        self._replaced = dict(adapter.replaced)
        base = checkpoint.config
        touched = {_EMBEDDING, _HEAD} & (adapter.low_rank.keys() | adapter.saved)
        self._unties = base.tie_word_embeddings and bool(touched)
        self._head_of_base = f"{_EMBEDDING if base.tie_word_embeddings else _HEAD}.weight"
        self._share_replaced(base)
        config = self._config(base)
        super().__init__(checkpoint, config=config, info=self._info(checkpoint))
        if has_tokenizer(adapter.folder) and (self.tokenizer is None or config.vocab_size != base.vocab_size):
            self.tokenizer = adapter.folder  # it was saved with the tokens that the training has added
        self._shapes = config.tensor_shapes()
        self._check_shapes(base)
        own = dict(checkpoint.dtypes)
        if self._unties:
            own[f"{_HEAD}.weight"] = own[f"{_EMBEDDING}.weight"]
        self.dtypes = {name: self._replaced[name].dtype if name in self._replaced else own[name] for name in own}

    def _share_replaced(self, base: GPT2Config) -> None:
        """Let a whole matrix stand for both of the tied ones, unless it was trained as a copy of its own."""
        embedding, head = (f"{name}.weight" for name in (_EMBEDDING, _HEAD))
        if base.tie_word_embeddings and not self._adapter.saved & {_EMBEDDING, _HEAD}:
            found = self._replaced.pop(head, None) or self._replaced.get(embedding)
            if found is not None:
                self._replaced.setdefault(embedding, found)
                if self._unties:
                    self._replaced[head] = found

    def _config(self, base: GPT2Config) -> GPT2Config:
        """Return the sizes: those of the base, but for a vocabulary that was extended while the adapter was trained."""
        embedding = self._replaced.get(f"{_EMBEDDING}.weight")
        is_matrix = embedding is not None and len(embedding.shape) == 2
        vocab_size = embedding.shape[0] if embedding is not None and is_matrix else base.vocab_size
        tied = base.tie_word_embeddings and not self._unties
        return dataclasses.replace(base, vocab_size=vocab_size, tie_word_embeddings=tied)

    def _info(self, checkpoint: Checkpoint) -> CheckpointInfo:
        adapter, info, base = self._adapter, checkpoint.info, checkpoint.config
        counts = {
            "changed matrices": len(adapter.low_rank),
            "replaced tensors": len(adapter.replaced),
            "replaced embeddings": len(adapter.tokens[0]) if adapter.tokens else 0,
        }
        changed = ", ".join(f"{what}: {count}" for what, count in counts.items() if count)
        notes = [f"{adapter.folder}: a LoRA adapter, merged into the weights ({changed})"]
        if self._unties:
            notes.append(
                f"{adapter.folder}: changes only one of the token embedding and the output matrix, which were one: the "
                "result has both, as the adapter was trained (peft's merge_and_unload may give another model)"
            )
        matrices = [name.removesuffix(".weight") for name, shape in base.tensor_shapes().items() if len(shape) == 2]
        if missing := adapter.untouched(dict.fromkeys([*matrices, _HEAD])):
            notes.append(
                f"{adapter.files[-1]}: has nothing for {list_names(missing)}, which {CONFIG} names: left as the base "
                "has it, as peft does; the file may lack a part"
            )
        return dataclasses.replace(
            info,
            files=(*info.files, *adapter.files),
            details={**info.details, "adapter": adapter.folder.name},
            notes=(*info.notes, *notes),
            left_out=(*info.left_out, *adapter.left_out),
            is_changed=True,
        )

    def _check_shapes(self, base: GPT2Config) -> None:
        """Check that the adapter is one of this model.

        Raises:
            CheckpointError: a module or a shape is another one.
        """
        adapter, weights = self._adapter, self._adapter.files[-1]
        modules = {name.rpartition(".")[0] for name in self._shapes}
        for module, low_rank in adapter.low_rank.items():
            shape = self._shapes.get(f"{module}.weight", ())
            is_embedding = module in (_EMBEDDING, "wpe")
            a, b = low_rank.a.shape[1], low_rank.b.shape[0]
            found = (a, b) if is_embedding else (b, a)
            rows = [tensor.shape for tensor in (low_rank.magnitude, low_rank.bias) if tensor is not None]
            if is_embedding != ("lora_embedding" in low_rank.a.name) or found != shape or set(rows) - {shape[:1]}:
                raise self._mismatch(module, shape, found)
        for name, tensor in self._replaced.items():
            shape = self._stored_shape(name)
            if tensor.shape != shape:
                raise self._mismatch(name, shape, tensor.shape)
            if is_linear(name) and self.info.format == _LINEAR:
                raise CheckpointError(
                    f"{weights}: {name}: a whole matrix, and no file says whether it is [in, out] as in transformers "
                    "or [out, in] as in nanoGPT: merge it with peft"
                )
            if ".ln_" in f".{name}" and base.layer_norm == UER:
                raise CheckpointError(
                    f"{weights}: {name}: a layer norm of its own, but the checkpoint's are UER-py's: give "
                    "--uer-layer-norm standard if the adapter was trained with transformers"
                )
        if self.config.vocab_size != base.vocab_size and self._unties and f"{_HEAD}.weight" not in self._replaced:
            raise self._mismatch(_HEAD, (self.config.vocab_size, base.n_embd), (base.vocab_size, base.n_embd))
        if not modules >= {*adapter.low_rank, *(name.rpartition(".")[0] for name in self._replaced)}:
            raise CheckpointError(f"{weights}: has modules that the checkpoint has not: an adapter of another model")
        if adapter.tokens and (max(adapter.tokens[0]) >= self.config.vocab_size or self._unties):
            raise CheckpointError(f"{weights}: embeddings of single tokens do not fit the model: merge it with peft")

    def _mismatch(self, name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> CheckpointError:
        wanted = f"expected the shape {list(expected)}" if expected else "the checkpoint has no such module"
        weights, rows = self._adapter.files[-1], self._checkpoint.config.vocab_size
        is_shorter = name.removesuffix(".weight") in (_EMBEDDING, _HEAD) and expected[1:] == found[1:]
        if is_shorter and max(_rows(self._adapter), default=rows) < rows:
            fewer = max(_rows(self._adapter))
            return CheckpointError(
                f"{weights}: {name}: has {fewer} rows of tokens, the checkpoint {rows}: if the others pad it, give "
                f"--vocab-size {fewer} (vocab_size= in Python)"
            )
        return CheckpointError(f"{weights}: {name}: {wanted}, found {list(found)}: an adapter of another model")

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that a whole tensor has in the adapter: matrices of blocks are transformers' ``Conv1D``."""
        shape = self._shapes.get(name, ())
        return shape[::-1] if is_linear(name) else shape

    def read(self, name: str, dtype: DType, buffer: Array | None = None) -> Array:
        """Read a tensor as ``Checkpoint.read``."""
        own, shape = self.dtypes[name], self._shapes[name]
        module, _, kind = name.rpartition(".")
        low_rank = self._adapter.low_rank.get(module)
        is_added = low_rank is not None and (kind == "weight" or low_rank.bias is not None)
        tokens = self._adapter.tokens if name == f"{_EMBEDDING}.weight" else None
        if name not in self._replaced and not is_added and tokens is None:
            return self._checkpoint.read(self._name_in_base(name), dtype, buffer)
        values = self._base(name, own, buffer if dtype == own else None)
        if low_rank is not None and kind == "bias" and low_rank.bias is not None:
            values += (low_rank.bias.numpy().astype(_wide(own)) * low_rank.scale).astype(own)
        elif low_rank is not None and is_added:
            _add_product(values, low_rank, is_embedding=module in (_EMBEDDING, "wpe"))
        if tokens is not None:
            values[list(tokens[0])] = tokens[1].numpy().astype(own)
        out = values
        if dtype != own:
            out = empty(shape, dtype, buffer)
            assign(out, values)
        file = self._adapter.files[-1]
        check_finite(name, out, file, () if out is values else [(file, values)])
        return out

    def _name_in_base(self, name: str) -> str:
        return self._head_of_base if name == f"{_HEAD}.weight" else name

    def _base(self, name: str, dtype: DType, buffer: Array | None) -> Array:
        """Read what is added to: the base's tensor, or the one that takes its place."""
        tensor = self._replaced.get(name)
        if tensor is None:
            return self._checkpoint.read(self._name_in_base(name), dtype, buffer)
        out = empty(self._shapes[name], dtype, buffer)
        copy = transpose if is_linear(name) else _copy
        copy(tensor.numpy(), out)
        return out


def _copy(source: Array, out: Array) -> None:
    assign(out, source)


def _wide(dtype: DType) -> DType:
    """Return the type that sums are made in."""
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def _add_product(values: Array, low_rank: LowRank, *, is_embedding: bool) -> None:
    """Add ``scale * B A`` to a matrix ``[out, in]`` of any type of weights, some rows at a time.

    DoRA's rows ``w`` become ``magnitude * w / |w|`` after that.
    """
    wide = _wide(values.dtype)
    a, b = low_rank.a.numpy().astype(wide), low_rank.b.numpy().astype(wide)
    left, right = (a.T, b.T) if is_embedding else (b, a)
    magnitude = None if low_rank.magnitude is None else low_rank.magnitude.numpy().astype(wide)
    for start, block in row_blocks(values):
        stop = start + len(block)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # the caller looks for what is not finite
            total = block.astype(wide)
            total += (left[start:stop] @ right) * wide.type(low_rank.scale)
            if magnitude is not None:
                total *= (magnitude[start:stop] / np.linalg.norm(total, axis=1))[:, None]
            assign(block, total)
