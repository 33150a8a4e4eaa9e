"""``check``: whether a SavedModel or a checkpoint is still, byte for byte, what was written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from convert.output.manifest import ManifestError, differences
from support.errors import ConvertError

HELP = "compare every file of a SavedModel or checkpoint of this program with the SHA-256 in its manifest"
DESCRIPTION = """\
Reads every file of what this program wrote and compares its SHA-256 with the manifest (assets.extra/manifest.json of
a SavedModel, manifest.json of a checkpoint): after a download, a copy, or years on a disk. Files that were added later
are named and do no harm.
"""
EXAMPLE = "python -m convert check out/song-ci"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder that this program wrote")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    if not args.folder.is_dir():
        raise ConvertError(f"{args.folder}: no such folder")
    try:
        result = differences(args.folder)
    except ManifestError as error:
        raise ConvertError(str(error)) from error
    except OSError as error:
        raise ConvertError(f"{error.filename or args.folder}: cannot be read: {error.strerror}") from error
    damaged = [f"{name} has changed" for name in result.changed] + [f"{name} is missing" for name in result.missing]
    if args.json:
        print(json.dumps({"intact": not damaged, **result._asdict()}, ensure_ascii=False))
    else:
        for name in result.added:
            print(f"{name}: not in the manifest, added later")
        if not damaged:
            print(f"{args.folder}: every file is as it was written")
    if damaged:
        raise ConvertError(f"{args.folder}: {'; '.join(damaged)}: convert or copy it again")
