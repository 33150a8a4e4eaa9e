"""nanoGPT's ``ckpt.pt``, and the checkpoints of programs whose layers are the same; they are only read.

    model                             the state dict, by transformers' names
    model_args                        n_layer, n_head, n_embd, block_size, vocab_size, bias
    config, iter_num, optimizer ...   the training
    config.json                       in the same folder, where somebody has put the arguments there

The state dict may also stand alone, or in a file of any name (``weights.py``): then the matrices tell. They are
``nn.Linear``'s, ``[out, in]``, where transformers' are ``Conv1D``'s, ``[in, out]``.

Sources: ``model.py`` and ``train.py`` of karpathy/nanoGPT, ``train_gpt2.py`` of karpathy/build-nanogpt,
``mingpt/model.py`` of karpathy/minGPT. A model without biases computes as if all were zero. The layer norms' epsilon is
1e-5. The gelu is the one with erf in nanoGPT since June 2023; before that, in minGPT and in build-nanogpt it is the
tanh form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions
from convert.formats.huggingface_config import HEAD_BIASES
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    Zeros,
    check_no_bias,
    check_tensors,
    copy_whole,
    count_layers,
    has_linear_matrices,
    is_tied_copy,
    layer_template,
    matrix_shape,
)
from convert.formats.tokenizer_files import has_tokenizer
from convert.formats.weights import Weights, open_weights
from convert.torch_format.pickle_values import Placeholder
from support.errors import CheckpointError
from support.messages import short_repr
from tf_model.config import GPT2Config

if TYPE_CHECKING:
    from convert.formats.nanogpt_args import Arguments

NAME = "nanogpt"
_HEAD = "lm_head.weight"
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias|mask|tril)")
"""Causal masks, which versions before flash attention stored."""


def _recognise(candidate: Candidate) -> bool:
    """Whether the tensors have transformers' names and the matrices are those of ``nn.Linear``."""
    return has_linear_matrices(candidate.known_tensors(NAME))


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    weights, known = open_weights(candidate, NAME)
    tensors = dict(known.tensors)
    for name in HEAD_BIASES & tensors.keys():
        check_no_bias(tensors.pop(name))
    from convert.formats.nanogpt_args import ARGS, read_arguments  # for its own files only

    said = read_arguments(weights)
    config, notes = _config(weights, tensors, said, options)
    shapes = config.tensor_shapes()
    if not any(place.sizes.get("bias") is True for place in said):
        _add_zeros(weights.where, tensors, shapes)
    if config.tie_word_embeddings:
        tensors.pop(_HEAD, None)
    check_tensors(weights.where, tensors, ExpectedTensors(shapes, lambda name: _MASKS.fullmatch(name) is not None))
    heads = known.other_heads(weights.where, "h.0.ln_1.weight")
    iteration = weights.beside.get("iter_num")
    return TensorMapCheckpoint(
        config,
        {name: TensorRecipe([tensors[name]], copy_whole) for name in shapes},
        CheckpointInfo(
            NAME,
            details={"iteration": iteration} if type(iteration) is int else {},
            notes=tuple(notes),
            left_out=(*(name for name in weights.left_out if name not in ARGS), *heads),
        ),
        tokenizer=weights.folder if has_tokenizer(weights.folder) else None,
    )


def _config(
    weights: Weights, tensors: Mapping[str, LazyTensor], said: Sequence[Arguments], options: OpenOptions
) -> tuple[GPT2Config, list[str]]:
    """Return the sizes by the tensors, which the arguments must not contradict, and what had to be assumed."""
    where = weights.where
    vocab_size, n_embd = matrix_shape(where, tensors, "wte.weight")
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "n_positions": matrix_shape(where, tensors, "wpe.weight")[0],
        "n_embd": n_embd,
        "n_layer": count_layers(where, tensors, "h."),
        "n_inner": matrix_shape(where, tensors, "h.0.mlp.c_fc.weight")[0],
    }
    is_tied = _HEAD not in tensors or is_tied_copy(tensors["wte.weight"], tensors[_HEAD])
    fields, notes = _read_all(said, sizes, has_heads=options.n_head is not None)
    n_head = options.heads(where, n_embd, stored=fields.pop("n_head", None))
    notes += _tie_notes(where, fields.pop("tie_word_embeddings", None), is_tied=is_tied, has_head=_HEAD in tensors)
    recorded, given = fields.pop("activation_function", None), options.activation_function
    guess, reason = _activation(weights, is_tied=is_tied)
    if recorded is not None and given not in (None, recorded):
        notes.append(f"{where}: activation_function is {recorded}, but {given} is taken, as given")
    if recorded is None and given is None:
        notes.append(f"{where}: {reason}: if it has the other gelu, give --activation-function")
    fields.update(activation_function=given or recorded or guess, tie_word_embeddings=is_tied)
    return GPT2Config(**sizes, n_head=n_head, **fields), notes


def _read_all(
    said: Sequence[Arguments], sizes: Mapping[str, int], *, has_heads: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a ``GPT2Config`` that any place says, and the notes of all."""
    read: list[tuple[Path, Mapping[str, Any]]] = []
    notes: list[str] = []
    for place in said:
        found = place.read_fields(sizes, has_heads=has_heads)
        heads = {} if found.heads is None else {"n_head": found.heads}
        has_heads = has_heads or bool(heads)
        read.append((place.where, {**found.values, **heads}))
        notes += [*place.notes, *found.notes]
    return _merge(read), notes


def _merge(read: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the fields that any place says.

    Raises:
        CheckpointError: two places say different things.
    """
    merged: dict[str, tuple[Any, Path]] = {}
    for file, fields in read:
        for key, value in fields.items():
            first, other = merged.setdefault(key, (value, file))
            if first != value:
                raise CheckpointError(
                    f"{file}: {key} is {value!r}, but {other.name} says {first!r}: correct one of them"
                )
    return {key: value for key, (value, _) in merged.items()}


def _tie_notes(where: Path, said: object, *, is_tied: bool, has_head: bool) -> list[str]:
    """Say where the arguments say another thing of the output matrix than the tensors, which count.

    Raises:
        CheckpointError: an output matrix of its own is said, but there is none.
    """
    if said not in (None, True, False):
        raise CheckpointError(f"{where}: tie_word_embeddings is {short_repr(said)}: expected true or false")
    if said is False and not has_head:
        raise CheckpointError(f"{where}: says that the output matrix is not tied, but has no {_HEAD}")
    if said is None or bool(said) is is_tied:
        return []
    taken = "the embedding, of which it is a copy" if is_tied else "one of its own, as it differs from the embedding"
    return [f"{where}: says that the output matrix is {'' if said else 'not '}tied: taken as {taken}"]


def _activation(weights: Weights, *, is_tied: bool) -> tuple[str, str]:
    """Return the activation of the program that seems to have written a file, and why; no file records it."""
    args, config = weights.beside.get("model_args"), weights.beside.get("config")
    if isinstance(config, Placeholder) and config.name.endswith("Config") and not isinstance(args, dict):
        return "gelu_new", "taken for build-nanogpt's, with the tanh gelu (gelu_new)"
    if isinstance(args, dict) and "bias" not in args:
        return "gelu_new", "taken for nanoGPT's of January 2023, with the tanh gelu (gelu_new)"
    if not is_tied:
        return "gelu_new", "has an output matrix of its own, so taken for minGPT's, with the tanh gelu (gelu_new)"
    return "gelu", "taken for nanoGPT's since June 2023, with the erf gelu (gelu; before: gelu_new)"


def _add_zeros(where: Path, tensors: dict[str, LazyTensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Add zeros for those biases that no layer has."""
    present = {layer_template(name)[0] for name in tensors}
    for name, shape in shapes.items():
        if name.endswith(".bias") and layer_template(name)[0] not in present:
            weight = tensors.get(name.removesuffix("bias") + "weight")
            if weight is not None:
                tensors[name] = Zeros(where, name, shape, weight.dtype)


FORMAT = Format(NAME, _recognise, _open, without_iterations="a checkpoint of nanoGPT")
