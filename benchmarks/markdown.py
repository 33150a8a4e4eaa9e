"""What every benchmark says in a document: the machine, and a table between its markers."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def machine() -> str:
    """The processor, its cores, the memory; and the versions of what was measured."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = [f"{name} {importlib.metadata.version(package)}" for name, package in
                (("TensorFlow", "tensorflow"), ("PyTorch", "torch"), ("NumPy", "numpy"))]  # fmt: skip
    return (
        f"{model[1].strip() if model else platform.machine()}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB RAM; "
        f"Python {platform.python_version()}, {', '.join(versions)}; "
        f"{datetime.datetime.now(datetime.timezone.utc).date()}"
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose head is the first row."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], f"| {' | '.join(['---'] * len(rows[0]))} |", *lines[1:]]


def write_between_markers(path: Path, text: str, markers: tuple[str, str]) -> None:
    """Puts ``text`` between the markers in a document, which is made, or gets them at its end, if need be."""
    begin, end = markers
    old = path.read_text("utf-8") if path.exists() else "# Performance\n"
    if begin not in old or end not in old:
        old = f"{old.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = old.split(begin, 1)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}", "utf-8")
