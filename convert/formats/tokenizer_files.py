"""Which tokenizer goes with a checkpoint, and its files under the names that another program looks for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import WordLevel

from convert.checkpoint import Checkpoint
from exports.generation_config import PIECE_NAMES
from exports.generation_defaults import plain_token, select_defaults
from exports.saved_model_folder import GENERATION_CONFIG
from support.errors import CheckpointError
from support.files import read_json_object, write_json
from tokenization import (
    BertTokenizer,
    ByteBPETokenizer,
    CPMTokenizer,
    CpmTransformersTokenizer,
    LibraryTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerError,
    find_tokenizer_sources,
    has_tokenizer_files,
    load_tokenizer,
)
from tokenization.byte_bpe import END
from tokenization.cpm import NEWLINE, SPACE
from tokenization.special_tokens import NO_TOKENS, SpecialTokens
from tokenization.tokenizer_json import FILE as TOKENIZER_JSON

TO_HUGGINGFACE = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
TO_OPENAI = {new: old for old, new in TO_HUGGINGFACE.items()}
"""The contents are the same."""
_GPT2_END = 50256
"""The end of a text that transformers takes where no file names one."""
CONFIG = "tokenizer_config.json"
_PROBES = ("今天天气不错，一曲新词。", "Hello world 12", "[CLS]</s> a\nb")
"""Texts by which two tokenizers are compared."""
_CLASSES: tuple[tuple[type, str], ...] = (
    (ByteBPETokenizer, "GPT2Tokenizer"),
    (BertTokenizer, "BertTokenizer"),
    (CpmTransformersTokenizer, "CpmTokenizer"),
)
"""Whose vocabulary transformers reads with a class of its own; all others are files of a library."""
_LIBRARY = "PreTrainedTokenizerFast"
_OF_CODE = ("auto_map", "tokenizer_file", "name_or_path", "tokenizer_class", "backend")
"""What a ``tokenizer_config.json`` says about the class that wrote it, and would not be true of ours."""


def tokenizer_for(
    given: Path | None, checkpoint: Checkpoint, kind: str | None = None
) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """Return the tokenizer in the folder ``given``, else the checkpoint's own, if it has one, and notes about it.

    A tokenizer of the checkpoint's that cannot be used is none, with a note: the weights are good without it.

    Args:
        given: the folder or file that the user names.
        checkpoint: the model.
        kind: how the files are read, of ``tokenization.KINDS``; None: as they say themselves.

    Raises:
        TokenizerError: ``given`` cannot be used, or has more pieces than the model; or ``kind`` is not one of its.
    """
    path = given or checkpoint.tokenizer
    if path is None and kind is not None:
        raise TokenizerError(
            f"--tokenizer-kind {kind}: there is no tokenizer next to the weights: give --tokenizer too"
        )
    if path is None:
        return None, ()
    try:
        tokenizer = load_tokenizer(path, kind, vocab_size=checkpoint.config.vocab_size)
        _check_size(path, tokenizer, checkpoint.config.vocab_size)
    except TokenizerError as error:
        if given is not None or kind is not None:
            raise
        return None, (f"{error}: converted without it, for token ids only; --tokenizer PATH gives another",)
    notes = [*tokenizer.notes, *([] if tokenizer.notes else _other_tokenizers(path, tokenizer))]
    is_own = given is None or _is_own(given, tokenizer, checkpoint)
    if is_own and _is_default_end(checkpoint.tokens, tokenizer):
        notes.append(f"{path}: config.json's end of a text, {_GPT2_END}, is no piece: the tokenizer's is taken")
    if tokenizer.eos_token_id is None and (not is_own or (checkpoint.tokens or NO_TOKENS).eos_token_id is None):
        notes.append(f"{path}: the vocabulary has no end of a text: texts end at their length only")
    return tokenizer, tuple(notes)


def _check_size(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"{path}: a vocabulary of {tokenizer.vocab_size} pieces, but the model has {vocab_size}: not its tokenizer"
        )


def _other_tokenizers(path: Path, taken: Tokenizer) -> Iterator[str]:
    """Say which other tokenizers of the folder differ from the one that was taken."""
    if not path.is_dir():
        return
    first, *others = find_tokenizer_sources(path)
    if isinstance(taken, (CPMTokenizer, CpmTransformersTokenizer)):  # whose tokenizer.json is a list of pieces
        return
    for source in others:
        try:
            other = source.load(source.file, None)
        except TokenizerError:
            continue
        if [other.vocab_size, *map(other.encode, _PROBES)] != [taken.vocab_size, *map(taken.encode, _PROBES)]:
            yield (
                f"{path}: {first.file.name} was taken, as transformers does; --tokenizer {source.file} takes the other"
            )


def tokens_for(given: Path | None, tokenizer: Tokenizer | None, checkpoint: Checkpoint) -> SpecialTokens:
    """Return the special tokens: of a ``given`` tokenizer, else the source's, else of its own tokenizer."""
    tokens = checkpoint.tokens or NO_TOKENS
    if tokenizer is None:
        return tokens
    is_own = given is None or _is_own(given, tokenizer, checkpoint)
    if is_own and tokens.eos_token_id is not None and not _is_default_end(tokens, tokenizer):
        return tokens
    theirs = ("eos_token_id",) if is_own else ("eos_token_id", *PIECE_NAMES)  # ids of another vocabulary
    defaults = {name: value for name, value in tokens.defaults.items() if name not in theirs}
    return SpecialTokens(tokenizer.eos_token_id, tokenizer.pad_token_id, defaults=defaults)


def _is_own(given: Path, tokenizer: Tokenizer, checkpoint: Checkpoint) -> bool:
    """Whether the ``tokenizer`` in ``given`` is the checkpoint's own.

    Another path with the same ids is, where the checkpoint names the pieces of its texts, which mean the same there,
    and where the tokenizer has no end of a text that could count more.
    """
    own = checkpoint.tokenizer
    if own is None:
        return False
    if own.resolve() == given.resolve():
        return True
    names_pieces = any(name in (checkpoint.tokens or NO_TOKENS).defaults for name in PIECE_NAMES)
    if not names_pieces and tokenizer.eos_token_id is not None:
        return False
    try:
        return has_same_pieces(load_tokenizer(own, vocab_size=checkpoint.config.vocab_size), tokenizer)
    except TokenizerError:
        return False


def has_same_pieces(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers have the same pieces, or the same texts of each id where they are of two kinds."""
    if tokenizer.vocab_size != other.vocab_size or tokenizer.special_pieces != other.special_pieces:
        return False
    if type(tokenizer) is type(other):
        return bool(getattr(tokenizer, "pieces", None) == getattr(other, "pieces", None))
    return all(tokenizer.decode([index]) == other.decode([index]) for index in range(tokenizer.vocab_size))


def _is_default_end(tokens: SpecialTokens | None, tokenizer: Tokenizer) -> bool:
    """Whether the end of a text is the one of GPT-2's, which transformers writes for any model, and no piece here."""
    return tokens is not None and tokens.eos_token_id == _GPT2_END and tokenizer.vocab_size <= _GPT2_END


def read_special_tokens(
    folder: Path, values: Mapping[str, Any], vocab_size: int
) -> tuple[SpecialTokens, tuple[str, ...]]:
    """Read the special tokens and the defaults of generation of a folder as transformers does, and notes about them.

    They are those of ``config.json``; those of ``generation_config.json`` count more. A token that is not in the
    vocabulary is left out: a copy of CPM on the hub names 50256. So is a file that cannot be read.

    Args:
        folder: the folder with ``generation_config.json``, if it has one.
        values: the content of ``config.json``.
        vocab_size: the number of tokens that the model has.
    """
    path = folder / GENERATION_CONFIG
    defaults: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if os.path.lexists(path):
        try:
            generation = read_json_object(path, CheckpointError)
        except CheckpointError as error:  # the weights are good without it
            generation, notes = {}, (f"{error}: left out",)
        values = {**values, **{key: value for key, value in generation.items() if value is not None}}
        defaults, more = select_defaults(generation, path, vocab_size)
        notes += more

    def known_token(value: Any) -> int | None:
        return plain_token(value, vocab_size)

    said = values.get("eos_token_id", _GPT2_END)
    ends = [end for token in (said if isinstance(said, list) else [said]) if (end := known_token(token)) is not None]
    defaults.pop("eos_token_id", None)
    if len(ends) > 1:
        defaults["eos_token_id"] = ends
    pad = known_token(values.get("pad_token_id"))
    if pad is None:
        pad = ends[0] if ends else NO_TOKENS.pad_token_id
    return SpecialTokens(ends[0] if ends else None, pad, known_token(values.get("bos_token_id")), defaults), notes


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files of a tokenizer in ``folder``; ``load_tokenizer`` checks them."""
    return has_tokenizer_files(folder)


def save_for_huggingface(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """Return the tokenizer's files as ``AutoTokenizer`` finds them.

    transformers has nothing that gives CPM's ids (its ``CpmTokenizer`` does without jieba's words). What it gets is the
    list of pieces, by which it decodes, and which converters ask for; a text that is not pieces is an error there.
    """
    files = save_as(tokenizer, folder, TO_HUGGINGFACE)
    if isinstance(tokenizer, BertTokenizer):
        files = [file.rename(folder / "vocab.txt") if file.suffix == ".txt" else file for file in files]
    if isinstance(tokenizer, ByteBPETokenizer) and not (folder / TOKENIZER_JSON).exists():
        files += _missing(tokenizer, folder, "vocab.json", "merges.txt")
    if isinstance(tokenizer, CPMTokenizer):
        (folder / TOKENIZER_JSON).write_text(_pieces_json(tokenizer), "utf-8")
        files.append(folder / TOKENIZER_JSON)
    if isinstance(tokenizer, SentencePieceTokenizer):
        files = [file.rename(folder / "tokenizer.model") if file.suffix == ".model" else file for file in files]
    return list(dict.fromkeys([*files, _write_config(tokenizer, folder, _config_values(tokenizer))]))


def notes_for_huggingface(tokenizer: Tokenizer | None) -> list[str]:
    """Say where ``AutoTokenizer`` encodes the copy of a tokenizer in another way."""
    if not isinstance(tokenizer, SentencePieceTokenizer) or not tokenizer.differs_in_transformers:
        return []
    return [
        "tokenizer: AutoTokenizer gives other ids for some texts, as its model has "
        f"{tokenizer.differs_in_transformers}: encode by the sentencepiece library"
    ]


def _config_values(tokenizer: Tokenizer) -> dict[str, str]:
    """Return what ``tokenizer_config.json`` has to say: the class, and the pieces that have a part.

    CTranslate2 asks for a beginning and an end, which BERT's class does not have.
    """
    name = next((name for kind, name in _CLASSES if isinstance(tokenizer, kind)), _LIBRARY)
    if isinstance(tokenizer, ByteBPETokenizer) and tokenizer.eos_token_id == tokenizer.pieces.get(END):
        return {"tokenizer_class": name}
    pieces = tokenizer.pieces if isinstance(tokenizer, LibraryTokenizer) else tokenizer.special_pieces
    of_id = {index: piece for piece, index in pieces.items()}
    end, begin = tokenizer.eos_token_id, tokenizer.start_token_ids[:1]
    ids = {"eos_token": end, "bos_token": begin[0] if begin else end}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id != tokenizer.unknown_token_id else None
    ids |= {"pad_token": pad, "unk_token": tokenizer.unknown_token_id}
    if isinstance(tokenizer, BertTokenizer) and tokenizer.special_pieces.get("[SEP]") != end:
        ids |= {"sep_token": tokenizer.special_pieces.get("[SEP]", end), "cls_token": begin[0] if begin else None}
    if isinstance(tokenizer, CpmTransformersTokenizer):
        ids["eos_token"] = ids["bos_token"] = None  # its class has names of its own
    found = {part: of_id.get(index) for part, index in ids.items() if index is not None}
    return {"tokenizer_class": name, **{part: piece for part, piece in found.items() if piece is not None}}


def _pieces_json(tokenizer: CPMTokenizer) -> str:
    """``tokenizer.json``: pieces with spaces between them -> ids; ids -> the text as CPM's own decoder makes it."""
    backend = Backend(WordLevel({piece: index for index, piece in enumerate(tokenizer.pieces)}, unk_token=""))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    replaced = (("\u2581", ""), (SPACE, " "), (NEWLINE, "\n"))
    backend.decoder = decoders.Sequence([decoders.Fuse(), *(decoders.Replace(old, new) for old, new in replaced)])
    return backend.to_str() + "\n"


def _write_config(tokenizer: Tokenizer, folder: Path, values: Mapping[str, Any]) -> Path:
    """``values``, what of a vocabulary its pieces do not say, and over both what the file has already.

    transformers prefers this file where ``tokenizer.json`` differs.
    """
    path = folder / CONFIG
    options = tokenizer.options if isinstance(tokenizer, (BertTokenizer, ByteBPETokenizer)) else {}
    there = read_json_object(path, CheckpointError) if path.exists() else {}
    left_out = () if isinstance(tokenizer, (BertTokenizer, ByteBPETokenizer)) else _OF_CODE
    kept = {key: value for key, value in there.items() if value is not None and key not in left_out}
    write_json(path, {**values, **options, **kept})
    return path


def save_for_openai(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """Return the files of a byte-level BPE as OpenAI calls them; of others it knows none, they keep their names."""
    if not isinstance(tokenizer, ByteBPETokenizer):
        return tokenizer.save(folder)
    files = save_as(tokenizer, folder, TO_OPENAI)
    return [*files, *_missing(tokenizer, folder, "encoder.json", "vocab.bpe")]


def save_for_uer(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """Return the tokenizer's files, with the list of pieces that UER-py reads where BERT's came in another form."""
    files = tokenizer.save(folder)
    if isinstance(tokenizer, BertTokenizer) and not any(file.suffix == ".txt" for file in files):
        files.append(folder / "vocab.txt")
        files[-1].write_text("".join(f"{piece}\n" for piece in tokenizer.pieces), "utf-8")
        files.append(_write_config(tokenizer, folder, {}))
    return files


def _missing(tokenizer: ByteBPETokenizer, folder: Path, vocabulary: str, merges: str) -> list[Path]:
    """Write what of the two files is not there: some vocabularies come in another form."""
    written = []
    if not (folder / vocabulary).exists():
        written.append(folder / vocabulary)
        written[-1].write_text(json.dumps(dict(tokenizer.pieces), ensure_ascii=False), "utf-8")
    if not (folder / merges).exists():
        written.append(folder / merges)
        lines = ["#version: 0.2", *map(" ".join, tokenizer.merges)]
        written[-1].write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return written


def save_as(tokenizer: Tokenizer, folder: Path, names: Mapping[str, str]) -> list[Path]:
    """Copy the tokenizer's files, those that are in ``names`` under their other name."""
    return [file.rename(folder / names.get(file.name, file.name)) for file in tokenizer.save(folder)]
