"""The table of formats: a row each, light enough for ``--help``, which needs nothing but Python's standard library.

A format's own module, with its ``Format``, is imported when the format is needed.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

from support.errors import ConvertError
from support.messages import list_names, short_repr

if TYPE_CHECKING:
    from convert.formats.format import Format


@dataclasses.dataclass(frozen=True)
class WriterCommand:
    """A command that writes a format.

    Attributes:
        name: as it is typed.
        help: one line for the list of commands.
        description: what the command's own help begins with.
        examples: command lines; ``{command}`` stands for the program and the command.
        layouts: names of formats, of which ``--layout`` chooses one, the first by default; empty where there is no
            choice.
    """

    name: str
    help: str
    description: str
    examples: tuple[str, ...]
    layouts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FormatRow:
    """A format, as far as a table of all formats has to know it.

    Attributes:
        name: as ``--from`` takes it, and manifests name it.
        object: where the ``Format`` is, as ``module:name``.
        on_disk: what such a checkpoint is, for the documents.
        commands: the commands that write the format.
        also_written_by: commands that write it, too, and whose row is elsewhere.
        aliases: other names of the format.
        is_fallback: whether another format that recognises the same path is taken instead of this one.
        tensor_names: a regular expression of whole parts with which the names of its tensors begin, for a format whose
            weights are a state dict; what stands in front of them in a file is taken off (``weights.known_tensors``).
    """

    name: str
    object: str
    on_disk: str
    commands: tuple[WriterCommand, ...] = ()
    also_written_by: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    is_fallback: bool = False
    tensor_names: str = ""

    def table_line(self) -> str:
        """Return the format's line in the table of ``docs/formats.md``."""
        commands = (*(command.name for command in self.commands), *self.also_written_by)
        return f"| `{self.name}` | {self.on_disk} | {', '.join(f'`{command}`' for command in commands)} |"

    def load(self) -> Format:
        """Import the format's module and return the ``Format``."""
        module, _, name = self.object.partition(":")
        format: Format = getattr(importlib.import_module(module), name)
        return format


_LAYOUTS = ("cpm", "megatron-lm")

_MANIFEST = "manifest.json keeps the SHA-256 of all files; the command check compares the files with it."

_TO_MEGATRON = f"""\
Writes a checkpoint split over another number of model-parallel ranks: as CPM's programs load it or, with --layout
megatron-lm, newer Megatron-LM. Weights keep their bits unless --dtype changes their type. Optimizer and random states
are left out. {_MANIFEST}
"""
_TO_HUGGINGFACE = f"""\
Writes a checkpoint as GPT2LMHeadModel of transformers, which vLLM and the converters of llama.cpp and CTranslate2 read,
too. Weights keep their bits unless --dtype changes their type. The end of text and the padding in config.json are those
of the tokenizer, so that generation stops where it should. {_MANIFEST}
"""
_TO_UER = f"""\
Writes a checkpoint as GPT-2 of UER-py, for its scripts and for training with it. Weights keep their bits unless --dtype
changes their type, except layer norms: those of UER-py divide by another deviation. That is taken into their weights,
so that the model computes the same. With --uer-layer-norm standard they keep their bits, too, as UER-py's own scripts
do it. {_MANIFEST}
"""
_TO_OPENAI = f"""\
Writes a checkpoint as openai/gpt-2 and gpt-2-simple load it, to train it or to generate with it. Their variables are
float32: float16 and bfloat16 weights are widened, which loses nothing. Another --dtype is for programs that look at the
files themselves. A model with another activation or epsilon, or with a head of its own, is refused. {_MANIFEST}
"""

ROWS: tuple[FormatRow, ...] = (
    FormatRow(
        "megatron",
        "convert.formats.megatron.cpm:FORMAT",
        on_disk="CPM's releases and DeepSpeed (`80000/mp_rank_00_model_states.pt`), plain Megatron of 2020 "
        "(`iter_0080000/mp_rank_00/model_optim_rng.pt`), any number of ranks",
        commands=(
            WriterCommand(
                "to-megatron",
                "write Megatron shards for any number of ranks",
                _TO_MEGATRON,
                ("{command} --checkpoint demo/song-ci --heads 4 --tensor-parallel 4 --output out/song-ci-4",),
                _LAYOUTS,
            ),
            WriterCommand(
                "reshard",
                "rewrite a checkpoint for a different number of ranks: to-megatron",
                _TO_MEGATRON,
                ("{command} --checkpoint demo/song-ci --heads 4 --tensor-parallel 1 --output out/song-ci-1",),
                _LAYOUTS,
            ),
        ),
        aliases=("cpm",),
        is_fallback=True,
        tensor_names=r"word_embeddings|position_embeddings|transformer\.layers\.\d+|transformer\.final_layernorm",
    ),
    FormatRow(
        "megatron-lm",
        "convert.formats.megatron.megatron_lm:FORMAT",
        on_disk="newer Megatron-LM: `language_model` inside, `checkpoint_version` 0, 1.0, 2.0, 3.0, `mp_rank_TT` or "
        "`mp_rank_TT_PPP`, with or without `args`",
        also_written_by=("to-megatron --layout megatron-lm",),
        tensor_names=r"language_model\.\w+|embedding\.(?:word|position)_embeddings|encoder\.layers\.\d+"
        r"|decoder\.(?:layers\.\d+|final_layernorm)|output_layer|word_embeddings_for_head",
    ),
    FormatRow(
        "huggingface",
        "convert.formats.huggingface:FORMAT",
        on_disk="a folder with `config.json` and `model.safetensors`, its index and shards, or `pytorch_model.bin`, or "
        "`tf_model.h5`",
        commands=(
            WriterCommand(
                "to-huggingface",
                "write a Hugging Face folder for transformers",
                _TO_HUGGINGFACE,
                (
                    "{command} --checkpoint demo/song-ci --tokenizer demo/song-ci/tokenizer --heads 4 "
                    "--output out/song-ci-hf",
                ),
            ),
            WriterCommand(
                "tf-to-pytorch",
                "the same as to-huggingface",
                _TO_HUGGINGFACE,
                ("{command} --checkpoint out/song-ci --output out/song-ci-pytorch",),
            ),
        ),
        tensor_names=r"wte|wpe|h\.\d+|ln_f|lm_head",
    ),
    FormatRow(
        "nanogpt",
        "convert.formats.nanogpt:FORMAT",
        on_disk="nanoGPT's `ckpt.pt`, also minGPT's and build-nanogpt's: linear layers `[out, in]`, alone or in a dict",
        tensor_names=r"wte|wpe|h\.\d+|ln_f|lm_head",
    ),
    FormatRow(
        "uer",
        "convert.formats.uer:FORMAT",
        on_disk="UER-py's `.bin` file, alone or with its `config.json`",
        commands=(
            WriterCommand(
                "to-uer",
                "write UER-py's model.bin",
                _TO_UER,
                ("{command} --checkpoint demo/song-ci --heads 4 --output out/song-ci-uer",),
            ),
        ),
        tensor_names=r"embedding\.(?:word|pos|word_embedding|position_embedding|layer_norm|seg|sinusoidalpos)"
        r"|encoder\.(?:transformer|layer_norm)|target",
    ),
    FormatRow(
        "openai-tf1",
        "convert.formats.openai_tf1:FORMAT",
        on_disk="`hparams.json` and a TensorFlow 1 checkpoint (`model.ckpt` or gpt-2-simple's `model-1000`)",
        commands=(
            WriterCommand(
                "to-openai",
                "write OpenAI's TensorFlow 1 checkpoint",
                _TO_OPENAI,
                ("{command} --checkpoint demo/song-ci --heads 4 --output out/song-ci-openai",),
            ),
        ),
    ),
    FormatRow(
        "savedmodel",
        "convert.formats.savedmodel:FORMAT",
        on_disk="a SavedModel that gpt2-savedmodel wrote",
        also_written_by=("to-tf", "pytorch-to-tf", "tf-to-tf"),
    ),
    FormatRow(
        "tf2-port",
        "convert.formats.tf2_port:FORMAT",
        on_disk="a SavedModel of CPM-LM-TF2, the first port of CPM to TensorFlow 2, or weights that its model saved",
        tensor_names=r"embedding\.embeddings|position_embedding\w*|LayerNorm_final_norm"
        r"|layer\d+\.(?:attention|intermediate|output|LayerNorm_mlp_ln\d)",
    ),
)

NAMES: tuple[str, ...] = tuple(row.name for row in ROWS)


def find_row(name: str) -> FormatRow:
    """Look up a format by its name or one of its aliases.

    Raises:
        ConvertError: no format is called so.
    """
    for row in ROWS:
        if name == row.name or name in row.aliases:
            return row
    raise ConvertError(f"{short_repr(name)}: not a format: expected one of {list_names(NAMES, 99)}")
