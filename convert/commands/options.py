"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

from convert.formats.registry import NAMES
from tf_model.config import LAYER_NORMS, UER

CHECKPOINT_HELP = (
    "a checkpoint of any format: a Hugging Face folder; UER-py's .bin file; OpenAI's folder with hparams.json and "
    "model.ckpt; a SavedModel of this program; of Megatron the folder with latest_checkpointed_iteration.txt, one "
    "iteration's folder, or a single .pt file"
)


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Where the source of a conversion is."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help=CHECKPOINT_HELP)


def add_format_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="from_format",
        choices=NAMES,
        metavar="FORMAT",
        help=f"format of the checkpoint, where it is not recognised: {', '.join(NAMES)}",
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """What the files of a checkpoint may not say: its format, the number of heads, and which iteration is meant."""
    add_format_option(parser)
    parser.add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="number of attention heads, where the files do not hold it; known for hidden sizes 768, 1024 and 2560",
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
        help="UER-py's layer norms differ from all others by 0.07 %% or so: uer computes what UER-py does (default), "
        "standard leaves the weights as they are and takes them for the usual ones, as UER-py's own scripts do",
    )
