"""GPT-2's byte-level BPE: any text becomes its UTF-8 bytes, frequent neighbours are merged, nothing is lost.

Source of the behaviour: ``src/encoder.py`` of OpenAI's GPT-2. Text is split by a regular expression, the bytes of each
part are written as 256 printable characters, and the merges are applied in the order of their file. The work is done by
the ``tokenizers`` library, whose result is the same. ``<|endoftext|>`` typed in a text is ordinary pieces, as OpenAI
has it; in a prompt it is the special id, as transformers has it.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from tokenization.added_pieces import CONFIG, NOTHING_DECLARED, Declared, pieces_to_add, read_declared
from tokenization.base import (
    StreamDecoder,
    TokenizerError,
    checked_ids,
    checked_text,
    copy_as,
    prompt_or_end,
    read_text,
    with_end,
    with_start,
)
from tokenization.special_pieces import SpecialReader
from tokenization.tokenizer_json import FILE, checked_vocabulary, is_tokenizer_json, read_tokenizer_json
from tokenization.usual_names import find_part

END = "<|endoftext|>"
VOCABULARIES, MERGES = ("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")
"""Hugging Face's names and OpenAI's; the contents are the same."""
_MARKER = re.compile(r"<[^\ud800-\udfff]+>|\[[^\ud800-\udfff]+\]")
"""A piece that no merge makes, but somebody's own; not with half a surrogate pair, which JSON allows."""


def _byte_symbols() -> dict[str, int]:
    """Character -> the byte that it stands for, in the order of OpenAI's vocabulary.

    Bytes that Latin-1 can print stand for themselves, the other 68 for U+0100 and the characters after it.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_symbols()


def _files(path: Path) -> tuple[Path | None, Path]:
    """Return the vocabulary, if there is one, and the merges; of a ``tokenizer.json`` that file as the merges."""
    if not path.is_dir():
        return _beside(path)
    names = (*MERGES, FILE)
    merges = next((path / name for name in names if (path / name).is_file()), None)
    if merges is None:
        raise TokenizerError(
            f"{path}: expected the merges of a byte-level BPE, {' or '.join(names)}, found none of them"
        )
    return (None, merges) if merges.name == FILE else (_vocabulary_beside(merges), merges)


def _beside(file: Path) -> tuple[Path | None, Path]:
    """Return vocabulary and merges, of which ``file`` is one: ``bpe_merges.txt`` goes with ``bpe_vocab.json``."""
    if file.suffix != ".json":
        return _vocabulary_beside(file), file
    if is_tokenizer_json(file):
        return None, file
    names = (f"{file.stem.replace('vocab', 'merges').replace('encoder', 'merges')}.txt", *MERGES)
    merges = next((file.with_name(name) for name in names if file.with_name(name).is_file()), None)
    if merges is None:
        raise TokenizerError(f"{file}: a vocabulary without its merges: expected {' or '.join(MERGES)} beside it")
    return file, merges


def _vocabulary_beside(merges: Path) -> Path | None:
    names = (f"{merges.stem.replace('merges', 'vocab')}.json", *VOCABULARIES)
    return next((merges.with_name(name) for name in names if merges.with_name(name).is_file()), None)


def _read_merges(path: Path) -> dict[tuple[str, str], int]:
    """Pair -> its line."""
    lines = read_text(path).split("\n")
    if lines[0].startswith("#version"):
        lines[0] = ""
    return _ranks(path, [tuple(line.split(" ")) if line else () for line in lines])


def _ranks(path: Path, pairs: Iterable[tuple[str, ...]]) -> dict[tuple[str, str], int]:
    """Pair -> its place, from 1 on; an empty one is left out."""
    merges: dict[tuple[str, str], int] = {}
    for number, pair in enumerate(pairs, 1):
        if not pair:
            continue
        line = " ".join(pair)
        if len(pair) != 2 or not all(pair):
            raise TokenizerError(f"{path}: line {number}: expected two pieces and a space, found {line[:40]!r}")
        if merges.setdefault(pair, number) != number:
            raise TokenizerError(f"{path}: lines {merges[pair]} and {number} are the same merge {line[:40]!r}")
    if not merges:
        raise TokenizerError(
            f"{path}: expected merges, found none; with CPM's empty file belongs a SentencePiece file (*.model)"
        )
    return merges


def _derived(path: Path, merges: dict[tuple[str, str], int]) -> dict[str, int]:
    """OpenAI's order: the bytes, what the merges make, the end of a text."""
    pieces = {symbol: index for index, symbol in enumerate(_BYTES)}
    for pair, line in merges.items():
        for half in pair:
            if half not in pieces:
                raise TokenizerError(f"{path}: line {line}: {half[:40]!r} is neither a byte nor made by a line before")
        if pieces.setdefault("".join(pair), len(pieces)) != len(pieces) - 1:
            raise TokenizerError(
                f"{path}: line {line} makes a piece that is there already: the vocabulary cannot be derived, "
                f"expected {' or '.join(VOCABULARIES)} beside it"
            )
    return {**pieces, END: len(pieces)}


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Piece -> id; the ids are 0 to the number of pieces, each once."""
    try:
        pairs = json.loads(read_text(path), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path}: not JSON: {error}") from error
    if not isinstance(pairs, tuple):
        raise TokenizerError(f"{path}: expected a JSON object of pieces and their ids, found something else")
    return checked_vocabulary(path, list(pairs))


def _check(
    pieces: dict[str, int], merges: dict[tuple[str, str], int], declared: Declared, vocabulary: Path, source: Path
) -> None:
    """Check that merges and added pieces are all that there is: a wrong file would give wrong ids silently."""
    missing = next((symbol for symbol in _BYTES if symbol not in pieces), None)
    if missing is not None:
        raise TokenizerError(
            f"{vocabulary}: not a byte-level vocabulary: no piece {missing!r} for the byte 0x{_BYTES[missing]:02x}"
        )
    for pair, line in merges.items():
        for piece in (*pair, "".join(pair)):
            if piece not in pieces:
                raise TokenizerError(
                    f"{source}: line {line} needs {piece[:40]!r}, which {vocabulary.name} does not have: "
                    "the two files belong to different vocabularies"
                )
    made = {*_BYTES, *map("".join, merges)}
    known = {*made, *declared.special, *(token.content for token in declared.added.values())}
    strange = [piece for piece in pieces if piece not in known and not _MARKER.fullmatch(piece)]
    if strange:
        raise TokenizerError(
            f"{source}: makes {len(made)} of the {len(pieces)} pieces of {vocabulary.name}, not {strange[0][:40]!r}: "
            "the file is cut, or the two belong to different vocabularies"
        )


_Parts = tuple[dict[str, int], dict[tuple[str, str], int], Declared, list[Path]]


def _read(path: Path, vocab_size: int | None) -> _Parts:
    """Return pieces, merges, what the files beside them say of added pieces, and the files that they are from."""
    vocabulary, source = _files(path)
    if source.suffix == ".json":
        pieces, declared, values = read_tokenizer_json(source, "BPE")
        pairs = values["model"].get("merges")
        if not isinstance(pairs, list) or not all(isinstance(pair, (list, str)) for pair in pairs):
            raise TokenizerError(f"{source}: expected a list of merges: damaged")
        # Older versions of the library wrote "a b", newer ones ["a", "b"].
        merges = _ranks(source, [tuple(pair.split(" ") if isinstance(pair, str) else map(str, pair)) for pair in pairs])
        config = {"add_prefix_space": values["pre_tokenizer"].get("add_prefix_space") is True, **declared.config}
        declared = dataclasses.replace(declared, config=config).within(vocab_size)
        pieces |= pieces_to_add(declared, pieces)[1]
        _check(pieces, merges, declared, source, source)
        return pieces, merges, declared, [source, *declared.files]
    merges = _read_merges(source)
    if vocabulary is None:
        return _derived(source, merges), merges, NOTHING_DECLARED, [source]
    declared = read_declared(source.parent).within(vocab_size)
    pieces = _read_vocabulary(vocabulary)
    pieces |= pieces_to_add(declared, pieces)[1]
    _check(pieces, merges, declared, vocabulary, source)
    return pieces, merges, declared, [vocabulary, source, *declared.files]


def _adds_prefix_space(declared: Declared, folder: Path) -> bool:
    """Whether ``tokenizer_config.json`` says that a text gets a space in front."""
    prefix = declared.config.get("add_prefix_space") or False
    if not isinstance(prefix, bool):
        raise TokenizerError(f"{folder / CONFIG}: add_prefix_space: expected true or false, found {str(prefix)[:40]!r}")
    return prefix


class ByteBPETokenizer:
    """Text to the ids of GPT-2 and of what was trained like it, and back; ``decode(encode(text))`` is ``text``.

    >>> tokenizer = ByteBPETokenizer("path/to/124M")     # vocab.json and merges.txt, or encoder.json and vocab.bpe
    >>> tokenizer.encode("Hello world")                  # [15496, 995] with OpenAI's
    >>> tokenizer.encode_prompt("")                      # [50256]: <|endoftext|>, which a text begins after

    ``tokenizer.json``, which transformers 5 writes instead, has both in it. Without a vocabulary the merges are enough:
    it follows from them for OpenAI's. There is no padding piece; the end of a text stands in for it.
    """

    def __init__(self, path: str | Path, *, vocab_size: int | None = None) -> None:
        """Read a vocabulary; added pieces beyond ``vocab_size``, the number of the model's rows, are left out."""
        pieces, merges, declared, self._files = _read(Path(path), vocab_size)
        prefix = _adds_prefix_space(declared, self._files[0].parent)
        self._beside = {file.name for file in declared.files}
        self.options: dict[str, bool] = {"add_prefix_space": prefix}
        backend = Backend(BPE(vocab=pieces, merges=list(merges)))
        backend.pre_tokenizer = ByteLevel(add_prefix_space=prefix)
        says = bool(declared.parts or declared.special or declared.added)
        markers = [piece for piece in pieces if (piece == END if says else _MARKER.fullmatch(piece))]
        added, _ = pieces_to_add(declared, pieces, markers)
        self._reader = SpecialReader(backend, added)
        self.pieces: Mapping[str, int] = pieces
        self.merges: Sequence[tuple[str, str]] = list(merges)
        self._bytes = [_bytes_of(piece) for piece in sorted(pieces, key=pieces.__getitem__)]
        self.vocab_size = len(pieces)
        self.blank_ids: frozenset[int] = frozenset()
        parts = {part: find_part(part, declared.parts, pieces) for part in ("eos_token", "pad_token", "bos_token")}
        end, pad, begin = parts["eos_token"], parts["pad_token"], parts["bos_token"]
        self.eos_token_id: int | None = None if end is None else pieces[end]
        self.pad_token_id: int = pieces[pad] if pad is not None else self.eos_token_id or 0
        puts_begin = declared.config.get("add_bos_token") is True and begin is not None
        self.start_token_ids: tuple[int, ...] = (pieces[str(begin)],) if puts_begin else ()
        self.line_token_id: int | None = pieces["Ċ"]  # the line feed
        self.unknown_token_id: int | None = None  # every byte has a piece
        self.notes: tuple[str, ...] = declared.notes
        self.special_pieces: Mapping[str, int] = self._reader.special
        self.reads_special_pieces = True

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing in front; ``append_eod`` puts ``<|endoftext|>`` behind them."""
        return with_end(self._reader.encode(checked_text(text)), self.eos_token_id, append=append_eod)

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        """``encode(text)``; for an empty text ``<|endoftext|>``, which stood between the texts in training."""
        special = self.reads_special_pieces if special_pieces is None else special_pieces
        ids = with_start(self, self._reader.encode(checked_text(text), special=special), special=special)
        return prompt_or_end(ids, self.eos_token_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; bytes that are no UTF-8 become U+FFFD, ``<|endoftext|>`` stays visible."""
        return self.bytes_of(ids).decode("utf-8", "replace")

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ``ids``, which need not end with a character."""
        return b"".join([self._bytes[i] for i in checked_ids(ids, self.vocab_size)])

    def unknown_parts(self, text: str) -> list[str]:
        """Return nothing: every byte has a piece."""
        return []

    def stream_decoder(self) -> StreamDecoder:
        """Hold back the bytes of a character until it is complete."""
        return _ByteStream(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Copy the tokenizer's own files into ``folder``, unchanged; the folder can be loaded again.

        Files of other names get those of Hugging Face.
        """
        return copy_as({file: self._name(file) for file in self._files}, folder)

    def _name(self, file: Path) -> str:
        known = {*VOCABULARIES, *MERGES, FILE, *self._beside}
        if file.name in known:
            return file.name
        return MERGES[0] if file.suffix != ".json" else FILE if is_tokenizer_json(file) else VOCABULARIES[0]


def _bytes_of(piece: str) -> bytes:
    """Return the bytes that a piece stands for; one with other characters in it is a marker and stands for itself."""
    if all(symbol in _BYTES for symbol in piece):
        return bytes([_BYTES[symbol] for symbol in piece])
    return piece.encode("utf-8")


class _ByteStream:
    def __init__(self, tokenizer: ByteBPETokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._tokenizer.bytes_of([token_id]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
