"""Where a result came from, and whether it is still what was written: its manifest.

It lists every other file of the folder with its SHA-256. A SavedModel has it in ``assets.extra/``, which TensorFlow
ignores; a checkpoint beside the tracker file.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.output.hashing import Hasher
from support.errors import ConvertError
from support.files import describe_read_error, read_json_object

FOLDER = "assets.extra"
MANIFEST = f"{FOLDER}/manifest.json"
ROOT_MANIFEST = "manifest.json"
"""Of a folder that is no SavedModel."""
MODEL_CARD = f"{FOLDER}/README.md"
TRAINING = "training.json"
"""Next to the manifest of a model that was fine-tuned here."""
VERSION = 1


class ManifestError(ConvertError, ValueError):
    """A folder without a manifest, or with one that cannot be read; the message is one line."""


@dataclasses.dataclass(frozen=True)
class IntegrityReport:
    """How a folder differs from its manifest.

    Attributes:
        folder: what was checked.
        changed, missing: files that are not as they were written, relative to the folder.
        added: files that the manifest does not list; they do no harm.
    """

    folder: Path
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def intact(self) -> bool:
        """Whether every file that was written is there and has its bytes."""
        return not self.changed and not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the folder."""
        lists = {name: list(getattr(self, name)) for name in ("changed", "missing", "added")}
        return {"intact": self.intact, **lists}

    def check(self) -> None:
        """Raise ``ConvertError`` unless the folder is intact."""
        damages = [f"{name} has changed" for name in self.changed] + [f"{name} is missing" for name in self.missing]
        if damages:
            raise ConvertError(f"{self.folder}: {'; '.join(damages)}: convert or copy it again")


def describe_file(path: Path, hasher: Hasher) -> dict[str, Any]:
    """Size in bytes and hashes, as they stand in the manifest."""
    return {"bytes": path.stat().st_size, **hasher.result(path)}


def write_manifest(folder: Path, content: Mapping[str, Any], hasher: Hasher, name: str = MANIFEST) -> None:
    """Write the manifest ``name``: ``content``, and under ``files`` every file that is in ``folder`` now."""
    files = {file: describe_file(folder / file, hasher) for file in _files(folder, name)}
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    manifest = {"manifest_version": VERSION, **content, "files": files}
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, "utf-8", errors="backslashreplace")  # a file name may be no UTF-8


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a SavedModel or checkpoint of ours.

    Raises:
        ManifestError: there is none, or not one of ours.
    """
    path = folder / _name(folder)
    manifest = read_json_object(path, ManifestError, "not a result of this program")
    try:
        files = manifest["files"]
        hashes = [entry["sha256"] for entry in files.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path}: is damaged: {type(error).__name__}: {error}") from error
    if manifest.get("manifest_version") != VERSION or not files or not all(isinstance(value, str) for value in hashes):
        raise ManifestError(f"{path}: expected a manifest of version {VERSION}: written by another version?")
    return manifest


def check(folder: str | Path) -> IntegrityReport:
    """Compare the SHA-256 of every file in ``folder`` with its manifest; all of them are read.

    Raises:
        ConvertError: there is no folder, it has no manifest of this project, or a file cannot be read.
    """
    folder = Path(folder)
    try:
        if not folder.is_dir():
            is_there = folder.exists() or folder.is_symlink()
            what = "not a folder: give the folder that this program wrote" if is_there else "no such folder"
            raise ConvertError(f"{folder}: {what}")
        if not any((folder / name).exists() for name in (MANIFEST, ROOT_MANIFEST)):
            raise ManifestError(
                f"{folder}: has neither {MANIFEST} nor {ROOT_MANIFEST}, so it is no result of this program, and there "
                "are no hashes to compare with; inspect describes any checkpoint"
            )
        expected = read_manifest(folder)["files"]
        found = set(_files(folder, _name(folder)))
        with Hasher() as hasher:
            hashes = {name: hasher.result(folder / name)["sha256"] for name in sorted(found & expected.keys())}
    except OSError as error:
        raise ConvertError(describe_read_error(error, folder)) from error
    return IntegrityReport(
        folder,
        changed=tuple(name for name, sha256 in hashes.items() if sha256 != expected[name]["sha256"]),
        missing=tuple(sorted(expected.keys() - found)),
        added=tuple(sorted(found - expected.keys())),
    )


def has_only_its_own(folder: Path) -> bool:
    """Whether every file in ``folder`` is one that its manifest lists; what is in them is not compared."""
    try:
        listed = set(read_manifest(folder)["files"])
        return listed.issuperset(_files(folder, _name(folder)))
    except (ManifestError, OSError):
        return False


def _name(folder: Path) -> str:
    """Where the manifest of ``folder`` is, or ought to be."""
    return MANIFEST if (folder / MANIFEST).exists() or not (folder / ROOT_MANIFEST).exists() else ROOT_MANIFEST


def _files(folder: Path, manifest: str) -> list[str]:
    """List every file but the manifest, relative to the folder, with slashes.

    Raises:
        OSError: a folder in it cannot be read; ``Path.rglob`` would leave it out without a word.
    """

    def stop(error: OSError) -> None:
        raise error

    found = (Path(place, name) for place, _, names in os.walk(folder, onerror=stop) for name in names)
    names = (path.relative_to(folder).as_posix() for path in sorted(found) if path.is_file())
    return [name for name in names if name != manifest]
