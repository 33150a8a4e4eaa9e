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

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from convert.checkpoint import Checkpoint, CheckpointInfo
from convert.formats.candidate import Candidate
from convert.formats.format import Format, OpenOptions, Read, Writer, WriteRequest
from convert.formats.tensor_map import (
    ExpectedTensors,
    LazyTensor,
    TensorMapCheckpoint,
    TensorRecipe,
    check_sizes,
    check_tensors,
    concat_transposed,
    copy_whole,
    count_layers,
    is_linear,
    matrix_shape,
    stored_heads,
)
from convert.formats.tf_checkpoint import INDEX, open_bundle, prefix_of, prefixes
from convert.formats.tf_variables import has_object_graph
from convert.formats.tokenizer_files import has_tokenizer, save_for_openai
from convert.tensors import transposed_blocks
from support.errors import CheckpointError
from support.files import UTF16, is_utf16, read_json_object, write_json
from support.messages import list_names, pluralize, short_repr
from support.tensorflow_runtime import quiet_stderr
from tf_model.config import GPT2Config
from tokenization import ByteBPETokenizer
from tokenization.special_tokens import SpecialTokens

NAME = "openai-tf1"
HPARAMS, TRACKER, MODEL = "hparams.json", "checkpoint", "model.ckpt"
_HEADER_BYTES = 1 << 22
"""Room for the index, the sizes and a tokenizer."""
_VOCABULARY = 50_257
"""Of all models that OpenAI has published; the last piece is the end of a text."""
_WTE, _WPE, _LAYERS = "model/wte", "model/wpe", "model/h"
_TRACKED = re.compile(r"""^\s*model_checkpoint_path\s*:\s*(?:"((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.)*)')""", re.M)
_STEP = re.compile(r"-(\d{1,15})$", re.ASCII)


def _find(candidate: Candidate) -> tuple[Path, str | None] | None:
    """Return the folder that a candidate stands for, and the checkpoint in it that it names; None for the folder's own.

    A path is the folder, one of its files, or what TensorFlow calls a checkpoint: ``folder/model.ckpt``, which is the
    beginning of the names of some files and no file itself.
    """
    path = candidate.path
    if candidate.is_dir:
        return (path, None) if (path / TRACKER).is_file() or prefixes(candidate.entries()) else None
    if candidate.is_file:
        if path.name in (HPARAMS, TRACKER):
            return path.parent, None
        name = prefix_of(path)
        return None if name is None else (path.parent, name)
    return (path.parent, path.name) if path.name and path.with_name(path.name + INDEX).is_file() else None


def _recognise(candidate: Candidate) -> bool:
    """Whether there is a checkpoint of TensorFlow, and not one of TensorFlow 2's alone, which has no names."""
    found = _find(candidate)
    if found is None:
        return False
    folder, given = found
    names = prefixes(candidate.entries(folder)) if given is None else [given]
    return not names or not all(has_object_graph(folder / name) for name in names)


def _open(candidate: Candidate, options: OpenOptions) -> Checkpoint:
    found = _find(candidate)
    if found is None:
        wanted = f"{HPARAMS}, {TRACKER} and {MODEL}{INDEX}"
        raise CheckpointError(f"{candidate.path}: expected {wanted}: not a folder of OpenAI's")
    folder, given = found
    name = _choose(folder, candidate.entries(folder), given, options.iteration)
    tensors, files = open_bundle(folder / name)
    config = _config(folder / HPARAMS, folder / (name + INDEX), tensors, options)
    shapes = config.tensor_shapes()
    expected = {_name(canonical): _shape(canonical, shape) for canonical, shape in shapes.items()}

    def ignored(found: str) -> bool:
        """Return what a training keeps next to the weights: ``model/wte/Adam``, ``beta1_power``."""
        ancestors = (found[:end] for end, letter in enumerate(found) if letter == "/")
        return not found.startswith("model/") or any(ancestor in expected for ancestor in ancestors)

    check_tensors(folder / (name + INDEX), tensors, ExpectedTensors(expected, ignored))
    step = _step(name)
    info = CheckpointInfo(
        NAME,
        tuple(files),
        details={} if step is None else {"iteration": step},
        left_out=tuple(dict.fromkeys(other.rpartition("/")[2] for other in tensors if other not in expected)),
    )
    recipes = {
        canonical: TensorRecipe([tensors[_name(canonical)]], concat_transposed if is_linear(canonical) else copy_whole)
        for canonical in shapes
    }
    end = config.vocab_size - 1
    return TensorMapCheckpoint(
        config,
        recipes,
        info,
        tokens=SpecialTokens(end, end) if config.vocab_size == _VOCABULARY else None,
        tokenizer=folder if has_tokenizer(folder) else None,
    )


def _config(where: Path, index: Path, tensors: Mapping[str, LazyTensor], options: OpenOptions) -> GPT2Config:
    """Return the sizes by the tensors, heads by ``hparams.json``, which must not say other sizes."""
    values = read_json_object(where, CheckpointError) if where.exists() else {}
    vocab_size, n_embd = matrix_shape(index, tensors, _WTE)
    n_positions, _ = matrix_shape(index, tensors, _WPE)
    n_layer = count_layers(index, tensors, _LAYERS)
    check_sizes(where, values, {"n_vocab": vocab_size, "n_embd": n_embd}, f"{_WTE} of {index.name}")
    check_sizes(where, values, {"n_ctx": n_positions}, f"{_WPE} of {index.name}")
    check_sizes(where, values, {"n_layer": n_layer}, f"{_LAYERS}* of {index.name}")
    # Without hparams.json, a message is about the file that there is.
    heads = options.heads(where if values else index, n_embd, stored=stored_heads(where, values, "n_head"))
    return GPT2Config(vocab_size, n_positions, n_embd, n_layer, heads)


def _choose(folder: Path, entries: Sequence[Path], given: str | None, iteration: str | None) -> str:
    """Return the name of the checkpoint to read, of those in ``folder``: the one given, tracked, or alone there."""
    names = sorted(prefixes(entries), key=lambda name: (_step(name) or 0, name))
    tracker = folder / TRACKER
    if given is not None:
        return given if iteration is None else _of_iteration(folder / given, [given], iteration)
    if iteration is not None:
        return _of_iteration(folder, names, iteration)
    if tracker.is_file():
        name = _tracked(tracker)
        if name not in names:
            problem = f"names {short_repr(name)}, but {short_repr(name + INDEX)} is missing"
            raise CheckpointError(f"{tracker}: {problem}: {_there(names)}; get all files, or give --iteration")
        return name
    if len(names) != 1:
        advice = f": give one of them instead of the folder, or write which into a file {TRACKER}" if names else ""
        raise CheckpointError(f"{folder}: no file {TRACKER}, and {_there(names)}{advice}")
    return names[0]


def _of_iteration(where: Path, names: Sequence[str], iteration: str) -> str:
    """Return the one of ``names`` that is of an iteration."""
    if not (iteration.isascii() and iteration.isdecimal() and len(iteration) < 16):
        raise CheckpointError(f"{where}: --iteration {short_repr(iteration)}: expected a number, as of model-1000")
    wanted = [name for name in names if _step(name) == int(iteration)]
    if len(wanted) != 1:
        problem = "two checkpoints of" if wanted else "no"
        raise CheckpointError(f"{where}: {problem} iteration {int(iteration)} here: {_there(names)}")
    return wanted[0]


def _there(names: Sequence[str]) -> str:
    """Say which checkpoints there are, for a message."""
    return f"there is {list_names((name + INDEX for name in names), 9)}" if names else f"there is no file *{INDEX}"


def _step(name: str) -> int | None:
    match = _STEP.search(name)
    return int(match[1]) if match else None


def _tracked(tracker: Path) -> str:
    """Return the name in a file ``checkpoint``, without the folder of the machine where it was written.

    It is a protocol buffer as text, whose strings have escapes for all bytes that are not ASCII.
    """
    with tracker.open("rb") as file:
        content = file.read(1 << 20)
    if is_utf16(content):
        raise CheckpointError(f"{tracker}: {UTF16}")
    text = content.removeprefix(codecs.BOM_UTF8).decode("latin-1")
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


def _name(canonical: str) -> str:
    """OpenAI's name of a canonical tensor."""
    *path, kind = canonical.removeprefix("h.").split(".")
    layer = "h" * canonical.startswith("h.")
    if path[0] in ("wte", "wpe"):
        return f"model/{path[0]}"
    letter = "b" if kind == "bias" else "g" if path[-1].startswith("ln_") else "w"
    return f"model/{layer}{'/'.join(path)}/{letter}"


def _shape(canonical: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape[::-1]) if is_linear(canonical) else shape


def _notes(request: WriteRequest) -> Iterator[str]:
    written = {name: (own, request.dtypes[name]) for name, own in request.checkpoint.dtypes.items()}
    target = request.dtypes["wte.weight"].name
    rounded = sum(own.itemsize > new.itemsize for own, new in written.values())
    if rounded:
        yield f"{pluralize(rounded, 'tensor')} of a wider type rounded to {target}"
    widened = dict.fromkeys(own.name for own, new in written.values() if own.itemsize < new.itemsize)
    if widened:
        yield f"{' and '.join(widened)} weights are widened to {target}: same values"
    if request.tokenizer is not None and not isinstance(request.tokenizer, ByteBPETokenizer):
        yield "OpenAI's code knows byte-level BPE only: the vocabulary is copied as it is"


def _write(request: WriteRequest, folder: Path, read: Read) -> list[Path]:
    """Write ``hparams.json``, ``checkpoint`` and the two files ``model.ckpt.*``.

    The graph, ``model.ckpt.meta``, is not written: no program that loads such a folder reads it.
    """
    config, dtypes = request.checkpoint.config, request.dtypes
    with quiet_stderr():  # takes seconds: only once the input is known to be good
        from exports.tensor_bundle.writer import BundleWriter

    with BundleWriter(folder / MODEL) as bundle:
        for name, shape in config.tensor_shapes().items():
            values = read(name, dtypes[name])
            blocks = transposed_blocks(values) if is_linear(name) else (values,)
            bundle.add_blocks(_name(name), dtypes[name], _shape(name, shape), blocks)
        bundle.finish()
    sizes = {
        "n_vocab": config.vocab_size,
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
    }
    write_json(folder / HPARAMS, sizes)
    keys = ("model_checkpoint_path", "all_model_checkpoint_paths")
    (folder / TRACKER).write_text("".join(f'{key}: "{MODEL}"\n' for key in keys), "utf-8")
    return [bundle.data, folder / (MODEL + INDEX)]


FORMAT = Format(
    NAME,
    recognise=_recognise,
    open=_open,
    writer=Writer(
        write=_write,
        size=lambda request: request.weight_bytes + _HEADER_BYTES,
        default_dtype="float32",  # all programs of this format expect it
        save_tokenizer=save_for_openai,
        notes=_notes,
    ),
)
