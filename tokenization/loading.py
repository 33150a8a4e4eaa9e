"""Which tokenizer a folder or file holds."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenization.added_pieces import ADDED, CONFIG, SPECIAL_MAP, read_object
from tokenization.base import Tokenizer, TokenizerError
from tokenization.bert import BertTokenizer, NeverMadeError
from tokenization.byte_bpe import ByteBPETokenizer
from tokenization.classes import BERT, BYTE_BPE, SENTENCEPIECE, check_class
from tokenization.cpm import CPMTokenizer
from tokenization.cpm_transformers import CpmTransformersTokenizer
from tokenization.library import read_library_tokenizer
from tokenization.sentencepiece_file import SentencePieceTokenizer, is_cpm, read_proto, starts_as_model
from tokenization.tokenizer_json import FILE, is_tokenizer_json

_EXPECTED = (
    "*.model (CPM, SentencePiece), tokenizer.json (tokenizers), merges.txt or vocab.bpe (GPT-2), vocab.txt (BERT)"
)
CPM, CPM_TRANSFORMERS = KINDS = ("cpm", "cpm-transformers")
"""How a SentencePiece model of CPM is read: as CPM's programs do, or as ``CpmTokenizer`` of transformers."""
_OWN = "CPM's programs do, for which the published models were trained"
_THEIRS = "CpmTokenizer of transformers does, which people tune models with"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""What a hub calls a model, as far as such a path looks: ``owner/name``."""
_MERGES = ("merges.txt", "vocab.bpe")


@dataclasses.dataclass(frozen=True)
class Source:
    """Files that make a tokenizer.

    Attributes:
        file: the file that it is known by.
        load: returns it, given the file and the model's number of rows, if that is known.
    """

    file: Path
    load: Callable[[Path, int | None], Tokenizer]


def load_tokenizer(folder: str | Path, kind: str | None = None, *, vocab_size: int | None = None) -> Tokenizer:
    """Load the tokenizer whose files are in ``folder``, or which is the file ``folder`` itself.

    In a folder with several that is the one that transformers takes; where it cannot be used, the next one.

    Args:
        folder: the folder or file.
        kind: how CPM's model is read, of ``KINDS``; None: as ``tokenizer_config.json`` says, else as CPM does.
        vocab_size: the number of rows that the model has for tokens: added pieces beyond them are left out.

    Raises:
        TokenizerError: no tokenizer is there, or its files cannot be used.
    """
    path = Path(folder)
    files = _list_files(path)
    if kind is not None:
        return _load_kind(path, files, kind, vocab_size)
    sources = [_of_file(path)] if path.is_file() else list(_in_folder(path, files))
    failure: TokenizerError | None = None
    for source in sources:
        try:
            tokenizer = source.load(source.file, vocab_size)
        except TokenizerError as error:
            failure = failure or error
            continue
        if failure is not None:
            tokenizer.notes = (*tokenizer.notes, f"{failure}: {source.file.name} was taken instead")
        return tokenizer
    if failure is not None:
        raise failure
    found = ", ".join(file.name for file in files[:5]) + ", ..." * (len(files) > 5) or "none"
    raise TokenizerError(f"{path}: no tokenizer: expected {_EXPECTED}, found {found}")


def _load_kind(path: Path, files: list[Path], kind: str, vocab_size: int | None) -> Tokenizer:
    if kind not in KINDS:
        raise TokenizerError(f"tokenizer kind {str(kind)[:40]!r}: expected {' or '.join(KINDS)}")
    models = [file for file in files if (file.suffix == ".model" or file == path) and is_cpm(file)]
    if len(models) != 1:
        raise TokenizerError(f"{path}: --tokenizer-kind {kind}: expected one SentencePiece model of CPM (*.model)")
    return load_cpm(models[0], vocab_size, kind)


def find_tokenizer_sources(folder: Path) -> list[Source]:
    """Return what in ``folder`` looks like a tokenizer by its name, the one that is taken first; nothing is loaded."""
    try:
        return list(_in_folder(folder, _list_files(folder)))
    except TokenizerError:
        return []


def has_tokenizer_files(folder: Path) -> bool:
    """Whether a file in ``folder`` has the name of a tokenizer's; texts that may be anything are none."""
    try:
        files = _list_files(folder)
    except TokenizerError:
        return False
    usual = {FILE, "vocab.txt", *_MERGES}
    return any(file.name in usual or _is_named(file) for file in files)


def _is_named(file: Path) -> bool:
    """Whether a file of another name than the usual ones is a tokenizer's by its name and its first bytes."""
    named = any(word in file.name.lower() for word in ("token", "vocab", "merges", "spiece", "sentencepiece"))
    if file.suffix == ".model":
        return named or starts_as_model(file)
    return named and (file.suffix == ".txt" or (file.suffix == ".json" and _is_other_json(file)))


def _is_other_json(file: Path) -> bool:
    return file.name not in (FILE, CONFIG, SPECIAL_MAP, ADDED) and is_tokenizer_json(file)


def _list_files(path: Path) -> list[Path]:
    try:
        if path.is_file():
            return [path]
        with os.scandir(path) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_file())
    except FileNotFoundError as error:
        raise TokenizerError(f"{path}: no tokenizer: no such file or folder{_on_a_hub(path)}") from error
    except NotADirectoryError as error:
        raise TokenizerError(f"{path}: no tokenizer: {_kind_of(path)}: expected a file or folder") from error
    except OSError as error:
        raise TokenizerError(f"{path}: no tokenizer: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise TokenizerError(f"{str(path)!a}: no tokenizer: not the name of a file or folder") from error


def _on_a_hub(path: Path) -> str:
    """Say how to get what ``owner/name`` is on a hub, if it may be one."""
    if not _REPOSITORY.fullmatch(str(path)) or Path(path.parts[0]).exists():
        return ""
    return f"; if the hub's is meant, download it first: hf download {path} --local-dir {path.name}"


def _kind_of(path: Path) -> str:
    """Say what something is that is neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a part of its path is a file, not a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "a socket"


def _in_folder(folder: Path, files: list[Path]) -> Iterator[Source]:
    """Yield the tokenizers of a folder: CPM's, then as transformers 5 looks for files, then files of other names."""
    models = [file for file in files if file.suffix == ".model"]
    names = {file.name for file in files}
    cpm = [file for file in models if is_cpm(file)]
    if cpm:
        yield Source(cpm[0] if len(models) == 1 else folder, load_cpm)
    if FILE in names:
        yield Source(folder / FILE, _load_json)
    for model in models:
        if model not in cpm:
            yield Source(model, _load_model)
    if not names.isdisjoint(_MERGES):
        yield Source(folder, _load_bpe)
    if "vocab.txt" in names:
        yield Source(folder / "vocab.txt", _load_bert)
    yield from _other_names(files)


def _other_names(files: list[Path]) -> Iterator[Source]:
    for file in files:
        if file.suffix == ".json" and file.name != FILE and _is_named(file):
            yield Source(file, _load_json)
    for file in files:
        if file.suffix == ".txt" and "merges" in file.name and file.name not in _MERGES:
            yield Source(file, _load_bpe)
    texts = [file for file in files if file.suffix == ".txt" and "merges" not in file.name and file.name != "vocab.txt"]
    vocabularies = [file for file in texts if "vocab" in file.name]
    if len(vocabularies) == 1 or len(texts) == 1:
        yield Source((vocabularies if len(vocabularies) == 1 else texts)[0], _load_bert)


def _of_file(path: Path) -> Source:
    """Return what a file that was named outright is, by its name and its content."""
    if path.suffix == ".model":
        return Source(path, _load_model)
    if path.suffix == ".json":
        return Source(path, _load_json if is_tokenizer_json(path) else _load_bpe)
    is_merges = path.suffix == ".bpe" or "merges" in path.name
    return Source(path, _load_bpe if is_merges else _load_bert)


def _load_bert(path: Path, vocab_size: int | None) -> Tokenizer:
    return _with_notes(BertTokenizer(path, vocab_size=vocab_size), check_class(path, BERT))


def _load_bpe(path: Path, vocab_size: int | None) -> Tokenizer:
    return _with_notes(ByteBPETokenizer(path, vocab_size=vocab_size), check_class(path, BYTE_BPE))


def _load_model(path: Path, vocab_size: int | None) -> Tokenizer:
    read_proto(path)
    if is_cpm(path):
        return load_cpm(path, vocab_size)
    return _with_notes(SentencePieceTokenizer(path, vocab_size=vocab_size), check_class(path, SENTENCEPIECE))


def _with_notes(tokenizer: Tokenizer, notes: tuple[str, ...]) -> Tokenizer:
    tokenizer.notes = (*tokenizer.notes, *notes)
    return tokenizer


def load_cpm(path: Path, vocab_size: int | None, kind: str | None = None) -> Tokenizer:
    """Load CPM's vocabulary as ``kind`` says, else ``tokenizer_config.json`` next to it."""
    folder = path if path.is_dir() else path.parent
    config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    is_theirs = str(config.get("tokenizer_class")).startswith("CpmTokenizer")
    if kind == CPM_TRANSFORMERS or (kind is None and is_theirs):
        theirs = CpmTransformersTokenizer(path, vocab_size=vocab_size)
        if kind is None:
            as_said = (f"{path}: read as {_THEIRS}, as {CONFIG} says; --tokenizer-kind cpm reads it as {_OWN}",)
            theirs.notes = (*as_said, *theirs.notes)
        return theirs
    tokenizer = CPMTokenizer(path)
    if kind is None and path.name == "spiece.model":
        tokenizer.notes = (f"{path}: read as {_OWN}; --tokenizer-kind cpm-transformers reads it as {_THEIRS}",)
    return tokenizer


def _load_json(path: Path, vocab_size: int | None) -> Tokenizer:
    """Load a ``tokenizer.json`` as the original that it is of, else as the library does."""
    notes: tuple[str, ...] = ()
    for original in (BertTokenizer, ByteBPETokenizer):
        try:
            return original(path, vocab_size=vocab_size)
        except NeverMadeError as error:
            notes = (str(error),)
        except TokenizerError:
            continue
    tokenizer = read_library_tokenizer(path, vocab_size)
    tokenizer.notes = (*tokenizer.notes, *notes)
    return tokenizer
