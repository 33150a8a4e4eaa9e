"""Hugging Face's GPT-2: a folder with ``config.json`` and the weights.

    config.json
    model.safetensors                 or model.safetensors.index.json and the files that it names
    pytorch_model.bin                 or pytorch_model.bin.index.json and the files that it names

A file may also have any other name, stand alone, and hold the state dict within a training's dict (``weights.py``).

Sources: ``modeling_gpt2.py`` and ``configuration_gpt2.py`` of transformers. Its linear layers are ``Conv1D``, whose
weights are ``[in, out]``. A folder of ``GPT2Model`` has names without ``transformer.`` and no head.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats import safetensors_file as safetensors
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions, Read, Writer, WriteRequest
from convert.formats.huggingface_config import HEAD_BIASES, read_fields
from convert.formats.limits import ANY
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    check_no_bias,
    check_tensors,
    concat_transposed,
    copy_whole,
    count_layers,
    has_linear_matrices,
    is_linear,
    is_tied_copy,
    matrix_shape,
)
from convert.formats.text_pieces import PIECE_OPTIONS
from convert.formats.tokenizer_files import (
    has_tokenizer,
    notes_for_huggingface,
    read_special_tokens,
    save_for_huggingface,
)
from convert.formats.weights import Weights, open_weights
from convert.tensors import transposed_blocks
from exports.saved_model_folder import CONFIG, GENERATION_CONFIG
from support.errors import CheckpointError
from support.files import read_json_object, write_json
from tf_model.config import TANH_GELU, ConfigError, GPT2Config

NAME = "huggingface"
SAFETENSORS = "model.safetensors"
_HEADER_BYTES = 1 << 20
"""Room for the header of the weights, the configuration and a tokenizer."""
_OWN_NAME = re.compile(r"h\.\d+\.(attn\.c_attn|mlp\.c_fc)\.")
"""Names that no other model has."""
_PREFIX = "transformer."
_EMBEDDING, _HEAD = "wte.weight", "lm_head.weight"
_DECODER = "lm_head.decoder.weight"
_OLD_NAMES = {_DECODER: _HEAD, "wte": _EMBEDDING, "wpe": "wpe.weight"}
_OLD_ENDINGS = {"gamma": "weight", "beta": "bias", "g": "weight", "b": "bias", "w": "weight"}
"""What versions of 2019 (pytorch-pretrained-bert) wrote or read -> transformers' names of today."""
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
"""Causal masks, which older versions of transformers stored."""


def _recognise(candidate: Candidate) -> bool:
    """Whether there are tensors that no other model has."""
    names = candidate.known_tensors(NAME)
    is_like = any(map(_OWN_NAME.match, names)) or {"wte.weight", "wpe.weight"} <= names.keys()
    return is_like and not has_linear_matrices(names)


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    weights, known = open_weights(candidate, NAME)
    folder, tensors = weights.folder, _newest_names(known.tensors)
    where = folder / CONFIG
    values = read_json_object(where, CheckpointError) if os.path.lexists(where) else {}
    if _EMBEDDING not in tensors and _HEAD in tensors and values.get("tie_word_embeddings") in (None, True):
        tensors[_EMBEDDING] = tensors.pop(_HEAD)
    config, notes = _config(weights, values, tensors, options)
    if config.tie_word_embeddings and _HEAD in tensors:
        if is_tied_copy(tensors[_EMBEDDING], tensors[_HEAD]):
            del tensors[_HEAD]
        else:
            config = dataclasses.replace(config, tie_word_embeddings=False)
            notes = (*notes, _untied_note(tensors[_EMBEDDING], tensors[_HEAD]))
    if _DECODER in tensors and is_tied_copy(tensors.get(_HEAD, tensors[_EMBEDDING]), tensors[_DECODER]):
        del tensors[_DECODER]  # next to the name of today
    for name in HEAD_BIASES & tensors.keys():
        check_no_bias(tensors.pop(name))
    shapes = config.tensor_shapes()
    expected = {name: _shape(name, shape) for name, shape in shapes.items()}
    check_tensors(weights.where, tensors, ExpectedTensors(expected, lambda name: _MASKS.fullmatch(name) is not None))
    heads = known.other_heads(weights.where, "h.0.ln_1.weight")
    recipes = {
        name: TensorRecipe([tensors[name]], concat_transposed if is_linear(name) else copy_whole) for name in shapes
    }
    tokens, token_notes = read_special_tokens(folder, values, config.vocab_size)
    return TensorMapCheckpoint(
        config,
        recipes,
        CheckpointInfo(NAME, notes=(*notes, *token_notes), left_out=(*weights.left_out, *heads)),
        tokens=tokens,
        tokenizer=folder if has_tokenizer(folder) else None,
    )


def _newest_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors by the names that transformers has today, where nothing else has them."""
    newest: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        stem, dot, ending = _OLD_NAMES.get(name, name).rpartition(".")
        new = f"{stem}{dot}{_OLD_ENDINGS.get(ending, ending)}"
        newest[name if new != name and new in tensors else new] = tensor
    return newest


def _untied_note(embedding: LazyTensor, head: LazyTensor) -> str:
    """Say that an output matrix is taken as its own, although the configuration ties it: as transformers 5 does.

    Raises:
        CheckpointError: it is one that only pytorch-pretrained-bert wrote, which had no output matrix of its own.
    """
    if "decoder" in head.name:
        raise CheckpointError(f"{head.file}: {head.name} differs from {embedding.name}, of which it should be a copy")
    return (
        f"{head.file}: {head.name} differs from {embedding.name}: taken as an output matrix of its own, as "
        f"transformers 5 does, though {CONFIG} does not say so; older versions of it put the embedding in its place"
    )


def _config(
    weights: Weights, values: Mapping[str, Any], tensors: Mapping[str, LazyTensor], options: OpenOptions
) -> tuple[GPT2Config, tuple[str, ...]]:
    """Return the sizes by the tensors and everything else by ``config.json``, and what a user should know of that.

    Raises:
        CheckpointError: it says other sizes, or is of another model.
    """
    where, file = weights.folder / CONFIG, weights.where
    vocab_size, n_embd = matrix_shape(file, tensors, _EMBEDDING)
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "n_positions": matrix_shape(file, tensors, "wpe.weight")[0],
        "n_embd": n_embd,
        "n_layer": count_layers(file, tensors, "h."),
        "n_inner": matrix_shape(file, tensors, "h.0.mlp.c_fc.weight")[1],
    }
    said = read_fields(where, values, sizes, has_heads=options.n_head is not None)
    heads = options.heads(where if values else file, n_embd, stored=said.heads)
    fields = {"activation_function": "gelu_new", **said.values}
    notes = (*said.notes, *_gelu_notes(where, values, fields["activation_function"], tensors[_EMBEDDING], options))
    if options.activation_function is not None:
        fields["activation_function"] = options.activation_function
    if not values:
        gelu = options.activation_function or "the tanh gelu"
        notes = (
            f"{weights.where}: no {CONFIG} next to it: taken for a GPT-2 with {gelu} and an epsilon of 1e-5 "
            "(--activation-function takes another)",
            *notes,
        )
    try:
        return GPT2Config(**sizes, n_head=heads, **fields), notes
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _gelu_notes(
    where: Path, values: Mapping[str, Any], said: str, embedding: LazyTensor, options: OpenOptions
) -> tuple[str, ...]:
    """Say which gelu is taken where there may be two opinions.

    From 3.2 to 4.11, transformers' TensorFlow GPT-2 computed with erf whatever its configuration said (pull requests
    7150 and 13679). Whether weights were trained with it, or come from PyTorch, no file says.
    """
    given = options.activation_function
    if given is not None:
        is_other = "activation_function" in values and given != said
        return (f"{where}: activation_function is {said}, but {given} is taken, as given",) if is_other else ()
    version = re.match(r"(\d{1,3})\.(\d{1,3})", str(values.get("transformers_version", "")), re.ASCII)
    is_newer = version is not None and (int(version[1]), int(version[2])) >= (4, 12)
    if embedding.file.suffix != ".h5" or said not in TANH_GELU or is_newer:
        return ()
    return (
        f"{embedding.file}: transformers' TensorFlow GPT-2 of versions 3.2 to 4.11 computed its gelu with erf: weights "
        "that were trained by one of them need --activation-function gelu (activation_function= in Python)",
    )


def _name(canonical: str) -> str:
    return canonical if canonical == _HEAD else f"{_PREFIX}{canonical}"


def _shape(canonical: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if is_linear(canonical) else shape


def _write(request: WriteRequest, folder: Path, read: Read) -> list[Path]:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors``."""
    config, dtypes = request.checkpoint.config, request.dtypes
    shapes = config.tensor_shapes()
    tensors = {_name(name): (_shape(name, shape), dtypes[name]) for name, shape in shapes.items()}
    with safetensors.writing(folder / SAFETENSORS, tensors) as writer:
        for name in shapes:
            values = read(name, dtypes[name])
            for block in transposed_blocks(values) if is_linear(name) else (values,):
                writer.write(block)
    special = request.tokens.to_dict()
    write_json(folder / CONFIG, {**config.to_dict(), **special, "torch_dtype": dtypes["wte.weight"].name})
    write_json(folder / GENERATION_CONFIG, {**special, **request.tokens.defaults})
    return [folder / SAFETENSORS]


FORMAT = Format(
    NAME,
    recognise=_recognise,
    open=_open,
    without_iterations="a Hugging Face folder",
    writer=Writer(
        write=_write,
        size=lambda request: request.weight_bytes + _HEADER_BYTES,
        holds={
            "n_inner": ANY,
            "activation_function": ANY,
            "layer_norm_epsilon": ANY,
            "scale_attn_weights": ANY,
            "scale_attn_by_inverse_layer_idx": ANY,
            "tie_word_embeddings": ANY,
        },
        save_tokenizer=save_for_huggingface,
        notes=lambda request: notes_for_huggingface(request.tokenizer),
        options=PIECE_OPTIONS,
    ),
)
