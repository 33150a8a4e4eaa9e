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

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from tokenization.added_pieces import CONFIG, Declared, pieces_to_add, read_declared
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
from tokenization.tokenizer_json import FILE, read_tokenizer_json
from tokenization.usual_names import find_part, is_usual

_PARTS = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_MARKER = re.compile(r"\[(?!unused)[^\[\]\s]+\]")
"""A piece that no text becomes, as words end at brackets; but not one that waits for a use."""
_MOST_WORDS = 0.2
"""The part of the pieces above which Chinese words of several characters make a vocabulary one of words."""
VOCABULARY = "vocab.txt"
_CONTINUED = "##"


class NeverMadeError(TokenizerError):
    """A vocabulary of which BERT's rules never make a large part."""


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


def _read_lines(path: Path) -> list[str]:
    """Return the piece of each line, which is its id; a blank line is an id without a piece.

    As the library has it, white space behind a piece is none of it. U+2028 is a piece of Google's list: only line feeds
    end a line, and blank lines at the end are none.
    """
    lines = [line.rstrip() or line for line in read_text(path).rstrip("\n").split("\n")]
    return lines if lines != [""] else []


def _numbered(lines: Sequence[str]) -> dict[str, int]:
    """Piece -> id. Of a piece that is there twice the last line counts, as in every reader of BERT's vocabularies."""
    return {piece: index for index, piece in enumerate(lines) if piece}


def _with_gaps_filled(ids: Mapping[str, int]) -> dict[str, int]:
    """``ids`` and, for each number that is missing, a piece that no text becomes: the library counts its pieces."""
    missing = set(range(max(ids.values(), default=-1) + 1)) - {*ids.values()}
    return {**ids, **{f"\0{index}": index for index in sorted(missing)}}


def _check(path: Path, ids: Mapping[str, int], unknown: str | None, options: Options) -> None:
    if unknown is None:
        raise TokenizerError(f"{path}: not a vocabulary of BERT: none of its {len(ids)} pieces is [UNK] or <unk>")
    words = sum(len(piece) > 1 and all("\u4e00" <= c <= "\u9fff" for c in piece) for piece in ids)
    if words > _MOST_WORDS * len(ids) and options["tokenize_chinese_chars"]:
        raise NeverMadeError(
            f"{path}: {words} of {len(ids)} pieces are Chinese words, which BERT's rules never make: they set each "
            "character apart. A text has to be cut by the program that the vocabulary is of: give token ids"
        )


def _find_parts(declared: Declared, ids: Mapping[str, int]) -> dict[str, str | None]:
    """Return which piece has which part: a declared one, which may be an added one, else the usual one.

    Only a piece of the vocabulary itself is what unknown words become: the library looks for it there.
    """
    added = {token.content for token in declared.added.values()}
    parts = {part: find_part(part, declared.parts, ids) for part in (*_PARTS, "eos_token")}
    for part in parts:
        if part != "unk_token" and declared.parts.get(part) in added:
            parts[part] = declared.parts[part]
    return parts


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

    def __init__(self, path: str | Path, *, vocab_size: int | None = None) -> None:
        """Read a vocabulary; added pieces beyond ``vocab_size``, the number of the model's rows, are left out."""
        file = _vocabulary_file(Path(path))
        if file.suffix == ".json":
            ids, declared, values = read_tokenizer_json(file, "WordPiece")
            said = values.get("normalizer") or {}
            own = _checked(file, {name: said.get(_JSON_NAMES.get(name, name)) for name in _OPTIONS})
            lines: Sequence[str] = []
        else:
            lines = _read_lines(file)
            ids, declared, own = _numbered(lines), read_declared(file.parent), _OPTIONS
        found = {name: declared.config[name] for name in _OPTIONS.keys() & declared.config.keys()}
        self.options = _checked(file.with_name(CONFIG), {**own, **found})
        self._files = {file: FILE if file.suffix == ".json" else file.name, **{f: f.name for f in declared.files}}
        declared = declared.within(vocab_size)
        parts = _find_parts(declared, ids)
        _check(file, ids, parts["unk_token"], self.options)
        markers = (piece for piece in ids if _MARKER.fullmatch(piece) and not is_usual(piece))
        special = [*filter(None, map(parts.get, _PARTS)), *markers]
        filled = _with_gaps_filled(ids)
        added, beyond = pieces_to_add(declared, filled, special)
        self._normalizer = _normalizer(self.options)
        self._splitter = BertPreTokenizer()
        backend = Backend(WordPiece(filled, unk_token=str(parts["unk_token"]), max_input_chars_per_word=100))
        backend.normalizer = self._normalizer
        backend.pre_tokenizer = self._splitter
        self._reader = SpecialReader(backend, added)
        ids = {**ids, **beyond}
        self.vocab_size = max(ids.values()) + 1
        of_id = {index: piece for piece, index in ids.items()}
        self.pieces: Sequence[str] = [
            of_id.get(index, lines[index] if index < len(lines) else "") for index in range(self.vocab_size)
        ]
        self.blank_ids = frozenset(index for index, piece in enumerate(self.pieces) if not piece)
        self._set_parts(ids, parts, declared.parts)
        self.line_token_id: int | None = None
        self.special_pieces: Mapping[str, int] = self._reader.special
        self.reads_special_pieces = True
        self.notes: tuple[str, ...] = declared.notes
        self._in_words: dict[str, bool] = {}

    def _set_parts(self, ids: Mapping[str, int], parts: Mapping[str, str | None], declared: Mapping[str, str]) -> None:
        """Find the ids of the pieces that have a part; BERT's ``[SEP]`` ends a text where no other piece is said to."""

        def index_of(part: str) -> int | None:
            piece = parts[part]
            return None if piece is None else ids[piece]

        says_end = declared.get("eos_token") in ids
        self.eos_token_id = index_of("sep_token" if "[SEP]" in ids and not says_end else "eos_token")
        pad, start = index_of("pad_token"), index_of("cls_token")
        self.pad_token_id: int = pad if pad is not None else self.eos_token_id or 0
        self.start_token_ids: tuple[int, ...] = () if start is None else (start,)
        self.unknown_token_id = index_of("unk_token")
        self._invisible = {pad, start, index_of("mask_token")} - {self.eos_token_id}

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing added in front; ``append_eod`` puts ``[SEP]`` behind them."""
        return with_end(self._reader.encode(checked_text(text)), self.eos_token_id, append=append_eod)

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        """``[CLS]`` and the ids of ``text``: UER trains on ``[CLS]`` document ``[SEP]``."""
        special = self.reads_special_pieces if special_pieces is None else special_pieces
        ids = with_start(self, self._reader.encode(checked_text(text), special=special), special=special)
        return prompt_or_end(ids, self.eos_token_id)

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
        return copy_as(self._files, folder)

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
