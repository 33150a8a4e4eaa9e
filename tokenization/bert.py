"""BERT's WordPiece as UER's Chinese GPT-2 models use it: a list of pieces, one per line.

The work is done by the ``tokenizers`` library, set up as transformers' ``BertTokenizer`` does it: control characters
are removed, each Chinese character stands alone, text is lower-cased without accents, punctuation splits words, the
longest piece wins, later pieces of a word begin with ``##``. Three things differ from UER's own Python code: words of
more than 100 characters are ``[UNK]`` (200 there), a capital sigma at the end of a word becomes σ (ς there), and the
256 characters from U+2B820 on (Chinese extension E) are not set apart from their neighbours.

A special piece typed in a text, such as ``[SEP]``, is split at its brackets like any other word, as UER and Google do
it. transformers makes it the special id, unless ``split_special_tokens`` is set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from tokenization.base import (
    StreamDecoder,
    TokenizerError,
    checked_ids,
    checked_text,
    copy_files,
    encode_prompt,
    read_text,
)
from tokenization.tokenizer_json import FILE, read_tokenizer_json, with_added

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
VOCABULARY, CONFIG = "vocab.txt", "tokenizer_config.json"
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


def _check(path: Path, pieces: Mapping[str, int]) -> None:
    for piece in (PAD, UNK, CLS, SEP):
        if piece not in pieces:
            raise TokenizerError(f"{path}: not a vocabulary of BERT: none of its {len(pieces)} pieces is {piece}")


Options = dict[str, bool | None]
_OPTIONS: Options = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
_JSON_NAMES = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
"""What the library calls them in ``tokenizer.json``."""


def _options(config: Path) -> Options:
    """Hugging Face's ``tokenizer_config.json`` says so when a vocabulary has capital letters or accents."""
    if not config.is_file():
        return _OPTIONS
    try:
        found = json.loads(read_text(config))
        options = _OPTIONS | {key: found[key] for key in _OPTIONS.keys() & found.keys()}
    except (ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{config}: not a JSON object: {error}") from error
    return _checked(config, options)


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
            ids, values = read_tokenizer_json(file, "WordPiece")
            said = values.get("normalizer") or {}
            self._files = [file]
            self.options = _checked(file, {name: said.get(_JSON_NAMES.get(name, name)) for name in _OPTIONS})
        else:
            config = file.with_name(CONFIG)
            ids, added = with_added(file.parent, _read_pieces(file))
            self._files = [file, *added, *([config] if config.is_file() else [])]
            self.options = _options(config)
        self._normalizer = _normalizer(self.options)
        _check(file, ids)
        self.pieces: Sequence[str] = sorted(ids, key=ids.__getitem__)
        self._splitter = BertPreTokenizer()
        # The library is told of no special piece, so that it looks for none in a text.
        self._backend = Backend(WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100))
        self._backend.normalizer = self._normalizer
        self._backend.pre_tokenizer = self._splitter
        self.vocab_size = len(ids)
        self.eos_token_id = ids[SEP]
        self.pad_token_id = ids[PAD]
        self.start_token_ids: tuple[int, ...] = (ids[CLS],)
        self.unknown_token_id: int | None = ids[UNK]
        self.line_token_id: int | None = None
        self.special_pieces: Mapping[str, int] = {p: ids[p] for p in (PAD, UNK, CLS, SEP, MASK) if p in ids}
        self.reads_special_pieces = True
        self._invisible = {ids[piece] for piece in (PAD, CLS, MASK) if piece in ids}
        self._in_words: dict[str, bool] = {}

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing added in front; ``append_eod`` puts ``[SEP]`` behind them."""
        ids: list[int] = self._backend.encode(checked_text(text), add_special_tokens=False).ids
        return [*ids, self.eos_token_id] if append_eod else ids

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        """``[CLS]`` and the ids of ``text``: UER trains on ``[CLS]`` document ``[SEP]``."""
        return encode_prompt(self, text, special_pieces)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``, joined without spaces but between two words of other scripts than Chinese.

        ``[PAD]``, ``[CLS]`` and ``[MASK]`` become nothing; ``[SEP]``, the end of a document, and ``[UNK]`` stay.
        """
        decoder = _Joiner(self)
        return "".join([decoder.push(i) for i in ids])

    def unknown_parts(self, text: str) -> list[str]:
        """Return the words and Chinese characters of ``text`` that become ``[UNK]``, each once, in their order."""
        encoding = self._backend.encode(checked_text(text), add_special_tokens=False)
        places = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(text[first:end] for token, (first, end) in places if token == self.unknown_token_id))

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
