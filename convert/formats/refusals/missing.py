"""Paths where nothing is: names of a hub and addresses, which are to be downloaded first."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from convert.formats.refusals.look import Look, short_name

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_OWNERS = ("uer", "TsinghuaAI", "IDEA-CCNL", "ckiplab", "openai-community", "fnlp", "hfl", "Morizeyao")
"""Of the hub's Chinese GPT-2 models: their names are meant even where there is a folder of the same name."""
_OLD_NAMES = re.compile(r"(gpt2(-medium|-large|-xl)?|distilgpt2)")
"""Models of the hub without an owner in their name."""
_ADDRESS = re.compile(
    r"(?:https?:/+)?(?P<host>huggingface\.co|hf\.co|hf-mirror\.com|(?:www\.)?modelscope\.cn)/+(?P<path>.+)"
)
_ANY_ADDRESS = re.compile(r"(https?|s3|gs|ftp|hdfs|oss):/")
_MAX_NAMES = 2000
"""How many names next to a missing one are compared with it."""


def describe_missing(look: Look) -> str | None:
    """Say how to get what a name of a hub or an address stands for; None where there is something at the path."""
    path = look.path
    if path.exists() or _is_tensorflow_prefix(path):
        return None
    if path.is_symlink():
        return f"a link to {short_name(os.readlink(path), 80)}, where nothing is: give the file or folder itself"
    text = str(path)
    if address := _ADDRESS.fullmatch(text):
        owner_name = "/".join(address["path"].removeprefix("models/").split("/")[:2])
        return f"an address: {_download(address['host'], owner_name)}"
    if _ANY_ADDRESS.match(text):
        return "an address, not a path: download the files first, and give their folder"
    if _OLD_NAMES.fullmatch(text):
        owner = "distilbert" if text == "distilgpt2" else "openai-community"
        return f"no such file or folder; if the hub's model is meant: {_download('', f'{owner}/{text}')}"
    if _REPOSITORY.fullmatch(text) and (path.parts[0] in _OWNERS or not Path(path.parts[0]).exists()):
        return f"no such file or folder; if the hub's model is meant: {_download('', text)}"
    if text.startswith("~"):
        return "no such file or folder: ~ stands for the home folder only without quotes: give the whole path"
    return _near(path)


def _is_tensorflow_prefix(path: Path) -> bool:
    """Whether the path is the beginning of the names of a checkpoint of TensorFlow."""
    return bool(path.name) and path.with_name(f"{path.name}.index").is_file()


def _near(path: Path) -> str | None:
    """Say what is near to a path where nothing is: parts of a checkpoint, a name that is almost the same."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MAX_NAMES), strict=False)]
    except OSError:
        return None
    if any(re.fullmatch(rf"{re.escape(path.name)}\.(data-\d{{5}}-of-\d{{5}}|meta)", name) for name in names):
        return f"a checkpoint of TensorFlow without {short_name(path.name)}.index: get all files of it"
    close = difflib.get_close_matches(path.name, names, 1, 0.8)
    return f"no such file or folder; did you mean {short_name(close[0], 80)}?" if close else None


def _download(host: str, name: str) -> str:
    folder = re.sub(r"[^\w.-]", "", name.rpartition("/")[2]) or "DIR"
    if "modelscope" in host:
        return f"download it first: modelscope download --model {name} --local_dir {folder}"
    return f"download it first: hf download {name} --local-dir {folder}"
