"""``to-huggingface``: a checkpoint in, a folder for transformers out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from convert import conversion as copying
from convert.formats.huggingface import HEADER_BYTES, write_huggingface
from convert.formats.tokenizer_files import add_tokenizer_option, save_for_huggingface, tokenizer_for, tokens_for
from convert.formats.uer_layer_norm import with_layer_norm
from convert.source import open_source
from convert.tensors import DType
from tf_model.config import STANDARD

DESCRIPTION = """\
Writes a checkpoint as transformers' GPT2LMHeadModel, which vLLM and the converters of llama.cpp and CTranslate2 take,
too. Weights keep their bits, or become another type (--dtype). The end of text and the padding in config.json are the
tokenizer's, so that generation stops where it should. The SHA-256 of all files is kept in manifest.json; the command
check compares them with it.
"""
EXAMPLES = ("{command} --checkpoint demo/song-ci --tokenizer demo/song-ci/tokenizer --heads 4 --output out/song-ci-hf",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    copying.add_arguments(parser)
    add_tokenizer_option(parser, "to be put beside the weights")


def run(args: argparse.Namespace) -> None:
    checkpoint = with_layer_norm(open_source(args), STANDARD)
    tokenizer = tokenizer_for(args.tokenizer, checkpoint)
    tokens = tokens_for(args.tokenizer, tokenizer, checkpoint)
    dtypes = copying.dtypes_of(checkpoint, args.dtype)

    def write(folder: Path, dtypes: Mapping[str, DType], read: copying.Read) -> list[Path]:
        files = write_huggingface(folder, checkpoint, dtypes, read, tokens)
        return files if tokenizer is None else [*files, *save_for_huggingface(tokenizer, folder)]

    copying.copy(
        args, checkpoint, dtypes, write,
        size=copying.weight_bytes(checkpoint, dtypes) + HEADER_BYTES,
        options={"tokenizer": tokenizer is not None},
        inputs=[args.tokenizer] if args.tokenizer else [],
    )  # fmt: skip
