"""The table of formats: a row each, light enough for ``--help``, which needs nothing but Python's standard library.

A format's own module, with its ``FORMAT``, is imported when the format is needed.
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
        help: one line.
        layouts: names of formats, of which ``--layout`` chooses one, the first by default; empty where there is no
            choice.
    """

    name: str
    help: str
    layouts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FormatRow:
    """A format, as far as a table of all formats has to know it.

    Attributes:
        name: as ``--from`` takes it, and manifests name it.
        module: the module with the format's ``FORMAT``.
        on_disk: what such a checkpoint is, for the documents.
        looks_for: what a path has where it is recognised, for the message that nothing was.
        commands: the commands that write the format.
        aliases: other names of the format.
        is_fallback: whether another format that recognises the same path is taken instead of this one.
    """

    name: str
    module: str
    on_disk: str
    looks_for: str
    commands: tuple[WriterCommand, ...] = ()
    aliases: tuple[str, ...] = ()
    is_fallback: bool = False

    def load(self) -> Format:
        """Import the format's module and return its ``FORMAT``."""
        format: Format = importlib.import_module(self.module).FORMAT
        return format


_LAYOUTS = ("cpm", "megatron-lm")

ROWS: tuple[FormatRow, ...] = (
    FormatRow(
        "megatron",
        "convert.formats.megatron.cpm",
        on_disk="CPM's releases and DeepSpeed (`80000/mp_rank_00_model_states.pt`), plain Megatron of 2020 "
        "(`iter_0080000/mp_rank_00/model_optim_rng.pt`), any number of ranks",
        looks_for="latest_checkpointed_iteration.txt, mp_rank_* files, or a .pt file with 'module' or 'model' in it",
        commands=(
            WriterCommand(
                "to-megatron",
                "write Megatron shards, in CPM's layout or newer Megatron-LM's, for any number of ranks",
                _LAYOUTS,
            ),
            WriterCommand("reshard", "rewrite a checkpoint for a different number of ranks", _LAYOUTS),
        ),
        aliases=("cpm",),
        is_fallback=True,
    ),
    FormatRow(
        "megatron-lm",
        "convert.formats.megatron.megatron_lm",
        on_disk="newer Megatron-LM: `language_model` inside, `checkpoint_version` 0, 1.0, 2.0, 3.0, `mp_rank_TT` or "
        "`mp_rank_TT_PPP`, with or without `args`",
        looks_for="mp_rank_*/model_optim_rng.pt with a language_model in it",
    ),
    FormatRow(
        "huggingface",
        "convert.formats.huggingface",
        on_disk="a folder with `config.json` and `model.safetensors`, its index and shards, or `pytorch_model.bin`",
        looks_for="a folder with model.safetensors or pytorch_model.bin (or an index of them) and config.json",
        commands=(
            WriterCommand("to-huggingface", "write a Hugging Face folder: safetensors, config.json, tokenizer"),
            WriterCommand("tf-to-pytorch", "write a Hugging Face folder (to-huggingface under another name)"),
        ),
    ),
    FormatRow(
        "uer",
        "convert.formats.uer",
        on_disk="UER-py's `.bin` file, alone or with its `config.json`",
        looks_for="a .bin file with tensors named embedding.word... and encoder.transformer...",
        commands=(WriterCommand("to-uer", "write UER-py's format: model.bin, its config.json, tokenizer"),),
    ),
    FormatRow(
        "openai-tf1",
        "convert.formats.openai_tf1",
        on_disk="`hparams.json` and a TensorFlow 1 checkpoint (`model.ckpt` or gpt-2-simple's `model-1000`)",
        looks_for="a folder with hparams.json, checkpoint and model.ckpt.index",
        commands=(
            WriterCommand("to-openai", "write OpenAI's TensorFlow 1 checkpoint: model.ckpt, hparams.json, tokenizer"),
        ),
    ),
    FormatRow(
        "savedmodel",
        "convert.formats.savedmodel",
        on_disk="a SavedModel that gpt2-savedmodel wrote",
        looks_for="a folder with saved_model.pb that gpt2-savedmodel wrote",
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
