"""A tokenizer with the pieces that begin the texts of one model, end them and end their lines.

A vocabulary does not say what a model was trained to see: GPT2-Chinese begins an article with ``[MASK]``, ends it with
``[CLS]`` and its lines with ``[SEP]``, UER-py writes ``[CLS]`` text ``[SEP]``, both with the same list of pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from exports.generation_config import PieceOptions
from tokenization import StreamDecoder, Tokenizer, TokenizerError
from tokenization.special_pieces import split_special

_AS_THE_TOKENIZER = PieceOptions()


class ModelTokenizer:
    """What a ``Tokenizer`` is for one model.

    Attributes:
        options: which pieces it has over the tokenizer's own.
        eos_token_id: the end of a document.
        start_token_ids: what stands in front of every text.
        line_token_id: the end of a line, the model's or the vocabulary's; None where a text has no lines.
    """

    def __init__(
        self, tokenizer: Tokenizer, options: PieceOptions = _AS_THE_TOKENIZER, eos_token_id: int | None = None
    ) -> None:
        """Wrap ``tokenizer``; ``eos_token_id`` is the end of a document where it is not that of the vocabulary."""
        self.options, self._tokenizer = options, tokenizer
        self.vocab_size, self.pad_token_id = tokenizer.vocab_size, tokenizer.pad_token_id
        self.unknown_token_id, self.special_pieces = tokenizer.unknown_token_id, tokenizer.special_pieces
        self.start_token_ids: tuple[int, ...] = tokenizer.start_token_ids
        if options.start_token_ids is not None:
            self.start_token_ids = options.start_token_ids
        self.line_token_id: int | None = tokenizer.line_token_id
        if options.line_token_id is not None:
            self.line_token_id = options.line_token_id
        ends = (eos_token_id, tokenizer.eos_token_id)
        self.eos_token_id = next((end for end in ends if end not in (None, options.line_token_id)), None)
        self.reads_special_pieces = tokenizer.reads_special_pieces
        if options.special_pieces is not None:
            self.reads_special_pieces = options.special_pieces
        self._replaces_lines = options.line_token_id not in (None, tokenizer.line_token_id)

    @property
    def line_end(self) -> int | None:
        """What ends a line where each line is a piece of its own: the model's line piece, else the end of a document.

        None where there is neither, nor a line feed in the vocabulary.
        """
        ends = (self.options.line_token_id, self.eos_token_id, self.line_token_id)
        return next((end for end in ends if end is not None), None)

    @property
    def document_end(self) -> str:
        """The end of a document as it is typed and decoded, ``<eod>``; empty where there is none."""
        return "" if self.eos_token_id is None else self._name(self.eos_token_id)

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the ordinary texts of a prompt and the ids of the special pieces that are read in it."""
        return split_special(text, self.special_pieces if self.reads_special_pieces else {})

    def begins_with_piece(self, text: str) -> bool:
        """Whether a prompt names its own beginning: then nothing is put in front of it."""
        return isinstance(next(self.split(text), None), int)

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing in front; a line feed becomes the model's line piece, if it has one."""
        lines = re.split("\r?\n", text) if self._replaces_lines else [text]
        ids: list[int] = []
        for number, line in enumerate(lines):
            if number and self.line_token_id is not None:
                ids.append(self.line_token_id)
            ids += self._tokenizer.encode(line) if line or not self._replaces_lines else []
        return [*ids, self.eos_token_id] if append_eod and self.eos_token_id is not None else ids

    def encode_pieces(self, text: str) -> list[int]:
        """Token ids of a part of a prompt, the special pieces in it among them, with nothing in front."""
        parts = ([part] if isinstance(part, int) else self.encode(part) for part in self.split(text))
        return [token for part in parts for token in part]

    def encode_prompt(self, text: str) -> list[int]:
        """Return what generation starts from; nothing is put in front of a prompt that names its own beginning.

        Raises:
            TokenizerError: the prompt has no tokens, and the model has none to start from.
        """
        if not self._replaces_lines and self.options.start_token_ids is None:
            return self._tokenizer.encode_prompt(text, special_pieces=self.reads_special_pieces)
        start = () if self.begins_with_piece(text) else self.start_token_ids
        if ids := [*start, *self.encode_pieces(text)]:
            return ids
        if self.options.start_token_ids is None:
            return self._tokenizer.encode_prompt("")
        raise TokenizerError("the prompt has no tokens, and start_token_ids has none to start from: expected some text")

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; the model's line piece is a line feed."""
        if not self._replaces_lines:
            return self._tokenizer.decode(ids)
        decoder = self.stream_decoder()
        return "".join([decoder.push(token) for token in ids]) + decoder.finish()

    def unknown_parts(self, text: str) -> list[str]:
        """Return the characters or words of a prompt that become the unknown id, each once, in their order."""
        ordinary = [part for part in self.split(text) if isinstance(part, str)]
        return list(dict.fromkeys(word for part in ordinary for word in self._tokenizer.unknown_parts(part)))

    def unread_pieces(self, text: str) -> list[str]:
        """Return the special pieces that a prompt has as text, each once: nobody said whether they are to be read."""
        if self.reads_special_pieces or self.options.special_pieces is not None:
            return []
        names = {token: piece for piece, token in self.special_pieces.items()}
        found = [names[part] for part in split_special(text, self.special_pieces) if isinstance(part, int)]
        return list(dict.fromkeys(found))

    def shown(self, string: str) -> str:
        """Return a stop string as texts have it: the name of the model's line piece is a line feed."""
        if not self._replaces_lines or self.line_token_id is None:
            return string
        name = self._name(self.line_token_id)
        return string.replace(name, "\n") if name else string

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for the tokens of one row."""
        if not self._replaces_lines or self.line_token_id is None:
            return self._tokenizer.stream_decoder()
        return _Lines(self._tokenizer.stream_decoder, self.line_token_id)

    def save(self, folder: str | Path) -> list[Path]:
        """Copy the tokenizer's own files into ``folder``, unchanged."""
        return self._tokenizer.save(folder)

    def _name(self, token_id: int) -> str:
        names: Mapping[int, str] = {token: piece for piece, token in self.special_pieces.items()}
        return names.get(token_id) or self._tokenizer.decode([token_id])


class _Lines:
    """A ``StreamDecoder`` that shows the line piece as a line feed; each line is decoded for itself."""

    def __init__(self, new_decoder: Callable[[], StreamDecoder], line_token_id: int) -> None:
        self._new_decoder, self._line = new_decoder, line_token_id
        self._decoder = new_decoder()

    def push(self, token_id: int) -> str:
        if token_id != self._line:
            return self._decoder.push(token_id)
        rest, self._decoder = self._decoder.finish(), self._new_decoder()
        return f"{rest}\n"

    def finish(self) -> str:
        return self._decoder.finish()
