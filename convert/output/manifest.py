"""Where a result came from, and whether it is still what was written: its manifest.

It lists every other file of the folder with its SHA-256. A SavedModel has it in ``assets.extra/``, which TensorFlow
ignores; a checkpoint beside the tracker file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from convert.output.hashing import Hasher
from support.errors import ConvertError

FOLDER = "assets.extra"
MANIFEST = f"{FOLDER}/manifest.json"
ROOT_MANIFEST = "manifest.json"
"""Of a folder that is no SavedModel."""
MODEL_CARD = f"{FOLDER}/README.md"
VERSION = 1


class ManifestError(ConvertError, ValueError):
    """A folder without a manifest, or with one that cannot be read; the message is one line."""


class Differences(NamedTuple):
    """How a folder differs from its manifest: names relative to the folder, sorted."""

    changed: list[str]
    missing: list[str]
    added: list[str]


def describe_file(path: Path, hasher: Hasher) -> dict[str, Any]:
    """Size in bytes and hashes, as they stand in the manifest."""
    return {"bytes": path.stat().st_size, **hasher.result(path)}


def write_manifest(folder: Path, content: Mapping[str, Any], hasher: Hasher, name: str = MANIFEST) -> None:
    """Writes the manifest ``name``: ``content``, and under ``files`` every file that is in ``folder`` now."""
    files = {file: describe_file(folder / file, hasher) for file in _files(folder, name)}
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    manifest = {"manifest_version": VERSION, **content, "files": files}
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, "utf-8", errors="backslashreplace")  # a file name may be no UTF-8


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a SavedModel or checkpoint of ours.

    Raises:
        ManifestError: there is none, or not one of ours.
    """
    path = folder / _name(folder)
    try:
        manifest = json.loads(path.read_text("utf-8"))
        files = manifest["files"]
        hashes = [entry["sha256"] for entry in files.values()]
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}: not a result of this program") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(f"{path}: is damaged: {type(error).__name__}: {error}") from error
    if manifest.get("manifest_version") != VERSION or not files or not all(isinstance(value, str) for value in hashes):
        raise ManifestError(f"{path}: expected a manifest of version {VERSION}: written by another version?")
    return dict(manifest)


def differences(folder: Path) -> Differences:
    """Compares every file of ``folder`` with its manifest, reading all of them.

    Raises:
        ManifestError: as ``read_manifest``.
        OSError: a file cannot be read.
    """
    expected = read_manifest(folder)["files"]
    found = set(_files(folder, _name(folder)))
    with Hasher() as hasher:
        changed = [
            name for name in sorted(found & expected.keys())
            if hasher.result(folder / name)["sha256"] != expected[name]["sha256"]
        ]  # fmt: skip
    return Differences(changed, sorted(expected.keys() - found), sorted(found - expected.keys()))


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
    """Every file but the manifest, relative to the folder, with slashes."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in names if name != manifest]
