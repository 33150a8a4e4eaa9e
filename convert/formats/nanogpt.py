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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    Zeros,
    check_sizes,
    check_tensors,
    copy_whole,
    count_layers,
    has_linear_matrices,
    is_tied_copy,
    layer_template,
    matrix_shape,
    stored_heads,
)
from convert.formats.tokenizer_files import has_tokenizer
from convert.formats.weights import Weights, open_weights
from convert.torch_format.pickle_values import Placeholder
from support.errors import CheckpointError
from support.files import read_json_object
from support.messages import list_names, short_repr
from tf_model.config import GPT2Config

NAME = "nanogpt"
CONFIG = "config.json"
_HEAD = "lm_head.weight"
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias|mask|tril)")
"""Causal masks, which versions before flash attention stored."""
_SIZES = {"n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias"}
_OF_TRAINING = re.compile(r".*(drop|pdrop|flash|checkpoint|compile|device|dtype|init|seed|lr|decay|model_type|name).*")
"""Arguments of a model that change nothing once it is trained."""
_ARGS_OF_MODEL = ("model_args", "model_config", "gpt_config")
_ARGS = (*_ARGS_OF_MODEL, "config", "args", "hyper_parameters", "hparams")
"""What programs call the arguments of the model in their files, and those of a training."""


def _recognise(candidate: Candidate) -> bool:
    """Whether the tensors have transformers' names and the matrices are those of ``nn.Linear``."""
    return has_linear_matrices(candidate.known_tensors(NAME))


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    weights, known = open_weights(candidate, NAME)
    tensors = dict(known.tensors)
    args = _model_args(weights)
    is_tied = _HEAD not in tensors or ("wte.weight" in tensors and is_tied_copy(tensors["wte.weight"], tensors[_HEAD]))
    config, notes = _config(weights, tensors, args, options, is_tied=is_tied)
    shapes = config.tensor_shapes()
    if args.get("bias") is not True:
        _add_zeros(weights.where, tensors, shapes)
    if is_tied:
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
            left_out=(*(name for name in weights.left_out if name not in _ARGS), *heads),
        ),
        tokenizer=weights.folder if has_tokenizer(weights.folder) else None,
    )


def _model_args(weights: Weights) -> Mapping[str, Any]:
    """Return the arguments of the model; what a training's configuration says of them where there is nothing else.

    Raises:
        CheckpointError: one of them makes another model.
    """
    for key in _ARGS:
        found = weights.beside.get(key)
        args = found.state if isinstance(found, Placeholder) else found
        if not isinstance(args, dict) or not _SIZES & args.keys():
            continue
        is_of_model = key in _ARGS_OF_MODEL or (isinstance(found, Placeholder) and found.name.startswith("GPT"))
        if not is_of_model:  # it has much of the training
            return {size: args[size] for size in _SIZES & args.keys()}
        for name, value in args.items():
            if name not in _SIZES and value and not (isinstance(name, str) and _OF_TRAINING.fullmatch(name)):
                raise CheckpointError(
                    f"{weights.where}: {key}: {list_names([name])} is {short_repr(value)}: not known of a GPT-2: "
                    "it may make another model"
                )
        return args
    return _config_json(weights)


def _config_json(weights: Weights) -> Mapping[str, Any]:
    """Return the sizes in a ``config.json`` next to the weights, as ``PyTorchModelHubMixin`` writes the arguments."""
    where = weights.folder / CONFIG
    values = read_json_object(where, CheckpointError) if where.is_file() else {}
    inner = values.get("config", values)
    found = inner if isinstance(inner, dict) else {}
    return {key: found[key] for key in (_SIZES | {"activation_function"}) & found.keys() if found[key] is not None}


def _config(
    weights: Weights, tensors: Mapping[str, LazyTensor], args: Mapping[str, Any], options: OpenOptions, *, is_tied: bool
) -> tuple[GPT2Config, list[str]]:
    """Return the sizes by the tensors, which the arguments must not contradict, and what had to be assumed."""
    where = weights.where
    vocab_size, n_embd = matrix_shape(where, tensors, "wte.weight")
    n_positions, _ = matrix_shape(where, tensors, "wpe.weight")
    n_inner, _ = matrix_shape(where, tensors, "h.0.mlp.c_fc.weight")
    n_layer = count_layers(where, tensors, "h.")
    sizes = {"vocab_size": vocab_size, "n_embd": n_embd, "n_layer": n_layer, "block_size": n_positions}
    check_sizes(where, args, sizes)
    heads = options.heads(where, n_embd, stored=stored_heads(where, args, "n_head"))
    activation, reason = _activation(weights, is_tied=is_tied)
    notes = [f"{where}: {reason}: if it has the other gelu, give --activation-function"]
    if recorded := options.activation_function or args.get("activation_function"):
        activation, notes = recorded, []
    config = GPT2Config(
        vocab_size, n_positions, n_embd, n_layer, heads, n_inner, activation, tie_word_embeddings=is_tied
    )
    return config, notes


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
