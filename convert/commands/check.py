"""``check``: whether a SavedModel or a checkpoint is still, byte for byte, what was written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from convert.output.manifest import check

DESCRIPTION = """\
Reads every file of a result of this program and compares its SHA-256 with the manifest (assets.extra/manifest.json of
a SavedModel, manifest.json of a checkpoint): after a download, a copy, or years on a disk. Files that were added later
are listed and do no harm.
"""
EXAMPLES = ("{command} out/song-ci",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder that this program wrote")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    report = check(args.folder)
    if args.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        for name in report.added:
            print(f"{name}: not in the manifest, added later")
        if report.intact:
            print(f"{report.folder}: every file is as it was written")
    report.check()
