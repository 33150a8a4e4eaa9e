"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Where the source of a conversion is."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder with latest_checkpointed_iteration.txt, or one iteration's folder, or a single .pt file",
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """What a Megatron checkpoint's files do not say: the number of heads, and which iteration is meant."""
    parser.add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="number of attention heads, which the files do not hold; known for hidden sizes 768, 1024 and 2560",
    )
    parser.add_argument(
        "--iteration", metavar="N|release", help="which iteration, instead of the one that the tracker file names"
    )
