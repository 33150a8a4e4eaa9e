"""How files become documents, and documents become token ids: lyric, poem, novel, plain.

| preset | documents of a text file | ids | as |
|---|---|---|---|
| lyric | songs, a blank line between them | end of text after each line, no line feeds | CPM-1-Finetune's lyrics |
| poem | poems, a blank line between them | line feeds kept, one end of text at the end | this project's demo |
| novel | passages of about 20,000 characters | no end of text, windows over each | CPM-1-Finetune's novels |
| plain | the file | as it is, end of text after it | UER-py, TsinghuaAI/CPM-1-Finetune |

CPM-1-Finetune's lyrics and novels are those of zhenhao-huang/CPM-1-Finetune-Text-Generation. Its novels have no line
feeds at all; here one stands between two paragraphs.

In JSON each line or element is a document, whatever the preset. What the tokenizer puts in front of every text
(BERT's ``[CLS]``) stands in front of each document. Text is data: an ``<eod>`` or ``[SEP]`` in it is no special token.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from support.documents import JSON_SUFFIXES
from support.errors import UserError
from training.texts.documents import Document

if TYPE_CHECKING:
    from tokenization import Tokenizer

PASSAGE_CHARACTERS = 20_000
"""Characters of a passage of a novel, about: long against a window, and short enough that some can be held out."""

_BLANK_LINES = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_LETTER = re.compile(r"[^\W_\u2e80-\uffef]|[.,;:!?\"')\]-]")
"""A letter or mark of a script that has spaces between its words."""


@dataclasses.dataclass(frozen=True)
class EncodedDocument:
    """A document as token ids.

    Attributes:
        ids: with the tokens before and after the text.
        unpredicted: how many of the first ids are not in the loss: those of a prefix.
    """

    ids: tuple[int, ...]
    unpredicted: int = 0


@dataclasses.dataclass(frozen=True)
class Preset:
    """How a kind of text is trained on.

    Attributes:
        name: what ``--preset`` calls it.
        passages: cuts a text file into documents: (line, text) each, lines from 1.
        parts: cuts a document's text into parts, which are encoded one by one.
        ends: whether the end of text follows each part.
    """

    name: str
    passages: Callable[[str], Iterator[tuple[int, str]]]
    parts: Callable[[str], list[str]]
    ends: bool

    @property
    def ends_lines(self) -> bool:
        """Whether a document has an end of text after each of its lines, as lyrics have."""
        return self.ends and self.parts is _lines

    def split(self, text: str) -> list[tuple[int, str]]:
        """Cut a text file into documents: the line on which each begins, from 1, and its text."""
        return list(self.passages(text))

    def encode(self, tokenizer: Tokenizer, document: Document, *, predict_prefix: bool = False) -> EncodedDocument:
        """Encode a document; the tokens of its prefix are ``unpredicted``, unless ``predict_prefix``.

        A vocabulary without an end of text puts none: ``preset_notes`` says so.
        """
        end = [tokenizer.eos_token_id] if self.ends and tokenizer.eos_token_id is not None else []
        before = [*tokenizer.start_token_ids, *self._encode_whole_lines(tokenizer, document.prefix)]
        ids = list(before)
        for part in self.parts(document.text):
            ids += tokenizer.encode(part)
            ids += end
        return EncodedDocument(tuple(ids), 0 if predict_prefix else len(before))

    def encode_prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Encode the beginning of a document, its prefix and the first words of its text, to be gone on with."""
        lines, feed, last = text.rpartition("\n")
        if not feed or not self.ends_lines:
            return tokenizer.encode_prompt(text)
        ids = self._encode_whole_lines(tokenizer, lines + feed)
        return [*tokenizer.start_token_ids, *ids, *(tokenizer.encode(last) if last else [])]

    def _encode_whole_lines(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Encode lines that each end in a line feed; in lyrics an end of text is there, as in their texts."""
        if not text:
            return []
        if not self.ends_lines or tokenizer.eos_token_id is None:
            return tokenizer.encode(text)
        return [token for line in _lines(text) for token in (*tokenizer.encode(line), tokenizer.eos_token_id)]

    def whole_text(self, document: Document) -> str | None:
        """Return the text of which ``verify --text`` makes the ids of ``encode`` where it is a line of JSON lines.

        There an end of text follows each text and stands nowhere else. So None of lyrics, whose lines end, and of
        passages, which do not end.
        """
        if not self.ends or self.ends_lines:
            return None
        return "".join([document.prefix, *self.parts(document.text)])


def preset_notes(preset: Preset, tokenizer: Tokenizer, documents: Sequence[Document]) -> list[str]:
    """Return notes on parts of a preset that the vocabulary has no token for: ends of texts, line feeds."""
    notes = []
    if preset.ends and tokenizer.eos_token_id is None:
        notes.append(
            f"the vocabulary has no end of text, so preset {preset.name} puts none: texts will end at their length only"
        )
    has_lines = any("\n" in (document.prefix + document.text).strip() for document in documents)
    if tokenizer.line_token_id is None and has_lines and not preset.ends_lines:
        notes.append(
            "the vocabulary has no line feed, so lines run together, those of --prefix, too; --preset lyric ends each "
            "line of a text"
        )
    return notes


def find_preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"--preset {name}: expected {', '.join(PRESETS)}")
    return PRESETS[name]


def default_preset(files: Sequence[Path]) -> Preset:
    """Return the preset of texts for which none is named: plain where all are JSON, whose lines are documents."""
    is_json = all(file.suffix.lower() in JSON_SUFFIXES for file in files)
    return PRESETS["plain" if is_json else "poem"]


def _whole(text: str) -> Iterator[tuple[int, str]]:
    if text.strip():
        yield 1, text


def _at_blank_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield what stands between blank lines, without the line feeds around it."""
    start, line = 0, 1
    ends = [(gap.start(), gap.end()) for gap in _BLANK_LINES.finditer(text)]
    for end, next_start in [*ends, (len(text), len(text))]:
        passage = text[start:end]
        if passage.strip():
            skipped = len(passage) - len(passage.lstrip("\n"))
            yield line + skipped, passage.strip("\n")
        line += text.count("\n", start, next_start)
        start = next_start


def _long_passages(text: str) -> Iterator[tuple[int, str]]:
    """Yield paragraphs together, a line feed between them, until they are a passage.

    Blank lines stand between paragraphs, whose own line feeds are left out; where a text has no blank lines, each line
    is a paragraph.
    """
    paragraphs = [(line, _unwrapped(paragraph)) for line, paragraph in _at_blank_lines(text)]
    if len(paragraphs) == 1:
        paragraphs = [(line, one) for line, one in enumerate(text.split("\n"), 1) if one.strip()]
    taken: list[str] = []
    first = size = 0
    for line, paragraph in paragraphs:
        first = first if taken else line
        taken.append(paragraph)
        size += len(paragraph) + 1
        if size >= PASSAGE_CHARACTERS:
            yield first, "\n".join(taken)
            taken, size = [], 0
    if taken:
        yield first, "\n".join(taken)


def _unwrapped(paragraph: str) -> str:
    """Join the lines of a paragraph; a space goes between two lines of a script that has spaces."""
    joined = ""
    for line in paragraph.split("\n"):
        apart = joined and line and _LETTER.match(joined[-1]) and _LETTER.match(line[0])
        joined += f" {line}" if apart else line
    return joined


def _lines(text: str) -> list[str]:
    """Return the lines that have any text, without the white space around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def _ended_lines(text: str) -> list[str]:
    """Return a text whose last line ends in a line feed as the others do."""
    return [text.strip("\n") + "\n"]


def _as_it_is(text: str) -> list[str]:
    return [text]


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("lyric", _at_blank_lines, _lines, ends=True),
        Preset("poem", _at_blank_lines, _ended_lines, ends=True),
        Preset("novel", _long_passages, _as_it_is, ends=False),
        Preset("plain", _whole, _as_it_is, ends=True),
    )
}
