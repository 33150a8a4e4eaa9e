"""``to-uer``: a checkpoint in, a ``.bin`` file of UER-py and its ``config.json`` out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from convert import conversion as copying
from convert.formats.tokenizer_files import add_tokenizer_option, save_for_uer, tokenizer_for
from convert.formats.uer import check_writable, uer_bytes, write_uer
from convert.formats.uer_layer_norm import with_layer_norm
from convert.source import open_source
from convert.tensors import DType
from tf_model.config import STANDARD, UER

DESCRIPTION = """\
Writes a checkpoint as UER-py's GPT-2, for its scripts and for training on with it. Weights keep their bits, or become
another type (--dtype), but for layer norms: UER-py's divide by another deviation, which is taken into their weights, so
that the model computes the same. With --uer-layer-norm standard they keep their bits, too, as UER-py's own scripts do
it. The SHA-256 of all files is kept in manifest.json; the command check compares them with it.
"""
EXAMPLES = ("{command} --checkpoint demo/song-ci --heads 4 --output out/song-ci-uer",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    copying.add_arguments(parser)
    add_tokenizer_option(parser, "to be put beside the weights")


def run(args: argparse.Namespace) -> None:
    checkpoint = with_layer_norm(open_source(args), UER, copy=args.uer_layer_norm == STANDARD)
    check_writable(checkpoint)
    tokenizer = tokenizer_for(args.tokenizer, checkpoint)
    dtypes = copying.dtypes_of(checkpoint, args.dtype)

    def write(folder: Path, dtypes: Mapping[str, DType], read: copying.Read) -> list[Path]:
        files = write_uer(folder, checkpoint, dtypes, read)
        return files if tokenizer is None else [*files, *save_for_uer(tokenizer, folder)]

    copying.copy(
        args, checkpoint, dtypes, write,
        size=uer_bytes(checkpoint.config, copying.weight_bytes(checkpoint, dtypes), dtypes["wte.weight"].itemsize),
        options={"tokenizer": tokenizer is not None, "uer_layer_norm": args.uer_layer_norm},
        inputs=[args.tokenizer] if args.tokenizer else [],
    )  # fmt: skip
