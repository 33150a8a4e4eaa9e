"""The folders that this program makes: a run's, and results; their texts are nobody's to learn."""

from __future__ import annotations

import os
from pathlib import Path

from convert.output.manifest import MANIFEST, ROOT_MANIFEST, ManifestError, read_manifest

RECORD = "run.json"
"""In the folder of a run: what decides the weights that come out."""
_SUFFIX = ".training"


def training_folder(output: Path) -> Path:
    """Return where a run that will make ``output`` keeps its files meanwhile."""
    return output.with_name(f"{output.name}{_SUFFIX}")


def is_own_folder(folder: Path) -> bool:
    """Whether a folder is that of a run, or a result of this program."""
    if folder.name.endswith(_SUFFIX) and os.path.exists(folder / RECORD):
        return True
    if not any(os.path.exists(folder / name) for name in (MANIFEST, ROOT_MANIFEST)):
        return False
    try:
        read_manifest(folder)
    except ManifestError:
        return False
    return True
