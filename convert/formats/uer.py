"""GPT-2 of UER-py and TencentPretrain: one ``.bin`` file, a state dict, as gpt2-chinese-lyric was trained with.

    <name>.bin            tensors by UER's names
    config.json           in the same folder, where there is one: their own keys (``uer_config.py``)

Sources: ``uer/layers``, ``uer/encoders/transformer_encoder.py``, ``models/gpt2/config.json`` and
``scripts/convert_gpt2_from_uer_to_huggingface.py`` of UER-py, and their successors in TencentPretrain. Linear layers
are PyTorch's, ``[out, in]``; Q, K and V are apart. Layer norms divide by the unbiased deviation plus 1e-6
(``tf_model.config.UER``), gelu is the tanh form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions, Read, WriteOption, Writer, WriteRequest
from convert.formats.limits import ANY
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    Zeros,
    check_no_bias,
    check_tensors,
    concat_rows,
    count_layers,
    is_tied_copy,
    layer_template,
    matrix_shape,
)
from convert.formats.tokenizer_files import has_tokenizer, save_for_uer
from convert.formats.uer_config import ACTIVATIONS, EPSILON, Options, read_options
from convert.formats.weights import open_weights
from convert.torch_format.writer import Pending, writing
from support.errors import CheckpointError
from support.files import write_json
from support.messages import list_names
from tf_model.config import LAYER_NORMS, STANDARD, TANH_GELU, UER, GPT2Config

NAME = "uer"
FILE, CONFIG = "model.bin", "config.json"
TENSORS: Mapping[str, tuple[str, ...]] = {
    "wte.weight": ("embedding.word.embedding.weight",),
    "wpe.weight": ("embedding.pos.embedding.weight",),
    **{
        f"h.{{}}.{ours}.{kind}": tuple(f"encoder.transformer.{{}}.{theirs}.{kind}" for theirs in names)
        for ours, names in (
            ("attn.c_attn", tuple(f"self_attn.linear_layers.{i}" for i in range(3))),
            ("attn.c_proj", ("self_attn.final_linear",)),
            ("mlp.c_fc", ("feed_forward.linear_1",)),
            ("mlp.c_proj", ("feed_forward.linear_2",)),
        )
        for kind in ("weight", "bias")
    },
    **{
        f"h.{{}}.ln_{i}.{ours}": (f"encoder.transformer.{{}}.layer_norm_{i}.{theirs}",)
        for i in (1, 2)
        for ours, theirs in (("weight", "gamma"), ("bias", "beta"))
    },
    "ln_f.weight": ("encoder.layer_norm.gamma",),
    "ln_f.bias": ("encoder.layer_norm.beta",),
    "lm_head.weight": ("target.lm.output_layer.weight",),
}
"""Canonical name -> UER's, one below the other where they are several; ``{}`` is the layer."""

_OUTPUT_BIAS = "target.lm.output_layer.bias"
"""A part of UER-py's models in general; none of a GPT-2, unless it is zero."""
_OLD_NAMES = {
    "embedding.word_embedding.weight": "embedding.word.embedding.weight",
    "embedding.position_embedding.weight": "embedding.pos.embedding.weight",
    "target.output_layer.weight": "target.lm.output_layer.weight",
    "target.output_layer.bias": _OUTPUT_BIAS,
}
"""Before UER-py of 2023 -> since then."""


def source_names(name: str) -> tuple[str, ...]:
    """UER's names of the canonical tensor ``name``."""
    row, layer = layer_template(name)
    return tuple(template.format(layer) for template in TENSORS[row])


def _usual_names(name: str) -> tuple[str, ...]:
    """Names as ``source_names`` where the layer norms are PyTorch's own, TencentPretrain's ``normal_torch``."""
    kind = "weight" if name.endswith("weight") else "bias"
    return tuple(re.sub(r"\.(gamma|beta)$", f".{kind}", theirs) for theirs in source_names(name))


def _recognise(candidate: Candidate) -> bool:
    return source_names("wte.weight")[0] in _newest_names(candidate.known_tensors(NAME))


def _newest_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {_OLD_NAMES.get(name, name): tensor for name, tensor in tensors.items()}


def _check_embedding(file: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Check that nothing but words and positions is embedded, and no layer norm follows.

    Raises:
        CheckpointError: there is more.
    """
    known = (*source_names("wte.weight"), *source_names("wpe.weight"))
    others = [name for name in tensors if name.startswith("embedding.") and name not in known]
    if others:
        raise CheckpointError(f"{file}: no GPT-2, whose embedding is words and positions: {list_names(others)}")


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    weights, known = open_weights(candidate, NAME)
    file, folder, tensors = weights.where, weights.folder, _newest_names(known.tensors)
    (head,) = source_names("lm_head.weight")
    config, said = _config(file, folder / CONFIG, tensors, options)
    notes = (*said.notes, *_add_biases(file, tensors, config.n_layer, said))
    shapes = config.tensor_shapes()
    expected: dict[str, tuple[int, ...]] = {}
    recipes = {}
    for name, shape in shapes.items():
        names = source_names(name) if config.layer_norm == UER else _usual_names(name)
        expected.update(dict.fromkeys(names, (shape[0] // len(names), *shape[1:])))
        recipes[name] = names
    if config.tie_word_embeddings:
        tensors.pop(head, None)
    if bias := tensors.pop(_OUTPUT_BIAS, None):
        check_no_bias(bias)
    other_targets = [name for name in tensors if name.startswith("target.") and name not in expected]
    for name in other_targets:
        del tensors[name]
    _check_embedding(file, tensors)
    check_tensors(file, tensors, ExpectedTensors(expected))
    heads = known.other_heads(file, recipes["ln_f.weight"][0])
    return TensorMapCheckpoint(
        config,
        {name: TensorRecipe([tensors[n] for n in names], concat_rows) for name, names in recipes.items()},
        CheckpointInfo(NAME, notes=notes, left_out=(*weights.left_out, *other_targets, *heads)),
        tokenizer=folder if has_tokenizer(folder) else None,
    )


def _config(
    file: Path, where: Path, tensors: Mapping[str, LazyTensor], options: OpenOptions
) -> tuple[GPT2Config, Options]:
    """Return the sizes by the tensors and everything else by ``config.json``, and what it says."""
    (embedding,), (head,) = source_names("wte.weight"), source_names("lm_head.weight")
    vocab_size, n_embd = matrix_shape(file, tensors, embedding)
    sizes = {
        "n_positions": matrix_shape(file, tensors, source_names("wpe.weight")[0])[0],
        "n_embd": n_embd,
        "n_inner": matrix_shape(file, tensors, source_names("h.0.mlp.c_fc.weight")[0])[0],
        "n_layer": count_layers(file, tensors, "encoder.transformer."),
    }
    said = read_options(where, sizes, STANDARD if _usual_names("ln_f.bias")[0] in tensors else UER)
    is_tied = head not in tensors or is_tied_copy(tensors[embedding], tensors[head])
    if said.is_tied is True and not is_tied:
        raise CheckpointError(f"{where}: tie_weights is true, but {head} differs from {embedding}")
    if said.is_tied is False and head not in tensors:
        raise CheckpointError(f"{file}: missing tensor: {head}: {where.name} says that it is not the embedding")
    config = GPT2Config(
        vocab_size=vocab_size,
        n_head=options.heads(file, n_embd, stored=said.heads),
        tie_word_embeddings=is_tied,
        **{"activation_function": options.activation_function or "gelu_new", **sizes, **said.fields},
    )
    return config, said


def _add_biases(file: Path, tensors: dict[str, LazyTensor], layers: int, said: Options) -> tuple[str, ...]:
    """Add zeros for the biases of linear layers where ``remove_transformer_bias`` has left out all of them.

    Returns:
        A note where nobody says that it has.

    Raises:
        CheckpointError: there are some, although ``config.json`` says that there are none.
    """
    names = [
        name
        for layer in range(layers)
        for kind in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        for name in source_names(f"h.{layer}.{kind}.bias")
    ]
    there = [name for name in names if name in tensors]
    if there and said.has_biases is False:
        raise CheckpointError(f"{file}: remove_transformer_bias is true, but there are biases: {list_names(there)}")
    if there or said.has_biases is True:
        return ()
    for name in names:
        weight = tensors.get(f"{name.removesuffix('bias')}weight")
        if weight is not None:
            tensors[name] = Zeros(file, name, weight.shape[:1], weight.dtype)
    note = f"{file}: linear layers without biases, as remove_transformer_bias leaves them: zeros are taken"
    return (note,) if said.has_biases is None else ()


def _size(request: WriteRequest) -> int:
    """Return the weights, the embedding again as output matrix, names and headers."""
    config = request.checkpoint.config
    embedding = config.vocab_size * config.n_embd * request.dtypes["wte.weight"].itemsize
    head = embedding if config.tie_word_embeddings else 0
    return request.weight_bytes + head + 1000 * len(TENSORS) * config.n_layer + 10_000


def _their_config(config: GPT2Config) -> dict[str, Any]:
    """Return the content of UER's ``config.json``."""
    is_tanh = config.activation_function in TANH_GELU
    unusual: dict[str, Any] = {} if config.scale_attn_weights else {"remove_attention_scale": True}
    if config.layer_norm_epsilon != EPSILON:
        unusual["layernorm_eps"] = config.layer_norm_epsilon
    return {
        "emb_size": config.n_embd,
        "feedforward_size": config.n_inner,
        "hidden_size": config.n_embd,
        "hidden_act": "gelu_fast" if is_tanh else config.activation_function,
        "heads_num": config.n_head,
        "layers_num": config.n_layer,
        "max_seq_length": config.n_positions,
        "dropout": 0.1,
        "data_processor": "lm",
        "embedding": ["word", "pos"],
        "remove_embedding_layernorm": True,
        "encoder": "transformer",
        "mask": "causal",
        "layernorm_positioning": "pre",
        "target": ["lm"],
        "tie_weights": config.tie_word_embeddings,
        **unusual,
    }


def _notes(request: WriteRequest) -> Iterator[str]:
    """Yield which of the two programs reads what is written."""
    config = request.checkpoint.config
    if config.layer_norm_epsilon != EPSILON:
        yield f"layernorm_eps is {config.layer_norm_epsilon:g}: TencentPretrain reads it, UER-py takes {EPSILON:g}"
    if config.activation_function == "silu":
        yield "hidden_act is silu: TencentPretrain knows it, UER-py does not"


def _write(request: WriteRequest, folder: Path, read: Read) -> list[Path]:
    """Write ``model.bin`` and UER's ``config.json``.

    The output matrix is written whether it is tied or not: UER-py leaves what it does not find as it was made, without
    a word.
    """
    config, dtypes = request.checkpoint.config, request.dtypes
    shapes = config.tensor_shapes()
    order = [(name, name) for name in shapes]
    if config.tie_word_embeddings:
        order.append(("lm_head.weight", "wte.weight"))
    tensors = {}
    for name, values in order:
        names, shape = source_names(name), shapes[values]
        for source in names:
            tensors[source] = Pending((shape[0] // len(names), *shape[1:]), dtypes[values])
    with writing(folder / FILE, tensors) as writer:
        for name, values in order:
            whole = read(values, dtypes[values])
            size = len(whole) // len(source_names(name))
            for start in range(0, len(whole), size):
                writer.write(whole[start : start + size])
    write_json(folder / CONFIG, _their_config(config))
    return [folder / FILE]


FORMAT = Format(
    NAME,
    recognise=_recognise,
    open=_open,
    without_iterations="a file of UER-py",
    writer=Writer(
        write=_write,
        size=_size,
        holds={
            "n_inner": ANY,
            "activation_function": (*TANH_GELU, *ACTIVATIONS.values()),
            "layer_norm": (UER,),
            "layer_norm_epsilon": ANY,
            "scale_attn_weights": ANY,
            "tie_word_embeddings": ANY,
        },
        options=(
            WriteOption(
                "uer_layer_norm",
                "uer: the model computes the same; standard: layer norms keep their bits",
                default=UER,
                choices=LAYER_NORMS,
                is_shared=True,
            ),
        ),
        layer_norm=UER,
        save_tokenizer=save_for_uer,
        notes=_notes,
    ),
)
