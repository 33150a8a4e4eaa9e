"""Presets and windows: options that belong together, how a prompt is read and how a text is shown.

The two presets do what CPM-1-Text-Generation-Unlimit's two scripts do, lyrics and novels without end: both sample from
the whole distribution, go on past the end of a document, and count prompt and continuation together.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, get_args

from exports.generation_config import OptionError
from inference.model_tokenizer import ModelTokenizer
from inference.options import WindowName
from tokenization import StreamDecoder


class TextStyle:
    """How a prompt is read and a text is shown without a preset: as they are."""

    def encode(self, tokenizer: ModelTokenizer, text: str, *, unfinished: bool = False) -> list[int]:
        """Return the tokens of a prompt; an ``unfinished`` one was cut within a line.

        Raises:
            TokenizerError: the prompt has no tokens, and the model has none to start from.
        """
        return tokenizer.encode_prompt(text)

    def reads(self, tokenizer: ModelTokenizer) -> list[str]:
        """Return the names of pieces that are no text in a prompt, whatever ``special_pieces`` is by default."""
        return []

    def echo(self, prompt: str) -> str:
        """Return a prompt as it stands in front of its continuation."""
        return prompt

    def decoder(self, tokenizer: ModelTokenizer) -> StreamDecoder:
        """Return a decoder whose text is what a reader wants."""
        return tokenizer.stream_decoder()

    def stop_strings(self, tokenizer: ModelTokenizer, strings: tuple[str, ...]) -> tuple[str, ...]:
        """Return strings that end a text, as the decoder's text has them."""
        return tuple(map(tokenizer.shown, strings))


@dataclasses.dataclass(frozen=True)
class Preset(TextStyle):
    """Options that belong together.

    Attributes:
        max_length: tokens of prompt and continuation.
        lines: a text is a row of lines, each followed by the end of a document or by the model's own line piece
            (lyrics), and the window drops whole lines; otherwise it is one piece (novels), and the window keeps the
            newest half.
    """

    max_length: int
    lines: bool

    def options(self, tokenizer: ModelTokenizer) -> dict[str, Any]:
        """Return the options of ``TextGenerator`` that the preset stands for.

        Raises:
            OptionError: lines, and nothing that ends one.
        """
        line = _line_end(tokenizer) if self.lines else -1
        off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": ()}
        return {**off, "max_length": self.max_length, "window_line_token_id": line}

    def encode(self, tokenizer: ModelTokenizer, text: str, *, unfinished: bool = False) -> list[int]:
        """Return the tokens of a prompt.

        In it ``<eod>`` (any end of a document) or, in lyrics, a line feed ends a line. The last line ends, too, unless
        it is ``unfinished`` and no end follows it. Where ``special_pieces`` is False, ``<eod>`` is text.

        Raises:
            TokenizerError: the prompt has no tokens, and the model has none to start from.
        """
        separators = self._separators(tokenizer)
        parts = re.split("|".join(map(re.escape, separators)), text) if separators else [text]
        lines = [tokenizer.encode_part(part.strip()) for part in parts if part.strip()]
        ids = [] if lines and tokenizer.begins_by_itself(lines[0]) else [*tokenizer.start_token_ids]
        for line in lines:
            ids += [*line, _line_end(tokenizer)] if self.lines else line
        if unfinished and self.lines and parts[-1].strip():
            ids.pop()
        return ids or tokenizer.encode_prompt("")

    def reads(self, tokenizer: ModelTokenizer) -> list[str]:
        """Return the end of a document, where it parts a prompt."""
        return self._separators(tokenizer)

    def _separators(self, tokenizer: ModelTokenizer) -> list[str]:
        """Return what parts a prompt. Where lines have an end of their own, that of a document is one of the pieces."""
        end = tokenizer.document_end if tokenizer.options.special_pieces is not False else ""
        if not self.lines:
            return [end] if end else []
        return [end, "\n"] if end and _line_end(tokenizer) == tokenizer.eos_token_id else ["\n"]

    def echo(self, prompt: str) -> str:
        """Return a prompt as it stands in front of its continuation; a lyric's last line ends."""
        return f"{prompt.rstrip()}\n" if self.lines else prompt

    def decoder(self, tokenizer: ModelTokenizer) -> StreamDecoder:
        """Return a decoder that shows the end of a document as ``document_break``."""
        return _DocumentBreaks(tokenizer, self.document_break)

    def stop_strings(self, tokenizer: ModelTokenizer, strings: tuple[str, ...]) -> tuple[str, ...]:
        """Return strings that end a text, in which the end of a document is ``document_break``, too."""
        end = tokenizer.document_end
        shown = map(tokenizer.shown, strings)
        return tuple(string.replace(end, self.document_break) if end else string for string in shown)

    @property
    def document_break(self) -> str:
        """The end of a document as a reader wants it: the end of a line in lyrics, an empty line in novels.

        Where a novel has ended its last line already, the line feed of that line is one of the two.
        """
        return "\n" if self.lines else "\n\n"


PLAIN = TextStyle()
PRESETS = {"lyric": Preset(max_length=1500, lines=True), "novel": Preset(max_length=2048, lines=False)}
WINDOWS: tuple[str, ...] = get_args(WindowName)


def find_style(preset: str | None) -> TextStyle:
    """Return the preset of a name, and ``PLAIN`` for None.

    Raises:
        OptionError: there is no such preset.
    """
    if preset is None:
        return PLAIN
    if not isinstance(preset, str) or preset not in PRESETS:
        raise OptionError(f"preset is {str(preset)[:40]!r}: expected {' or '.join(PRESETS)}")
    return PRESETS[preset]


def combine_options(
    given: Mapping[str, Any], tokenizer: ModelTokenizer, style: TextStyle, window: str | None
) -> dict[str, Any]:
    """Return ``given`` options over those of the preset, with the window that was asked for.

    Raises:
        OptionError: an unknown window, or one of lines for a tokenizer that has no end of line.
    """
    base = style.options(tokenizer) if isinstance(style, Preset) else {}
    if given.get("max_new_tokens") is not None:
        base.pop("max_length", None)
    if _is_beam_search(given.get("num_beams")):
        base = {name: value for name, value in base.items() if name in ("max_length", "eos_token_id")}
    if window == "tokens":
        base["window_line_token_id"] = -1
    elif window == "line":
        base.setdefault("window_line_token_id", -1)
        if base["window_line_token_id"] < 0 and given.get("window_line_token_id") is None:
            base["window_line_token_id"] = _line_token(tokenizer)
    elif window is not None:
        raise OptionError(f"window is {str(window)[:40]!r}: expected {' or '.join(WINDOWS)}")
    return {**base, **{name: value for name, value in given.items() if value is not None}}


def _is_beam_search(num_beams: object) -> bool:
    return isinstance(num_beams, int) and num_beams > 1


def _line_token(tokenizer: ModelTokenizer) -> int:
    if tokenizer.line_token_id is None:
        raise OptionError("the model's tokenizer has no end of line: give window_line_token_id")
    return tokenizer.line_token_id


def _line_end(tokenizer: ModelTokenizer) -> int:
    if tokenizer.line_end is None:
        raise OptionError("preset lyric: the model has nothing that ends a line: give line_token_id")
    return tokenizer.line_end


class _DocumentBreaks:
    """A ``StreamDecoder`` that shows the end of a document as line feeds."""

    def __init__(self, tokenizer: ModelTokenizer, document_break: str) -> None:
        self._new_decoder, self._decoder = tokenizer.stream_decoder, tokenizer.stream_decoder()
        self._end_id, self._break = tokenizer.eos_token_id, document_break
        self._ends_line = False

    def push(self, token_id: int) -> str:
        if token_id == self._end_id:
            part, self._decoder = self._decoder.finish(), self._new_decoder()
            ends_line = part.endswith("\n") if part else self._ends_line
            part += "\n" if ends_line else self._break
        else:
            part = self._decoder.push(token_id)
        self._ends_line = part.endswith("\n") if part else self._ends_line
        return part

    def finish(self) -> str:
        return self._decoder.finish()
