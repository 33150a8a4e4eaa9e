"""Options that several commands have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from convert.formats.format import WriteOption
from convert.formats.registry import CheckpointSpec
from convert.formats.rows import NAMES, ROWS
from tf_model.config import ACTIVATIONS, LAYER_NORMS, UER
from tokenization import KINDS

CHECKPOINT_HELP = f"folder or file of a checkpoint of any format: {', '.join(NAMES)}"


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for the path of the checkpoint."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help=CHECKPOINT_HELP)


def add_format_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="from_format",
        choices=(*NAMES, *(alias for row in ROWS for alias in row.aliases)),
        metavar="FORMAT",
        help=f"format of the checkpoint, if it is not recognised: {', '.join(NAMES)}",
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add options for what the files of a checkpoint may not say: format, number of heads, iteration, layer norm."""
    add_format_option(parser)
    parser.add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="number of attention heads, if the files do not record it; known for hidden sizes 768, 1024 and 2560",
    )
    parser.add_argument(
        "--iteration",
        metavar="N|release",
        help="which iteration, instead of the one that the tracker file names (OpenAI: model-N)",
    )
    parser.add_argument(
        "--uer-layer-norm",
        choices=LAYER_NORMS,
        default=UER,
        help="UER-py's layer norms differ from all others by about 0.07 %%. uer: compute what UER-py does (default); "
        "standard: take the weights as they are for the usual layer norms, as UER-py's own scripts do",
    )
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add options for what the model is, where the files do not say it: vocabulary, activation, an adapter."""
    parser.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="number of tokens, where the files have more rows, which pad the vocabulary: those are left out",
    )
    parser.add_argument(
        "--activation-function",
        choices=ACTIVATIONS,
        help="activation, where the files do not record it, such as those of nanoGPT, or record another one",
    )
    parser.add_argument(
        "--adapter", type=Path, metavar="DIR", help="LoRA adapter of peft's to merge into the checkpoint"
    )


def checkpoint_spec(args: argparse.Namespace) -> CheckpointSpec:
    """Return the checkpoint that the options of ``add_checkpoint_option`` and ``add_source_options`` describe."""
    return CheckpointSpec(
        args.checkpoint,
        args.heads,
        args.iteration,
        args.from_format,
        args.uer_layer_norm,
        args.vocab_size,
        args.activation_function,
        args.adapter,
    )


def add_write_option(parser: argparse.ArgumentParser, option: WriteOption, only: str = "") -> None:
    """Add an option of a format's writer; ``only``, in front of its help, is the condition under which it counts."""
    default = "" if option.default is None else f" (default: {option.default})"
    parser.add_argument(
        option.flag,
        type=option.kind,
        required=option.required,
        choices=option.choices or None,
        metavar=option.metavar,
        help=f"{only}{option.help}{default}".replace("%", "%%"),
    )


def add_tokenizer_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="folder with the tokenizer's own files, or one of them (CPM: chinese_vocab.model; BERT: vocab.txt; GPT-2: "
        "vocab.json and merges.txt; tokenizer.json and SentencePiece models of any kind), "
        f"{what}; default: the checkpoint's own, where its format has one",
    )
    parser.add_argument(
        "--tokenizer-kind",
        choices=KINDS,
        help="how CPM's SentencePiece model is read: as CPM's programs do, with jieba's words (cpm), or as "
        "CpmTokenizer of transformers does (cpm-transformers); default: as tokenizer_config.json says, else cpm",
    )


def print_notes(notes: Iterable[str]) -> None:
    """Print what a user should know on stderr, a line each."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
