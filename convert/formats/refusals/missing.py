"""Paths where nothing is: names of a hub and addresses, which are to be downloaded first."""

from __future__ import annotations

import re
from pathlib import Path

from convert.formats.refusals.look import Look

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_OLD_NAMES = re.compile(r"(gpt2(-medium|-large|-xl)?|distilgpt2)")
"""Models of the hub without an owner in their name."""
_ADDRESS = re.compile(
    r"(?:https?:/+)?(?P<host>huggingface\.co|hf\.co|hf-mirror\.com|(?:www\.)?modelscope\.cn)/+(?P<path>.+)"
)
_ANY_ADDRESS = re.compile(r"(https?|s3|gs|ftp|hdfs|oss):/")


def describe_missing(look: Look) -> str | None:
    """Say how to get what a name of a hub or an address stands for; None where there is something at the path."""
    path = look.path
    if path.exists() or path.is_symlink():
        return None
    text = str(path)
    if address := _ADDRESS.fullmatch(text):
        owner_name = "/".join(address["path"].removeprefix("models/").split("/")[:2])
        return f"an address: {_download(address['host'], owner_name)}"
    if _ANY_ADDRESS.match(text):
        return "an address, not a path: download the files first, and give their folder"
    if _OLD_NAMES.fullmatch(text):
        owner = "distilbert" if text == "distilgpt2" else "openai-community"
        return f"no such file or folder; if the hub's model is meant: {_download('', f'{owner}/{text}')}"
    if _REPOSITORY.fullmatch(text) and not Path(path.parts[0]).exists():
        return f"no such file or folder; if the hub's model is meant: {_download('', text)}"
    return None


def _download(host: str, name: str) -> str:
    folder = re.sub(r"[^\w.-]", "", name.rpartition("/")[2]) or "DIR"
    if "modelscope" in host:
        return f"download it first: modelscope download --model {name} --local_dir {folder}"
    return f"download it first: hf download {name} --local-dir {folder}"
