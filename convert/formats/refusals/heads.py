"""Files that no format reads, by their first bytes and their names."""

from __future__ import annotations

import dataclasses
import re
import zipfile
from pathlib import Path

from convert.formats.refusals.look import Look, head_of, is_regular

_HUGGINGFACE = "the Hugging Face folder that it was made from"


@dataclasses.dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        text: what it is, and the next step.
        head: a pattern of its first bytes.
        name: a pattern within its name; empty where the bytes say enough.
    """

    text: str
    head: bytes
    name: str = ""

    def fits(self, name: str, head: bytes) -> bool:
        """Whether a file with this name and these first bytes is one."""
        return re.match(self.head, head, re.DOTALL) is not None and re.search(self.name, name) is not None


_UNPACK = "unpack it first, and give the folder that comes out"

FILES = (
    FileKind("a Git LFS pointer, not the file itself: fetch it with `git lfs pull`, or download it again", rb"version https://git-lfs"),
    FileKind(f"a GGUF file of llama.cpp: give {_HUGGINGFACE}", rb"GGUF"),
    FileKind(f"a GGML file of llama.cpp: give {_HUGGINGFACE}", rb"(lmgg|fmgg|tjgg|algg)"),
    FileKind("a TensorFlow Lite model: give the checkpoint that it was made from", rb".{4}TFL3"),
    FileKind("NumPy's arrays: load them with their own program and save a state dict (torch.save)", rb"\x93NUMPY"),
    FileKind(f"an archive: {_UNPACK}", rb"(BZh\d1AY|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!)"),
    FileKind(f"a gzip archive: {_UNPACK} (tar -xzf)", rb"\x1f\x8b"),
    FileKind(f"a tar archive: {_UNPACK} (tar -xf)", rb".{257}ustar"),
    FileKind("a web page, not the file itself: download it again; on a hub, from the link 'download'",
             rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head|\?xml|body|script)|(?i:\s*<!doctype|\s*<html)"),
    FileKind("a hub's error, not the file itself: log in (hf auth login) or correct the name, and download it again",
             rb"(Entry not found|Repository not found|Invalid (username|credentials)|Access to (model|this)|Not Found|"
             rb'Unauthorized|\s*\{\s*"(error|message)")'),
    FileKind("weights of Flax: with transformers before 5, from_pretrained(DIR, from_flax=True) and save_pretrained()",
             rb"", r"\.msgpack$"),
    FileKind(f"a CTranslate2 model: give {_HUGGINGFACE}", rb"[\x01-\x0f]\0\0\0.\0\w+Spec\0"),
    FileKind(f"an ONNX model: give {_HUGGINGFACE}", rb"\x08.(\x12.|:).{0,40}(pytorch|onnx|tf2onnx|keras)"),
    FileKind(f"an ONNX model: give {_HUGGINGFACE}", rb"", r"\.onnx(_data|\.data)?$"),
    FileKind("a checkpoint of MindSpore: load it there, and save its parameters as a PyTorch state dict",
             rb"\x0a..{0,300}(Float|BFloat|Int)(16|32|64)", r"\.ckpt$"),
    FileKind("weights of PaddlePaddle: PaddleNLP converts them to a PyTorch state dict",
             rb"", r"\.(pdparams|pdiparams|pdmodel|pdopt)$"),
    FileKind("weights of rust-bert: give the Hugging Face folder that it was made from", rb"", r"\.ot$"),
    FileKind("events for TensorBoard: give the folder of the weights", rb"", r"\.tfevents\."),
    FileKind("a part of a SavedModel: give its folder", rb"", r"^saved_model\.pb(txt)?$"),
    FileKind("a frozen graph of TensorFlow: give the checkpoint that it was made from", rb"", r"\.pb(txt)?$"),
    FileKind("Megatron's training data, no weights: give the folder of the checkpoint", rb"MMIDIDX"),
    FileKind("an unfinished download: download the file again",
             rb"", r"\.(incomplete|part|partial|crdownload|aria2|download)$"),
    FileKind("a table of data, no weights: give the folder of the checkpoint", rb"(PAR1|ARROW1)"),
    FileKind("a tokenizer, no weights: give the folder with the weights, which may have the tokenizer in it",
             rb"", r"^(tokenizer(_config)?\.json|vocab\.(txt|json|bpe)|merges\.txt|encoder\.json|"
             r"(chinese_vocab|spiece|sentencepiece|tokenizer)\.(model|vocab))$"),
    FileKind("a description of a model, no weights: give its folder, with the weights in it",
             rb"", r"^(generation_)?config\.json$"),
)  # fmt: skip
"""The first that fits counts."""

_TF_DATA = re.compile(r"(.+)\.(data-\d{5}-of-\d{5}|meta|index)")


def describe_file(look: Look) -> str | None:
    """Say what a file is that no format reads, or what is wrong with the file of weights in a folder."""
    if not look.is_dir:
        return _describe(look.path)
    for file in look.weights_files:
        if _is_damage(file) and (text := _describe(file)) is not None:
            return f"{file.name} is {text}"
    return None


def describe_hdf5(look: Look) -> str | None:
    """Say that an HDF5 file has no GPT-2 in it that anybody here knows."""
    weights = look.candidate.weights
    if (weights is None and look.candidate.weights_error) or (weights is not None and weights.tensors):
        return None  # damaged, or a GPT-2
    if not any(head_of(file).startswith(b"\x89HDF") for file in (look.path, *look.weights_files[:1])):
        return None
    return "an HDF5 file without transformers' GPT-2 in it: load it with its own program, and save_pretrained() there"


def _is_damage(file: Path) -> bool:
    """Whether a file in a folder is worth a word: it is small, or its kind is sure."""
    return file.stat().st_size < 4096 or not head_of(file).startswith((b"PK", b"\x80"))


def _describe(file: Path) -> str | None:
    if not is_regular(file):
        return "neither a file nor a folder: give the file or the folder of a checkpoint" if file.exists() else None
    head = head_of(file)
    if not head:
        return "an empty file: download or copy it again"
    for kind in FILES:
        if kind.fits(file.name, head):
            return kind.text
    if head.startswith(b"PK"):
        return _describe_zip(file)
    if (match := _TF_DATA.fullmatch(file.name)) and not file.with_name(f"{match[1]}.index").exists():
        return f"a part of a checkpoint of TensorFlow: {match[1]}.index is missing next to it: get all files of it"
    if head.startswith(b"\x80") and not head.startswith(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"):  # torch.save's number
        return "a pickle that torch.save did not write: load it with its own program and torch.save a state dict"
    if _is_text(head):
        return "a text, no weights: give the file or the folder with the weights"
    return None


def _describe_zip(file: Path) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # whatever damage makes zipfile stumble over
        return None
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return None
    if "model.weights.h5" in names:
        return "a model of Keras: load it there and save it as a Hugging Face folder (save_pretrained)"
    if any(name.endswith(".npy") for name in names):
        return "NumPy's arrays: load them with their own program and save a state dict (torch.save)"
    return f"a zip archive: {_UNPACK} (unzip)"


def _is_text(head: bytes) -> bool:
    """Whether these are the first bytes of a text; the last letter may be cut off."""
    if b"\0" in head:
        return False
    try:
        head[:-4].decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True
