"""CPM's tokenizer: jieba words, two substitutions, SentencePiece.

Source of the behaviour: ``data_utils/tokenization_gpt2.py`` of CPM-1-Generate (the variant used since November 2020).
Text is cut into words by jieba (HMM on); a space becomes U+2582 and a line feed U+2583, because SentencePiece would
swallow both; the words are joined with spaces and encoded. Decoding undoes the three steps in reverse.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenization.base import (
    StreamDecoder,
    TokenizerError,
    checked_ids,
    checked_text,
    copy_files,
    read_text,
    with_end,
)
from tokenization.sentencepiece_file import load_processor, read_proto
from tokenization.special_pieces import split_special
from tokenization.streaming import GrowingText, PieceByPiece

SPACE, NEWLINE = "\u2582", "\u2583"
_TO_PIECES = str.maketrans({" ": SPACE, "\n": NEWLINE})
_TO_TEXT = str.maketrans({" ": None, SPACE: " ", NEWLINE: "\n"})

EOD, PAD = "<eod>", "<pad>"
_CONTROLS = ("<s>", "</s>", "<sep>", "<mask>")
_NEWLINE_ID, _EOD_ID = 3, 7
_NORMAL = 1
"""``SentencePiece.Type`` of an ordinary piece."""


@functools.cache
def _jieba() -> Any:
    """Return a jieba tokenizer of our own, with the dictionary that jieba ships and nothing else.

    ``jieba.cut`` would use the process-wide tokenizer (whose words anybody may have changed), log to stderr, and read
    and write a cache in the temp folder, which fails when that is read-only and trusts whoever wrote the file.
    """
    with warnings.catch_warnings():  # jieba 0.42.1: pkg_resources, and escapes that Python 3.12 complains about
        warnings.simplefilter("ignore")
        import jieba
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


def segment(text: str) -> str:
    """Words separated by one space, with spaces and line feeds of the text replaced: what SentencePiece is given."""
    return " ".join(word.translate(_TO_PIECES) for word in _jieba().cut(text, cut_all=False))


def _load_model(path: Path) -> Any:
    """Return the SentencePiece processor of ``path``; the older of CPM's two files is read as if it were the newer one.

    The files differ in pieces 3 and 7: the older one has the control symbols ``<cls>`` and ``<eod>`` where the newer
    one has the ordinary pieces U+2583 (score -2) and ``<eod>`` (score 0), without which a line feed cannot be encoded.
    """
    proto = read_proto(path)
    pieces = proto.pieces
    if len(pieces) > _EOD_ID and pieces[_NEWLINE_ID].piece == "<cls>" and pieces[_EOD_ID].piece == EOD:
        for index, piece, score in ((_NEWLINE_ID, NEWLINE, -2.0), (_EOD_ID, EOD, 0.0)):
            pieces[index].piece, pieces[index].score = piece, score
            pieces[index].type = _NORMAL
    return load_processor(path, proto)


class CPMTokenizer:
    """Text to CPM's token ids and back.

    >>> tokenizer = CPMTokenizer("path/to/bpe_3w_new")      # a folder with one .model file, or that file
    >>> tokenizer.encode("今天天气不错")                        # [837, 259, 497, 788] with CPM's vocabulary
    >>> tokenizer.encode("歌词一行", append_eod=True)           # the only way to get <eod>: text never becomes it

    What CPM's tokenizer loses is lost here too: tabs and full-width spaces vanish, full-width punctuation becomes
    ASCII (NFKC), characters outside the vocabulary become id 0. So ``decode(encode(text)) != text`` in general: trim a
    prompt by its number of tokens, never by the length of its text.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        models = sorted(path.glob("*.model")) if path.is_dir() else [path]
        if len(models) != 1:
            found = ", ".join(model.name for model in models) or "none"
            raise TokenizerError(f"{path}: expected one SentencePiece file (*.model), found {found}")
        self._model = _load_model(models[0])
        self._files = [models[0]]
        self.vocab_size: int = self._model.get_piece_size()
        self._has_bytes = any(self._model.is_byte(i) for i in range(self.vocab_size))
        self.blank_ids: frozenset[int] = frozenset()
        self.notes: tuple[str, ...] = ()
        self.eos_token_id: int | None = self._special(EOD)
        self.pad_token_id = self._special(PAD)
        self.start_token_ids: tuple[int, ...] = ()
        self.unknown_token_id: int | None = self._model.unk_id()
        self.line_token_id: int | None = self._model.piece_to_id(NEWLINE)
        if self.line_token_id == self.unknown_token_id:
            raise TokenizerError(f"{models[0]}: not a vocabulary of CPM: it has no piece {NEWLINE} (U+2583, line feed)")
        known = {piece: self._model.piece_to_id(piece) for piece in (*_CONTROLS, PAD, EOD)}
        self.special_pieces: Mapping[str, int] = {p: i for p, i in known.items() if i != self.unknown_token_id}
        self.reads_special_pieces = True
        vocabulary = models[0].parent / "vocab.json"
        if vocabulary.is_file():
            self._check_vocabulary(vocabulary)
            self._files.append(vocabulary)

    def _special(self, piece: str) -> int:
        index: int = self._model.piece_to_id(piece)
        if index == self._model.unk_id():
            raise TokenizerError(f"{self._files[0]}: not a vocabulary of CPM: it has no piece {piece}")
        return index

    def _check_vocabulary(self, path: Path) -> None:
        """``vocab.json`` repeats the pieces of the model; a file of another vocabulary would go unnoticed otherwise."""
        text = read_text(path)
        try:
            vocabulary = json.loads(text)
            size = len(vocabulary)
            eod = vocabulary.get(EOD)
        except (ValueError, AttributeError, TypeError) as error:
            raise TokenizerError(f"{path}: not a JSON object of pieces: {error}") from error
        if (size, eod) != (self.vocab_size, self.eos_token_id):
            raise TokenizerError(
                f"{path}: {size} pieces with {EOD} = {eod}, but {self._files[0].name} has {self.vocab_size} "
                f"with {EOD} = {self.eos_token_id}: the two files belong to different vocabularies"
            )

    @property
    def pieces(self) -> list[str]:
        """All of them, by id; words begin with U+2581."""
        return [str(self._model.id_to_piece(index)) for index in range(self.vocab_size)]

    @property
    def eod_id(self) -> int:
        """The id of ``<eod>``, the end of a document; the same as ``eos_token_id``."""
        return self._special(EOD)

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing added in front; ``append_eod`` puts ``<eod>`` behind them."""
        ids: list[int] = self._model.encode(segment(checked_text(text)))
        return with_end(ids, self.eos_token_id, append=append_eod)

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        """``encode(text)`` with the ids of ``<sep>`` and other control pieces; an error where that is nothing.

        ``<eod>`` ends a document, so it is text unless ``special_pieces`` is true. CPM has no token that begins one.
        """
        pieces = self.special_pieces if special_pieces is not False else {}
        if special_pieces is None:
            pieces = {piece: index for piece, index in pieces.items() if piece != EOD}
        ids: list[int] = []
        for part in split_special(checked_text(text), pieces):
            ids += [part] if isinstance(part, int) else self.encode(part)
        if not ids:
            raise TokenizerError("the prompt has no tokens, and CPM has none to start from: expected some text")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; padding and the other control ids become nothing, ``<eod>`` stays visible."""
        text: str = self._model.decode(checked_ids(ids, self.vocab_size))
        return text.translate(_TO_TEXT)

    def unknown_parts(self, text: str) -> list[str]:
        """Return the characters of ``text`` that become id 0 where they stand, each once, in their order.

        Some characters have a piece at the beginning of a word only.
        """
        pieces = self._model.encode_as_pieces(segment(checked_text(text)))
        unknown = [piece for piece in pieces if self._model.piece_to_id(piece) == self.unknown_token_id]
        return list(dict.fromkeys("".join(unknown).replace("\u2581", "")))

    def stream_decoder(self) -> StreamDecoder:
        """Decode each token for itself, unless the vocabulary has pieces for single bytes.

        Without the spaces that SentencePiece puts in, and that are not text, nothing depends on the neighbours.
        """
        return GrowingText(self.decode) if self._has_bytes else PieceByPiece(self.decode)

    def save(self, folder: str | Path) -> list[Path]:
        """Copy the tokenizer's own files into ``folder``, unchanged; ``CPMTokenizer(folder)`` loads them again."""
        return copy_files(self._files, folder)
