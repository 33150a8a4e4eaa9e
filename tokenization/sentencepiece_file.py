"""Any SentencePiece model: ``*.model`` of whoever trained a vocabulary; the sentencepiece library does the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenization.added_pieces import Declared, pieces_to_add, read_declared
from tokenization.base import (
    StreamDecoder,
    TokenizerError,
    checked_ids,
    checked_text,
    copy_files,
    prompt_or_end,
    with_end,
    with_start,
)
from tokenization.special_pieces import split_special
from tokenization.streaming import GrowingText
from tokenization.usual_names import find_part

_SHIFTED = ("XLMRoberta", "XLMR", "Camembert", "MBart", "Barthez", "XGLM", "Nllb", "Pegasus", "BigBirdPegasus")
"""Classes of transformers whose ids are not those of the SentencePiece model: they put pieces in front of it."""
_USER_DEFINED = 4
"""``SentencePiece.Type`` of a piece that its trainer asked for."""
_LARGEST = 200 << 20
"""Bytes of the largest file that is read as a model: a vocabulary of 250,000 pieces has 5 MB."""


def read_proto(path: Path) -> Any:
    """Return the ``ModelProto`` in ``path``.

    Raises:
        TokenizerError: it cannot be read, or is something else.
    """
    from sentencepiece import sentencepiece_model_pb2

    try:
        if path.stat().st_size > _LARGEST:
            raise TokenizerError(f"{path}: not a SentencePiece model: more than {_LARGEST >> 20} MB")
        proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    except TokenizerError:
        raise
    except Exception as error:  # protobuf raises its own types
        raise TokenizerError(f"{path}: not a SentencePiece model: {str(error) or type(error).__name__}") from error
    if not proto.pieces:
        raise TokenizerError(f"{path}: not a SentencePiece model: it has no pieces")
    return proto


def starts_as_model(path: Path) -> bool:
    """Whether the first byte of ``path`` is that of a ``ModelProto``, whose first field is its pieces."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"\n"
    except OSError:
        return False


def is_cpm(path: Path) -> bool:
    """Whether ``path`` is a model of CPM's kind: it has ``<eod>``, and pieces for a space and a line feed."""
    try:
        if not starts_as_model(path):
            return False
        pieces = {piece.piece for piece in read_proto(path).pieces}
    except TokenizerError:
        return False
    return "<eod>" in pieces and ("\u2583" in pieces or "\u2582" in pieces)


def load_processor(path: Path, proto: Any) -> Any:
    """Return the SentencePiece processor of a model that was read from ``path``.

    Raises:
        TokenizerError: the library cannot use it.
    """
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except Exception as error:  # RuntimeError, and others of protobuf
        raise TokenizerError(f"{path}: not a SentencePiece model: {str(error) or type(error).__name__}") from error


def _unusual(proto: Any) -> str | None:
    """Return what of a model transformers 5 does not take over when it makes a tokenizer of its own of it."""
    if proto.trainer_spec.treat_whitespace_as_suffix:
        return "white space behind words"
    if any(piece.type == _USER_DEFINED and piece.piece.isspace() for piece in proto.pieces):
        return "a piece of white space, such as a line feed"
    return None


class SentencePieceTokenizer:
    """Text to the ids that the sentencepiece library gives, and back.

    >>> tokenizer = SentencePieceTokenizer("path/to/spiece.model")
    >>> tokenizer.encode("今天天气不错")                     # SentencePieceProcessor(...).encode(...)

    Control pieces, such as ``</s>``, become no text and no text becomes them; a prompt may name them. Pieces that
    ``tokenizer_config.json`` or ``added_tokens.json`` adds follow those of the model.
    """

    def __init__(self, path: str | Path, *, vocab_size: int | None = None) -> None:
        """Read a model; added pieces beyond ``vocab_size``, the number of the GPT-2's rows, are left out."""
        path = Path(path)
        proto = read_proto(path)
        self._model = load_processor(path, proto)
        self.differs_in_transformers = _unusual(proto)
        declared = read_declared(path.parent).within(vocab_size)
        size: int = self._model.get_piece_size()
        pieces = {str(self._model.id_to_piece(index)): index for index in range(size)}
        name = str(declared.config.get("tokenizer_class"))
        if name.startswith(_SHIFTED):
            raise TokenizerError(
                f"{path}: its ids are shifted by {name[:40]}: save the tokenizer by transformers 5, which writes "
                "tokenizer.json, and give that"
            )
        added, beyond = pieces_to_add(declared, pieces)
        self._size = size
        self._files = [path, *declared.files]
        vocabulary = {**pieces, **beyond}
        self.pieces: list[str] = sorted(vocabulary, key=vocabulary.__getitem__)
        self.vocab_size = size + len(beyond)
        self.blank_ids: frozenset[int] = frozenset()
        unknown: int = self._model.unk_id()
        self.unknown_token_id: int | None = unknown if unknown >= 0 else None
        controls = [piece for piece, index in pieces.items() if self._model.is_control(index)]
        special = [*controls, *(token.content for token in added if token.special)]
        self.special_pieces: Mapping[str, int] = {piece: vocabulary[piece] for piece in special}
        self._added = {token.content: vocabulary[token.content] for token in added if not token.special}
        self.reads_special_pieces = True
        self._set_parts(vocabulary, declared)
        line = self._model.encode("\n")
        self.line_token_id: int | None = line[-1] if line and self._model.decode(line[-1:]) == "\n" else None
        self.notes: tuple[str, ...] = declared.notes
        self.options: dict[str, Any] = {}

    def _set_parts(self, vocabulary: Mapping[str, int], declared: Declared) -> None:
        """Find the end of a text, padding and the beginning: declared ones, else the model's, else usual names."""

        def find(part: str, index: int) -> int | None:
            piece = declared.parts.get(part)
            if piece is not None and piece in vocabulary:
                return vocabulary[piece]
            if index >= 0:
                return index
            usual = find_part(part, {}, vocabulary)
            return None if usual is None else vocabulary[usual]

        self.eos_token_id: int | None = find("eos_token", self._model.eos_id())
        pad = find("pad_token", self._model.pad_id())
        self.pad_token_id: int = pad if pad is not None else self.eos_token_id or 0
        begin = find("bos_token", self._model.bos_id())
        puts_begin = declared.config.get("add_bos_token") is True and begin is not None
        self.start_token_ids: tuple[int, ...] = (int(begin or 0),) if puts_begin else ()

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing added in front; ``append_eod`` puts the end of a text behind them."""
        return with_end(self._encode(checked_text(text), self._added), self.eos_token_id, append=append_eod)

    def _encode(self, text: str, pieces: Mapping[str, int]) -> list[int]:
        """Encode the texts between ``pieces``; SentencePiece begins each as it begins a text."""
        ids: list[int] = []
        for part in split_special(text, pieces):
            ids += [part] if isinstance(part, int) else self._model.encode(part)
        return ids

    def encode_prompt(self, text: str, *, special_pieces: bool | None = None) -> list[int]:
        """Return the ids of ``text`` and of the control pieces in it; of an empty one the end of a text."""
        special = self.reads_special_pieces if special_pieces is None else special_pieces
        pieces = {**self._added, **self.special_pieces} if special else self._added
        ids = with_start(self, self._encode(checked_text(text), pieces), special=special)
        return prompt_or_end(ids, self.eos_token_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; control pieces become nothing, but the end of a text stays visible."""
        text, run = "", list[int]()
        for index in checked_ids(ids, self.vocab_size):
            if index < self._size and index != self.eos_token_id:
                run.append(index)
                continue
            text += self._model.decode(run) + self.pieces[index]
            run = []
        return text + str(self._model.decode(run))

    def unknown_parts(self, text: str) -> list[str]:
        """Return the characters of ``text`` that become the unknown id, each once, in their order."""
        pieces = self._model.encode_as_pieces(checked_text(text))
        unknown = [piece for piece in pieces if self._model.piece_to_id(piece) == self.unknown_token_id]
        return list(dict.fromkeys("".join(unknown).replace("\u2581", "")))

    def stream_decoder(self) -> StreamDecoder:
        """Decode all again for each token: a space in front of a word depends on the past."""
        return GrowingText(self.decode)

    def save(self, folder: str | Path) -> list[Path]:
        """Copy the tokenizer's own files into ``folder``, unchanged; the folder can be loaded again."""
        return copy_files(self._files, folder)
