"""A tokenizer with the pieces that begin the texts of one model, end them and end their lines.

A vocabulary does not say what a model was trained to see: GPT2-Chinese begins an article with ``[MASK]``, ends it with
``[CLS]`` and its lines with ``[SEP]``, UER-py writes ``[CLS]`` text ``[SEP]``, both with the same list of pieces.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

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
        self._replaces_lines = options.line_token_id not in (None, tokenizer.line_token_id)
        self._without_start = _without_start(tokenizer)

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

    def begins_by_itself(self, ids: Sequence[int]) -> bool:
        """Whether the tokens of a prompt begin with a special piece, so that nothing is put in front of them.

        The unknown piece, the end of a line and padding begin nothing, unless the end of a text is its padding too.
        """
        nothing = {self.unknown_token_id, self.options.line_token_id, self.pad_token_id} - {self.eos_token_id}
        begin = {*self.special_pieces.values()} - nothing
        return self.options.special_pieces is not False and bool(ids) and ids[0] in begin

    def encode(self, text: str, *, append_eod: bool = False) -> list[int]:
        """Token ids of ``text``, with nothing in front; a line feed becomes the model's line piece, if it has one."""
        lines = re.split("\r?\n", text) if self._replaces_lines else [text]
        ids: list[int] = []
        for number, line in enumerate(lines):
            if number and self.line_token_id is not None:
                ids.append(self.line_token_id)
            ids += self._tokenizer.encode(line) if line or not self._replaces_lines else []
        return [*ids, self.eos_token_id] if append_eod and self.eos_token_id is not None else ids

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a part of a prompt, in which special pieces are read, with nothing in front."""
        lines = re.split("\r?\n", text) if self._replaces_lines else [text]
        ids: list[int] = []
        for number, line in enumerate(lines):
            if number and self.line_token_id is not None:
                ids.append(self.line_token_id)
            if line and self._tokenizer.encode(line):  # else the tokenizer starts from something, or raises
                ids += self._without_start.encode_prompt(line, special_pieces=self.options.special_pieces)
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Return what generation starts from.

        Raises:
            TokenizerError: the prompt has no tokens, and the model has none to start from.
        """
        if not self._replaces_lines and self.options.start_token_ids is None:
            return self._tokenizer.encode_prompt(text, special_pieces=self.options.special_pieces)
        ids = self.encode_part(text)
        if not self.begins_by_itself(ids):
            ids = [*self.start_token_ids, *ids]
        if ids:
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
        pieces = {} if self.options.special_pieces is False else self.special_pieces
        ordinary = [part for part in split_special(text, pieces) if isinstance(part, str)]
        return list(dict.fromkeys(word for part in ordinary for word in self._tokenizer.unknown_parts(part)))

    def unread_pieces(self, text: str, ids: Sequence[int]) -> list[str]:
        """Return the pieces that a prompt names and that are text in its ``ids``, because nobody asked for them."""
        named = {part for part in split_special(text, self.special_pieces) if isinstance(part, int)} - {*ids}
        if not named or self.options.special_pieces is not None:
            return []
        named &= {*self._tokenizer.encode_prompt(text, special_pieces=True)}
        return [piece for piece, token in self.special_pieces.items() if token in named]

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

    def _name(self, token_id: int) -> str:
        names: Mapping[int, str] = {token: piece for piece, token in self.special_pieces.items()}
        return names.get(token_id) or self._tokenizer.decode([token_id])


def _without_start(tokenizer: Tokenizer) -> Tokenizer:
    """Return the same tokenizer, which puts nothing in front of a prompt."""
    if not tokenizer.start_token_ids:
        return tokenizer
    bare = copy.copy(tokenizer)
    bare.start_token_ids = ()
    return bare


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
