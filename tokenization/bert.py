"""BERT's WordPiece as UER's Chinese GPT-2 models use it: a list of pieces, one per line.

The work is done by the ``tokenizers`` library, set up as transformers' ``BertTokenizer`` does it: control characters
are removed, each Chinese character stands alone, text is lower-cased without accents, punctuation splits words, the
longest piece wins, later pieces of a word begin with ``##``. Three things differ from UER's own Python code: words of
more than 100 characters are ``[UNK]`` (200 there), a capital sigma at the end of a word becomes σ (ς there), and the
256 characters from U+2B820 on (Chinese extension E) are not set apart from their neighbours.

A special piece typed in a text, such as ``[SEP]``, is split at its brackets like any other word, as UER and Google do
it. In a prompt it is the special id, as transformers has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from tokenization.added_pieces import CONFIG, pieces_to_add, read_declared
from tokenization.base import (
    StreamDecoder,
    TokenizerError,
    checked_ids,
    checked_text,
    copy_files,
    read_text,
    with_start,
)
from tokenization.special_pieces import SpecialReader
from tokenization.tokenizer_json import FILE, read_tokenizer_json

_PARTS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""BERT's own pieces; ``tokenizer_config.json`` may name others."""
VOCABULARY = "vocab.txt"
_CONTINUED = "##"


def _vocabulary_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (VOCABULARY, FILE):
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.txt"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise TokenizerError(f"{path}: expected {VOCABULARY} or one other *.txt with a piece per line, found {found}")
    return files[0]


def _read_pieces(path: Path) -> dict[str, int]:
    """Piece -> id, which is its line. U+2028 is a piece of Google's list: only line feeds end a line."""
    pieces: dict[str, int] = {}
    for index, piece in enumerate(read_text(path).removesuffix("\n").split("\n")):
        if pieces.setdefault(piece, index) != index:
            raise TokenizerError(f"{path}: lines {pieces[piece] + 1} and {index + 1} are the same piece {piece[:40]!r}")
    return pieces


def _check(path: Path, pieces: Mapping[str, int], parts: Mapping[str, str]) -> None:
    for part in ("pad_token", "unk_token", "cls_token", "sep_token"):
        if (piece := parts[part]) not in pieces:
            raise TokenizerError(f"{path}: not a vocabulary of BERT: none of its {len(pieces)} pieces is {piece}")


Options = dict[str, bool | None]
_OPTIONS: Options = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
_JSON_NAMES = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
"""What the library calls them in ``tokenizer.json``."""


def _checked(config: Path, options: Options) -> Options:
    for key, value in options.items():
        if not isinstance(value, bool) and not (key == "strip_accents" and value is None):
            raise TokenizerError(f"{config}: {key}: expected true or false, found {str(value)[:40]!r}")
    return options


def _normalizer(options: Options) -> BertNormalizer:
    return BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(options["tokenize_chinese_chars"]),
        strip_accents=options["strip_accents"],
        lowercase=bool(options["do_lower_case"]),
    )


class BertTokenizer:
    """Text to the ids of a BERT vocabulary and back.

    >>> tokenizer = BertTokenizer("path/to/google_zh_vocab.txt")      # it, or a folder with vocab.txt
    >>> tokenizer.encode("今天天气不错")                                # no [CLS], no [SEP]
    >>> tokenizer.encode_prompt("今天天气不错")                         # [CLS] in front, as UER's generate_lm.py has it

    White space, capital letters and accents are lost, and what is not in the vocabulary is ``[UNK]``: trim a prompt by
    its number of tokens, never by the length of its text. An optional ``tokenizer_config.json`` beside the vocabulary
    may set ``do_lower_case``, ``strip_accents`` and ``tokenize_chinese_chars``.
    """

    def __init__(self, path: str | Path) -> None:
        file = _vocabulary_file(Path(path))
        if file.name == FILE:
            ids, declared, values = read_tokenizer_json(file, "WordPiece")
            said = values.get("normalizer") or {}
            own = _checked(file, {name: said.get(_JSON_NAMES.get(name, name)) for name in _OPTIONS})
        else:
            ids, declared, own = _read_pieces(file), read_declared(file.parent), _OPTIONS
        found = {name: declared.config[name] for name in _OPTIONS.keys() & declared.config.keys()}
        self.options = _checked(file.with_name(CONFIG), {**own, **found})
        self._files = list(dict.fromkeys([file, *declared.files]))
        parts = {**_PARTS, **declared.parts}
        added, beyond = pieces_to_add(declared, ids, [parts[part] for part in _PARTS])
        _check(file, {**ids, **beyond}, parts)
        self._normalizer = _normalizer(self.options)
        self._splitter = BertPreTokenizer()
        backend = Backend(WordPiece(ids, unk_token=parts["unk_token"], max_input_chars_per_word=100))
        backend.normalizer = self._normalizer
        backend.pre_tokenizer = self._splitter
        self._reader = SpecialReader(backend, added)
        ids = {**ids, **beyond}
        self.pieces: Sequence[str] = sorted(ids, key=ids.__getitem__)
        self.vocab_size = len(ids)
        end = parts.get("eos_token")
        self.eos_token_id = ids[end if end in ids else parts["sep_token"]]
        self.pad_token_id = ids[parts["pad_token"]]
        self.start_token_ids: tuple[int, ...] = (ids[parts["cls_token"]],)
        self.unknown_token_id: int | None = ids[parts["unk_token"]]
        self.line_token_id: int | None = None
        self.special_pieces: Mapping[str, int] = self._reader.special
        self.reads_special_pieces = True
        self._invisible = {ids.get(parts[part]) for part in ("pad_token", "cls_token", "mask_token")}
        self._in_words: dict[str, bool] = {}

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing added in front; ``append_eod`` puts ``[SEP]`` behind them."""
        ids = self._reader.encode(checked_text(text))
        return [*ids, self.eos_token_id] if append_eod else ids

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        """``[CLS]`` and the ids of ``text``: UER trains on ``[CLS]`` document ``[SEP]``."""
        special = self.reads_special_pieces if special_pieces is None else special_pieces
        return with_start(self, self._reader.encode(checked_text(text), special=special), special=special)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``, joined without spaces but between two words of other scripts than Chinese.

        ``[PAD]``, ``[CLS]`` and ``[MASK]`` become nothing; ``[SEP]``, the end of a document, and ``[UNK]`` stay.
        """
        decoder = _Joiner(self)
        return "".join([decoder.push(i) for i in ids])

    def unknown_parts(self, text: str) -> list[str]:
        """Return the words and Chinese characters of ``text`` that become ``[UNK]``, each once, in their order."""
        places = self._reader.places(checked_text(text))
        return list(dict.fromkeys(part for token, part in places if token == self.unknown_token_id))

    def stream_decoder(self) -> StreamDecoder:
        """Give each piece at once: a piece is whole characters, and the space in front of it depends on the past."""
        return _Joiner(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Copy the tokenizer's own files into ``folder``, unchanged; ``BertTokenizer(folder)`` loads them again."""
        return copy_files(self._files, folder)

    def join(self, last: str, token_id: int) -> tuple[str, str]:
        """Return what ``token_id`` adds to a text that ends in ``last``, and the last character after it."""
        (token_id,) = checked_ids([token_id], self.vocab_size)
        piece = self.pieces[token_id]
        if not piece or token_id in self._invisible:
            return "", last
        if piece.startswith(_CONTINUED) and piece != _CONTINUED:
            return piece[len(_CONTINUED) :], piece[-1]
        apart = bool(last) and self._in_word(last) and self._in_word(piece[0])
        return f" {piece}" if apart else piece, piece[-1]

    def _in_word(self, character: str) -> bool:
        """Whether it makes one word with a letter beside it: not so for Chinese characters and punctuation.

        Two such characters come from one word or from two with white space between them. The first of a piece without
        ``##`` begins a word, so that a space has to stand in front of it.
        """
        if character not in self._in_words:
            text = self._normalizer.normalize_str(f"a{character}")
            self._in_words[character] = len(self._splitter.pre_tokenize_str(text)) == 1
        return self._in_words[character]


class _Joiner:
    """``StreamDecoder`` and ``decode`` in one."""

    def __init__(self, tokenizer: BertTokenizer) -> None:
        self._tokenizer = tokenizer
        self._last = ""

    def push(self, token_id: int) -> str:
        text, self._last = self._tokenizer.join(self._last, token_id)
        return text

    def finish(self) -> str:
        return ""
