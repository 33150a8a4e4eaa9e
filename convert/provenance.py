"""The manifest and the model card of a SavedModel that was made from a checkpoint."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from convert import __version__
from convert.checkpoint import Checkpoint
from convert.parity import ParityReport
from convert.releases import release_name
from exports.assets import special_tokens
from exports.hashing import Hasher
from exports.manifest import MODEL_CARD, describe_file, write_manifest
from exports.model_card import model_card
from tokenization import Tokenizer

_LIBRARIES = ("tensorflow", "keras", "torch", "numpy", "sentencepiece", "jieba", "tokenizers")


def describe(
    folder: Path,
    checkpoint: Checkpoint,
    dtype: str,
    tokenizer: Tokenizer | None,
    hasher: Hasher,
    parity: ParityReport | None,
) -> None:
    """Writes the model card and, last of all, the manifest."""
    import tensorflow as tf

    report = parity.to_dict() if parity else None

    sources = {str(file.relative_to(_root(checkpoint.files))): describe_file(file, hasher) for file in checkpoint.files}
    release = release_name([entry.get("sha1", "") for entry in sources.values()])
    (folder / MODEL_CARD).parent.mkdir()
    card = model_card(
        checkpoint.config,
        dtype,
        source=release or f"a {checkpoint.format} checkpoint of {len(sources)} files",
        program=f"gpt2-savedmodel {__version__}",
        eos_token_id=special_tokens(tokenizer).eos_token_id,
        has_tokenizer=tokenizer is not None,
        parity=report,
    )
    (folder / MODEL_CARD).write_text(card, "utf-8")
    content = {
        "program": f"gpt2-savedmodel {__version__}",
        "source": {"format": checkpoint.format, "release": release, **checkpoint.details, "files": sources},
        "config": checkpoint.config.to_dict(),
        "options": {"dtype": dtype, "tokenizer": tokenizer is not None, "verify": parity is not None},
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("tensorflow", "keras", "torch", "numpy", "sentencepiece", "jieba", "tokenizers")
            },
        },
        "fingerprint": tf.saved_model.experimental.read_fingerprint(str(folder)).singleprint(),
        "parity": report,
    }
    write_manifest(folder, content, hasher)


def _root(files: list[Path]) -> Path:
    """The folder that the names of the files are told from."""
    return Path(os.path.commonpath([file.parent for file in files])).parent
