"""OpenAI's GPT-2: a folder with a checkpoint of TensorFlow 1, as gpt-2 and gpt-2-simple have it.

    hparams.json                         n_vocab, n_ctx, n_embd, n_head, n_layer
    checkpoint                           text: model_checkpoint_path: "model.ckpt", or "model-1000" after a training
    model.ckpt.index
    model.ckpt.data-00000-of-00001
    encoder.json, vocab.bpe              the tokenizer

Sources: ``src/model.py`` of openai/gpt-2, ``gpt_2.py`` of gpt-2-simple. Linear layers are convolutions of width 1, with
weights ``[1, in, out]``. Names are like ``model/h0/attn/c_attn/w``. The maths has one form: the tanh form of GELU, an
epsilon of 1e-5, a feed-forward layer of 4 times the hidden size, the token embedding as output matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.heads import resolve_head_count
from convert.formats.huggingface import read_json, write_json
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    check_tensors,
    copy_transposed,
    copy_whole,
    count_layers,
    matrix_shape,
)
from convert.formats.tf_checkpoint import INDEX, open_bundle, prefix_of, prefixes
from convert.formats.tokenizer_files import has_tokenizer
from convert.formats.uer_layer_norm import advice
from convert.tensors import Array, DType, transposed_blocks
from support.errors import CheckpointError, ConvertError
from support.messages import list_names, short_repr
from support.tensorflow_runtime import quiet_stderr
from tf_model.config import STANDARD, ConfigError, GPT2Config
from tokenization.special_tokens import SpecialTokens

NAME = "openai-tf1"
HPARAMS, TRACKER, MODEL = "hparams.json", "checkpoint", "model.ckpt"
HEADER_BYTES = 1 << 22
"""Room for the index, the sizes and a tokenizer."""
_VOCABULARY = 50_257
"""Of all models that OpenAI has published; the last piece is the end of a text."""
_TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_EPSILON = 1e-5
_WTE, _WPE, _LAYERS = "model/wte", "model/wpe", "model/h"
_LINEAR = re.compile(r"h\.\d+\.(attn|mlp)\.c_\w+\.weight")
_TRACKED = re.compile(r"""^\s*model_checkpoint_path\s*:\s*(?:"((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.)*)')""", re.M)
_STEP = re.compile(r"-(\d{1,15})$", re.ASCII)


def find(path: Path) -> tuple[Path, str | None] | None:
    """The folder that ``path`` stands for, and the checkpoint in it that ``path`` names; None for the folder's own.

    A path is the folder, one of its files, or what TensorFlow calls a checkpoint: ``folder/model.ckpt``, which is the
    beginning of the names of some files and no file itself.
    """
    if path.is_dir():
        return (path, None) if (path / TRACKER).is_file() or prefixes(path) else None
    if path.is_file():
        if path.name in (HPARAMS, TRACKER):
            return path.parent, None
        name = prefix_of(path)
        return None if name is None else (path.parent, name)
    return (path.parent, path.name) if path.name and path.with_name(path.name + INDEX).is_file() else None


def open_openai_tf1(
    path: Path, *, n_head: int | None = None, iteration: str | None = None, allow_unknown_heads: bool = False
) -> Checkpoint:
    """The checkpoint at ``path``, as ``find`` takes it; see ``open_megatron``.

    Args:
        iteration: takes ``model-<iteration>``, whatever the file ``checkpoint`` says.

    Raises:
        CheckpointError: anything that keeps the files from being one whole model.
    """
    try:
        found = find(path)
        if found is None:
            raise CheckpointError(f"{path}: expected {HPARAMS}, {TRACKER} and {MODEL}{INDEX}: not a folder of OpenAI's")
        folder, given = found
        name = _choose(folder, given, iteration)
        values = read_json(folder / HPARAMS) if (folder / HPARAMS).exists() else {}
        sources, files = open_bundle(folder / name)
        return _open(folder, name, values, sources, files, n_head, allow_unknown_heads)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def _choose(folder: Path, given: str | None, iteration: str | None) -> str:
    """The name of the checkpoint to read, of those in ``folder``."""
    names = sorted(prefixes(folder), key=lambda name: (_step(name) or 0, name))
    there = f"there is {list_names((name + INDEX for name in names), 9)}" if names else f"there is no file *{INDEX}"
    if iteration is not None:
        if not (iteration.isascii() and iteration.isdecimal() and len(iteration) < 16):
            raise CheckpointError(f"{folder}: --iteration {short_repr(iteration)}: expected a number, as of model-1000")
        wanted = [name for name in names if _step(name) == int(iteration) and given in (None, name)]
        if len(wanted) != 1:
            only = f"of {given} " * (given is not None)
            problem = "two checkpoints of" if wanted else "no"
            raise CheckpointError(f"{folder}: {problem} iteration {int(iteration)} {only}here: {there}")
        return wanted[0]
    if given is not None:
        return given
    tracker = folder / TRACKER
    if tracker.is_file():
        name = _tracked(tracker)
        if name not in names:
            raise CheckpointError(
                f"{tracker}: names {short_repr(name)}, but {short_repr(name + INDEX)} is missing: {there}; "
                "get all files, or "
                "give --iteration"
            )
        return name
    if len(names) != 1:
        advice = f": give one of them instead of the folder, or write which into a file {TRACKER}" if names else ""
        raise CheckpointError(f"{folder}: no file {TRACKER}, and {there}{advice}")
    return names[0]


def _step(name: str) -> int | None:
    match = _STEP.search(name)
    return int(match[1]) if match else None


def _tracked(tracker: Path) -> str:
    """The name in a file ``checkpoint``, without the folder of the machine where it was written.

    It is a protocol buffer as text, whose strings have escapes for all bytes that are not ASCII.
    """
    with tracker.open("rb") as file:
        text = file.read(1 << 20).decode("latin-1")
    match = _TRACKED.search(text)
    try:
        found = match and (match[1] or match[2] or "")
        name = re.split(r"[/\\]", found.encode("latin-1").decode("unicode_escape"))[-1] if found else ""
        name = name.encode("latin-1").decode("utf-8")
    except ValueError:
        name = ""
    if not name or "\0" in name:
        raise CheckpointError(
            f'{tracker}: expected a line model_checkpoint_path: "{MODEL}", found {short_repr(text)}: not written by '
            f"TensorFlow; remove it where there is one file *{INDEX} only, or give --iteration"
        )
    return name


def _open(
    folder: Path, name: str, values: Mapping[str, Any], sources: Mapping[str, LazyTensor], files: list[Path],
    n_head: int | None, allow_unknown_heads: bool,
) -> Checkpoint:  # fmt: skip
    where, index = folder / HPARAMS, folder / (name + INDEX)
    vocab_size, n_embd = matrix_shape(index, sources, _WTE)
    n_positions, _ = matrix_shape(index, sources, _WPE)
    n_layer = count_layers(index, sources, _LAYERS)
    sizes = {
        "n_vocab": (vocab_size, _WTE), "n_ctx": (n_positions, _WPE), "n_embd": (n_embd, _WTE),
        "n_layer": (n_layer, f"{_LAYERS}*"),
    }  # fmt: skip
    for key, (size, tensor) in sizes.items():
        said = values.get(key)
        if said is not None and said != size:
            raise CheckpointError(f"{where}: {key} is {short_repr(said)}, but {tensor} of {index.name} have {size}")
    stored = values.get("n_head")
    if stored is not None and type(stored) is not int:
        raise CheckpointError(f"{where}: n_head is {short_repr(stored)}: expected a number")
    # Without sizes it is not their file that a message is about.
    heads = resolve_head_count(where if values else index, n_embd, 1, n_head, allow_unknown_heads, stored)
    config = GPT2Config(vocab_size, n_positions, n_embd, n_layer, heads)
    expected = {_name(canonical): _shape(canonical, shape) for canonical, shape in config.tensor_shapes().items()}

    def ignored(found: str) -> bool:
        """What a training keeps beside the weights: ``model/wte/Adam``, ``beta1_power``."""
        ancestors = (found[:end] for end, letter in enumerate(found) if letter == "/")
        return not found.startswith("model/") or any(ancestor in expected for ancestor in ancestors)

    check_tensors(index, sources, ExpectedTensors(expected, ignored))
    recipes = {
        canonical: TensorRecipe([sources[_name(canonical)]], _assemble(canonical))
        for canonical in config.tensor_shapes()
    }
    step = _step(name)
    info = CheckpointInfo(
        NAME,
        tuple(files),
        details={} if step is None else {"iteration": step},
        left_out=tuple(dict.fromkeys(other.rpartition("/")[2] for other in sources if other not in expected)),
    )
    return TensorMapCheckpoint(
        config,
        recipes,
        info,
        tokens=SpecialTokens(vocab_size - 1, vocab_size - 1) if vocab_size == _VOCABULARY else None,
        tokenizer=folder if has_tokenizer(folder) else None,
    )


def _name(canonical: str) -> str:
    """OpenAI's name of a canonical tensor."""
    *path, kind = canonical.removeprefix("h.").split(".")
    layer = "h" * canonical.startswith("h.")
    if path[0] in ("wte", "wpe"):
        return f"model/{path[0]}"
    letter = "b" if kind == "bias" else "g" if path[-1].startswith("ln_") else "w"
    return f"model/{layer}{'/'.join(path)}/{letter}"


def _assemble(canonical: str) -> Callable[[Sequence[Array], Array], None]:
    return copy_transposed if _LINEAR.fullmatch(canonical) else copy_whole


def _shape(canonical: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape[::-1]) if _LINEAR.fullmatch(canonical) else shape


def check_config(config: GPT2Config) -> None:
    """Checks that the format can hold such a model: its files say the sizes only, its code has the rest.

    Raises:
        ConvertError: it cannot.
    """
    for key, found, needed in (
        ("n_inner", config.n_inner, 4 * config.n_embd),
        ("activation_function", config.activation_function, _TANH),
        ("layer_norm_epsilon", config.layer_norm_epsilon, _EPSILON),
        ("layer_norm", config.layer_norm, STANDARD),
        ("scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx, False),
        ("tie_word_embeddings", config.tie_word_embeddings, True),
    ):
        allowed = needed if isinstance(needed, tuple) else (needed,)
        if found not in allowed:
            raise ConvertError(
                f"{key} is {short_repr(found)}: a checkpoint of OpenAI's can only have "
                f"{' or '.join(map(str, allowed))}: "
                f"{advice(config)}"
            )


def write_openai_tf1(
    folder: Path, checkpoint: Checkpoint, dtypes: Mapping[str, DType], read: Callable[[str, DType], Array]
) -> list[Path]:
    """Writes ``hparams.json``, ``checkpoint`` and the two files ``model.ckpt.*`` into ``folder``; gives the two.

    The graph, ``model.ckpt.meta``, is not written: no program that loads such a folder reads it.

    Args:
        dtypes: of each tensor. Float32 is what all programs of this format expect.

    Raises:
        ConvertError: the format cannot hold this model.
        OSError: a file cannot be written. What ``read`` raises comes through, too.
    """
    config = checkpoint.config
    check_config(config)
    with quiet_stderr():  # takes seconds: only once the input is known to be good
        from exports.tensor_bundle.writer import BundleWriter

    with BundleWriter(folder / MODEL) as bundle:
        for name, shape in config.tensor_shapes().items():
            values = read(name, dtypes[name])
            blocks = transposed_blocks(values) if _LINEAR.fullmatch(name) else (values,)
            bundle.add_blocks(_name(name), dtypes[name], _shape(name, shape), blocks)
        bundle.finish()
    sizes = {
        "n_vocab": config.vocab_size, "n_ctx": config.n_positions, "n_embd": config.n_embd, "n_head": config.n_head,
        "n_layer": config.n_layer,
    }  # fmt: skip
    write_json(folder / HPARAMS, sizes)
    keys = ("model_checkpoint_path", "all_model_checkpoint_paths")
    (folder / TRACKER).write_text("".join(f'{key}: "{MODEL}"\n' for key in keys), "utf-8")
    return [bundle.data, folder / (MODEL + INDEX)]
