"""CPM's vocabulary as ``CpmTokenizer`` of transformers reads it: no words of jieba, no spaces, no line feeds.

Source: ``models/cpm/tokenization_cpm.py`` of transformers 5.24. White space is stripped and collapsed, two backquotes
or apostrophes become a quotation mark, accents are taken off (NFKD); then SentencePiece, and a comma after a digit
becomes a piece of its own. So most ids differ from those of CPM's own programs. Models that people tuned with
transformers want these ids; the published ones want those of ``cpm.py``.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenization.added_pieces import ADDED, CONFIG, SPECIAL_MAP, Declared, read_declared, read_object
from tokenization.base import (
    StreamDecoder,
    TokenizerError,
    checked_ids,
    checked_text,
    copy_as,
    prompt_or_end,
    with_end,
)
from tokenization.sentencepiece_file import load_processor, read_proto
from tokenization.special_pieces import split_special
from tokenization.streaming import PieceByPiece

FILE, CLASS = "spiece.model", "CpmTokenizer"
_SPACE, _TO_TEXT = "\u2581", str.maketrans({" ": None, "\u2581": None, "\u2582": " ", "\u2583": "\n"})
_SPECIAL = ("<s>", "</s>", "<unk>", "<sep>", "<pad>", "<cls>", "<mask>", "<eop>", "<eod>")
"""In the order in which the class adds those that the vocabulary does not have."""
_NAMED_END = "</s>"
"""What the class writes as the end of a text, whatever ends the texts of the model."""
_CONTROL = 3
"""``SentencePiece.Type`` of a piece that no text becomes."""


class CpmTransformersTokenizer:
    """Text to the ids of transformers' ``CpmTokenizer`` and back.

    >>> tokenizer = load_tokenizer("folder/with/spiece.model", kind="cpm-transformers")
    """

    def __init__(self, path: str | Path, *, vocab_size: int | None = None) -> None:
        """Read a model file; ``vocab_size``, the model's, says how many of the pieces that the class adds there are."""
        path = Path(path)
        proto = read_proto(path)
        pieces = {piece.piece: index for index, piece in enumerate(proto.pieces)}
        for piece in _SPECIAL:
            if piece in pieces and piece != "<unk>":  # <eod> is an ordinary piece of the newer model, for a word's end
                proto.pieces[pieces[piece]].type = _CONTROL
        self._model = load_processor(path, proto)
        declared = read_declared(path.parent).within(vocab_size)
        pieces = _with_added(path, pieces, declared, vocab_size)
        self._path = path
        self.pieces: list[str] = sorted(pieces, key=pieces.__getitem__)
        self.vocab_size = len(pieces)
        self.blank_ids: frozenset[int] = frozenset()
        own = {piece: pieces[piece] for piece in _SPECIAL if piece in pieces}
        special = {*declared.special, *(token.content for token in declared.added.values() if token.special)}
        self.special_pieces: Mapping[str, int] = {**own, **{p: i for p, i in pieces.items() if p in special}}
        self._added = {
            token.content: index for index, token in declared.added.items() if token.content not in self.special_pieces
        }
        if "<eod>" not in self.special_pieces:
            raise TokenizerError(f"{path}: not a vocabulary of CPM: it has no piece <eod>")
        self.reads_special_pieces = True
        end = declared.parts.get("eos_token")
        is_other = end in pieces and end != _NAMED_END
        self.eos_token_id: int | None = pieces[end] if is_other and end is not None else pieces["<eod>"]
        pad = declared.parts.get("pad_token", "<pad>")
        self.pad_token_id: int = pieces.get(pad if pad in pieces else "<pad>", pieces["<eod>"])
        self.start_token_ids: tuple[int, ...] = ()
        self.unknown_token_id: int | None = self._model.unk_id()
        self.line_token_id: int | None = None  # white space is lost
        self.notes: tuple[str, ...] = declared.notes
        if end == _NAMED_END:
            self.notes += (
                f"{path}: {_NAMED_END} is the class's end of a text, which no model of CPM's was trained with: <eod> "
                f"is taken; --end-piece '{_NAMED_END}' takes the other",
            )
        self._invisible = set(own.values()) - {self.eos_token_id, self.unknown_token_id}

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing added in front; ``append_eod`` puts ``<eod>`` behind them."""
        return with_end(self._encode(checked_text(text), self._added), self.eos_token_id, append=append_eod)

    def _encode(self, text: str, pieces: Mapping[str, int]) -> list[int]:
        """Encode the texts between ``pieces``; the class prepares each as a text of its own."""
        ids: list[int] = []
        for part in split_special(text, pieces):
            ids += [part] if isinstance(part, int) else [self._id_of(piece) for piece in self._split(part)]
        return ids

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        """Return the ids of ``text`` and of the special pieces in it, ``<eod>`` among them, as the class has it."""
        special = self.reads_special_pieces if special_pieces is None else special_pieces
        pieces = {**self._added, **self.special_pieces} if special else self._added
        return prompt_or_end(self._encode(checked_text(text), pieces), None)

    def _id_of(self, piece: str) -> int:
        """Return the id of a piece of text; unknown characters in a row may look like a special piece."""
        return int(self._model.unk_id() if piece in self.special_pieces else self._model.piece_to_id(piece))

    def _split(self, text: str) -> list[str]:
        """Return the pieces of ``text``, a comma after a digit apart."""
        pieces: list[str] = []
        for piece in self._model.encode_as_pieces(_prepared(text)):
            if len(piece) < 2 or piece[-1] != "," or not piece[-2].isdigit():
                pieces.append(piece)
                continue
            number = self._model.encode_as_pieces(piece[:-1].replace(_SPACE, ""))
            if piece[0] != _SPACE and number[0][0] == _SPACE:
                number = number[1:] if len(number[0]) == 1 else [number[0][1:], *number[1:]]
            pieces += [*number, ","]
        return pieces

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; padding and the other special pieces become nothing, ``<eod>`` stays visible."""
        return "".join(map(self._text_of, checked_ids(ids, self.vocab_size)))

    def _text_of(self, token_id: int) -> str:
        if token_id in self._invisible:
            return ""
        return "\u2047" if token_id == self.unknown_token_id else self.pieces[token_id].translate(_TO_TEXT)

    def unknown_parts(self, text: str) -> list[str]:
        """Return the characters of ``text`` that become the unknown id, each once, in their order."""
        pieces = self._split(checked_text(text))
        unknown = [piece for piece in pieces if self._id_of(piece) == self.unknown_token_id]
        return list(dict.fromkeys("".join(unknown).replace(_SPACE, "")))

    def stream_decoder(self) -> StreamDecoder:
        """Give each piece at once: it does not depend on its neighbours."""
        return PieceByPiece(self.decode)

    def save(self, folder: str | Path) -> list[Path]:
        """Copy the model, and what says to transformers and to us how to read it."""
        beside = [self._path.with_name(name) for name in (SPECIAL_MAP, ADDED)]
        files = copy_as({self._path: FILE, **{file: file.name for file in beside if file.is_file()}}, folder)
        config, copy = self._path.with_name(CONFIG), Path(folder) / CONFIG
        values = {**(read_object(config) if config.is_file() else {}), "tokenizer_class": CLASS}
        copy.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
        return [*files, copy]


def _with_added(path: Path, pieces: Mapping[str, int], declared: Declared, vocab_size: int | None) -> dict[str, int]:
    """Return the pieces, those that the files add, and in the gaps those that the class adds, as far as there are rows.

    Raises:
        TokenizerError: an added piece has the id of another one, or leaves a gap.
    """
    found = dict(pieces)
    waiting = [piece for piece in _SPECIAL if piece not in pieces]
    rows = max(vocab_size or 0, max(declared.added, default=-1) + 1)
    while len(found) < rows:
        index = len(found)
        waiting = [piece for piece in waiting if piece not in found]
        token = declared.added.get(index)
        if token is None and not waiting:
            break
        found[waiting.pop(0) if token is None else token.content] = index
    for index, token in declared.added.items():
        if found.get(token.content) != index:
            raise TokenizerError(
                f"{path}: the added piece {token.content[:40]!r} has the id {index}, expected "
                f"{found.get(token.content, len(found))}: it belongs to another vocabulary"
            )
    return found


def _prepared(text: str) -> str:
    text = " ".join(text.strip().split()).replace("``", '"').replace("''", '"')
    return "".join(
        character for character in unicodedata.normalize("NFKD", text) if not unicodedata.combining(character)
    )
