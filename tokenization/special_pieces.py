"""Special pieces in a prompt: ``[CLS]梅山如积翠``, ``标题<sep>正文``, as upstream READMEs tell people to write them.

Texts never become special ids (``Tokenizer.encode``). Prompts may name them, as they do in transformers: the pieces
stand between ordinary texts, the longest one counts where several begin at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping


def split_special(text: str, pieces: Mapping[str, int]) -> Iterator[str | int]:
    """Yield the ordinary texts of a prompt, none of them empty, and the ids of the special pieces between them."""
    if not pieces:
        if text:
            yield text
        return
    pattern = "|".join(map(re.escape, sorted(pieces, key=len, reverse=True)))
    for part in re.split(f"({pattern})", text):
        if part in pieces:
            yield pieces[part]
        elif part:
            yield part
