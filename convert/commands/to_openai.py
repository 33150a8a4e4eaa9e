"""``to-openai``: a checkpoint in, a folder for OpenAI's GPT-2 and for gpt-2-simple out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from convert import conversion as copying
from convert.formats.openai_tf1 import HEADER_BYTES, check_config, write_openai_tf1
from convert.formats.tokenizer_files import add_tokenizer_option, save_for_openai, tokenizer_for
from convert.formats.uer_layer_norm import with_layer_norm
from convert.source import open_source
from convert.tensors import DType
from support.messages import pluralize
from tf_model.config import STANDARD
from tokenization import ByteBPETokenizer

DESCRIPTION = """\
Writes a checkpoint as openai/gpt-2 and gpt-2-simple load it, to be trained on or to generate there. Their variables are
float32: float16 and bfloat16 weights are widened, which loses nothing; another --dtype is for programs that look at the
files themselves. The format has one form of the maths: a model with another activation, epsilon, or a head of its own
is refused. The SHA-256 of all files is kept in manifest.json; the command check compares them with it.
"""
EXAMPLES = ("{command} --checkpoint demo/song-ci --heads 4 --output out/song-ci-openai",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    copying.add_arguments(parser, default="float32")
    add_tokenizer_option(parser, "to be put beside the weights")


def run(args: argparse.Namespace) -> None:
    checkpoint = with_layer_norm(open_source(args), STANDARD)
    check_config(checkpoint.config)
    tokenizer = tokenizer_for(args.tokenizer, checkpoint)
    dtypes = copying.dtypes_of(checkpoint, args.dtype)

    def write(folder: Path, dtypes: Mapping[str, DType], read: copying.Read) -> list[Path]:
        wide = [name for name, own in checkpoint.dtypes.items() if own.itemsize > dtypes[name].itemsize]
        if wide and not args.quiet:
            print(f"note: {pluralize(len(wide), 'tensor')} of a wider type rounded to {args.dtype}", file=sys.stderr)
        narrow = {own.name: None for name, own in checkpoint.dtypes.items() if own.itemsize < dtypes[name].itemsize}
        if narrow and not args.quiet:
            print(f"note: {' and '.join(narrow)} weights are widened to {args.dtype}: same values", file=sys.stderr)
        if tokenizer is not None and not isinstance(tokenizer, ByteBPETokenizer) and not args.quiet:
            print("note: OpenAI's code knows byte-level BPE only: the vocabulary is copied as it is", file=sys.stderr)
        files = write_openai_tf1(folder, checkpoint, dtypes, read)
        return files if tokenizer is None else [*files, *save_for_openai(tokenizer, folder)]

    copying.copy(
        args, checkpoint, dtypes, write,
        size=copying.weight_bytes(checkpoint, dtypes) + HEADER_BYTES,
        options={"tokenizer": tokenizer is not None},
        inputs=[args.tokenizer] if args.tokenizer else [],
    )  # fmt: skip
