"""The ways of generating of CPM-1-Text-Generation-Unlimit's two scripts, lyrics and novels without end.

Both sample from the whole distribution, go on past the end of a document, and count prompt and continuation together.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from tokenization import Tokenizer


@dataclasses.dataclass(frozen=True)
class Preset:
    """Attributes:

    max_length: tokens of prompt and continuation.
    lines: a text is a row of lines, each followed by the end of a document (lyrics), and the window drops whole lines;
        otherwise it is one piece (novels), and the window keeps the newest half.
    """

    max_length: int
    lines: bool

    def options(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Options of ``TextGenerator``."""
        line = tokenizer.eos_token_id if self.lines else -1
        off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": ()}
        return {**off, "max_length": self.max_length, "window_line_token_id": line}

    def prompt(self, tokenizer: Tokenizer, text: str, *, unfinished: bool = False) -> list[int]:
        """The tokens of a prompt, in which a line ends at ``<eod>`` (any end of a document) or, in lyrics, a line feed.

        The last line ends, too, unless it is ``unfinished`` and no end stands behind it.

        Raises:
            TokenizerError: there is nothing in it, and the model has no token to start from.
        """
        end = self._end(tokenizer)
        parts = re.split(f"{re.escape(end)}|\n" if self.lines else re.escape(end), text)
        ids = list(tokenizer.start_token_ids)
        for part in filter(None, map(str.strip, parts)):
            ids += tokenizer.encode(part, append_eod=self.lines)
        if unfinished and self.lines and parts[-1].strip():
            ids.pop()
        return ids or tokenizer.encode_prompt("")

    def text(self, tokenizer: Tokenizer, text: str) -> str:
        """Generated text as a reader wants it: in lyrics a line is a line."""
        return text.replace(self._end(tokenizer), "\n") if self.lines else text

    def _end(self, tokenizer: Tokenizer) -> str:
        return tokenizer.decode([tokenizer.eos_token_id])


PRESETS = {"lyric": Preset(max_length=1500, lines=True), "novel": Preset(max_length=2048, lines=False)}
