"""How generated text is printed."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from inference.jsonl import json_line
from tokenization import ChinesePunctuation

if TYPE_CHECKING:
    from inference.request import EncodedPrompt

_BETWEEN = "=" * 20
"""Printed between texts, as gpt-2-simple does."""


class Printer:
    """Prints texts on stdout.

    Args:
        show_prompt: a text is its prompt and its continuation, not the continuation alone.
        chinese_marks: Chinese characters are followed by Chinese punctuation.
    """

    def __init__(self, *, show_prompt: bool = True, chinese_marks: bool = False) -> None:
        self._show_prompt, self._chinese_marks = show_prompt, chinese_marks
        self._texts = 0

    def print_text(self, prompt: EncodedPrompt, text: str) -> None:
        """Print a text; a line stands between it and the one before."""
        whole = "".join(self._parts(prompt, [text]))
        between = f"{_BETWEEN}\n" if self._texts else ""
        self._texts += 1
        tqdm.write(f"{between}{whole}")

    def print_stream(self, prompt: EncodedPrompt, parts: Iterable[str]) -> None:
        """Print a text as it is generated."""
        try:
            for part in self._parts(prompt, parts):
                print(part, end="", flush=True)
        finally:  # an error is a line of its own
            print()

    def continuation(self, prompt: EncodedPrompt, parts: Iterable[str]) -> Iterable[str]:
        """Yield the parts of a continuation as they are printed."""
        if not self._chinese_marks:
            yield from parts
            return
        marks = ChinesePunctuation(prompt.text)
        for part in parts:
            yield marks.push(part)
        yield marks.finish()

    def _parts(self, prompt: EncodedPrompt, parts: Iterable[str]) -> Iterable[str]:
        if self._show_prompt:
            yield prompt.text
        yield from self.continuation(prompt, parts)


def print_record(record: dict[str, Any]) -> None:
    """Print a line of JSON; where stdout is not UTF-8, in ASCII."""
    print(json_line(record, ascii_only=not _is_utf8(sys.stdout)), end="", flush=True)


def _is_utf8(stream: Any) -> bool:
    try:
        return codecs.lookup(stream.encoding).name == "utf-8"
    except (AttributeError, TypeError, LookupError):
        return False
