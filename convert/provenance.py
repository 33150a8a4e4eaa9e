"""The manifest of what was made from a checkpoint, the model card of a SavedModel, and the releases of CPM."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from convert import __version__
from convert.checkpoint import TRAINED, Checkpoint, CheckpointInfo
from convert.output.hashing import Hasher
from convert.output.manifest import FOLDER, MODEL_CARD, ROOT_MANIFEST, TRAINING, describe_file, write_manifest
from convert.verification.report import ParityReport
from exports.generation_config import PIECE_NAMES
from exports.model_card import model_card
from support.files import write_json
from support.messages import pluralize
from tf_model.config import GPT2Config
from tokenization.special_tokens import SpecialTokens

_PROGRAM = f"gpt2-savedmodel {__version__}"
_LIBRARIES = ("tensorflow", "keras", "torch", "numpy", "sentencepiece", "jieba", "tokenizers")

CPM_GENERATE = GPT2Config(vocab_size=30000, n_positions=1024, n_embd=2560, n_layer=32, n_head=32)

RELEASES: dict[tuple[str, ...], str] = {
    ("7a8461098dae374a836f55bf2002bf21cba05964", "6ab97bd06979c1707080b33cfddff4f08c9af675"): (
        "CPM-Generate, first release (November 2020)"
    ),
    ("71d6b6ad4f47b46724eb82c05da8fb9175e62a7d", "42aa247a262e2011fa5e276f1a8389fad6d80edc"): (
        "CPM-Generate, second release (since 2020-12-13)"
    ),
}
"""SHA-1 of rank 0 and rank 1, from the README of CPM-1-Generate (its commits 2422770 and 3f816d1)."""


def may_be_known(config: GPT2Config, shards: int) -> bool:
    """Whether a checkpoint of these sizes is worth a SHA-1."""
    return config == CPM_GENERATE and shards == len(next(iter(RELEASES)))


def release_name(sha1: Sequence[str]) -> str | None:
    """Return the published checkpoint whose shards, rank 0 first, have these SHA-1 hashes."""
    return RELEASES.get(tuple(sha1))


def describe(
    folder: Path,
    checkpoint: Checkpoint,
    dtype: str,
    tokens: SpecialTokens,
    has_tokenizer: bool,
    hasher: Hasher,
    parity: ParityReport | None,
) -> None:
    """Write the model card and, last of all, the manifest."""
    import tensorflow as tf

    report = parity.to_dict() if parity else None
    source = _source(checkpoint, hasher)
    (folder / MODEL_CARD).parent.mkdir()
    card = model_card(
        checkpoint.config,
        dtype,
        source=_origin(checkpoint.info, source["release"]),
        program=_PROGRAM,
        eos_token_id=tokens.eos_token_id,
        pieces={name: value for name, value in tokens.defaults.items() if name in PIECE_NAMES},
        has_tokenizer=has_tokenizer,
        parity=report,
    )
    (folder / MODEL_CARD).write_text(card, "utf-8")
    content = {
        "program": _PROGRAM,
        "source": source,
        "config": checkpoint.config.to_dict(),
        "options": {"dtype": dtype, "tokenizer": has_tokenizer, "verify": parity is not None},
        "versions": _versions(*_LIBRARIES),
        "fingerprint": tf.saved_model.experimental.read_fingerprint(str(folder)).singleprint(),
        "parity": report,
        **_training(folder / FOLDER, checkpoint),
    }
    write_manifest(folder, content, hasher)


def describe_copy(folder: Path, checkpoint: Checkpoint, options: Mapping[str, Any], hasher: Hasher) -> None:
    """Write the manifest of a checkpoint that was written from another one, last of all."""
    content = {
        "program": _PROGRAM,
        "source": _source(checkpoint, hasher),
        "config": checkpoint.config.to_dict(),
        "options": dict(options),
        "versions": _versions("numpy"),
        **_training(folder, checkpoint),
    }
    write_manifest(folder, content, hasher, ROOT_MANIFEST)


def _origin(info: CheckpointInfo, release: str | None) -> str:
    """Say in some words what a model was made from."""
    files = f"a {info.format} checkpoint of {pluralize(len(info.files), 'file')}"
    found = release or (files if info.files else "random weights")
    return f"{found}, trained further ({info.details[TRAINED]})," if TRAINED in info.details else found


def _training(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Write what is recorded of a training into ``folder``; return what the manifest says about it."""
    record = checkpoint.info.training
    if record is None:
        return {}
    write_json(folder / TRAINING, record)
    return {"training": dict(record)}


def _source(checkpoint: Checkpoint, hasher: Hasher) -> dict[str, Any]:
    """Return what a manifest says about the source; waits for the hashes of its files."""
    found = checkpoint.info.files
    is_mixed = len({file.is_absolute() for file in found}) > 1  # of a checkpoint and an adapter, say
    places = [file.absolute() if is_mixed else file for file in found]
    root = _root(places) if places else Path()  # a model in memory has none
    files = {
        str(place.relative_to(root)): describe_file(file, hasher) for place, file in zip(places, found, strict=True)
    }
    release = release_name([entry.get("sha1", "") for entry in files.values()])
    return {"format": checkpoint.info.format, "release": release, **checkpoint.info.details, "files": files}


def _versions(*libraries: str) -> dict[str, str]:
    """Return the versions of those ``libraries`` that are installed: PyTorch is needed for ``verify`` alone."""
    found = {"python": platform.python_version()}
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _root(files: Sequence[Path]) -> Path:
    """Return the folder that the names of the files are told from."""
    return Path(os.path.commonpath([file.parent for file in files])).parent
