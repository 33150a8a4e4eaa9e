"""Special pieces in a prompt: ``[CLS]梅山如积翠``, ``标题<sep>正文``, as upstream READMEs tell people to write them.

Texts never become special ids (``Tokenizer.encode``). Prompts may name them, as they do in transformers: the pieces
stand between ordinary texts, the longest one counts where several begin at the same place.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Iterator, Mapping

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as Backend

from tokenization.library_errors import library_errors


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


class SpecialReader:
    """A tokenizer of the ``tokenizers`` library that reads special pieces when it is asked to.

    >>> reader = SpecialReader(backend, [AddedToken("[SEP]", special=True)])
    >>> reader.encode("天[SEP]")                       # "[", "sep", "]" like any text
    >>> reader.encode("天[SEP]", special=True)         # the id of [SEP]

    How a piece is looked for is the library's work, by its flags: in the text or in what the normalizer makes of it,
    as a whole word, with the white space around it. Added pieces that are not special belong to the vocabulary: every
    text is searched for them.
    """

    def __init__(self, backend: Backend, added: Iterable[AddedToken]) -> None:
        backend.add_tokens([token for token in added if token.content])
        self._plain = backend
        self._plain.encode_special_tokens = True
        tokens = backend.get_added_tokens_decoder().items()
        self.special: Mapping[str, int] = {token.content: index for index, token in tokens if token.special}

    @functools.cached_property
    def _reader(self) -> Backend:
        """Another one, not a switch of the same: several threads may encode at the same time."""
        with library_errors("the tokenizer cannot be copied"):
            reader = copy.deepcopy(self._plain)
        reader.encode_special_tokens = False
        return reader

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of ``text``, in which ``special`` pieces are their ids or ordinary text."""
        return list(_encode(self._reader if special else self._plain, text).ids)

    def places(self, text: str) -> list[tuple[int, str]]:
        """Return each id of an ordinary text, and the part of ``text`` that it stands for."""
        encoding = _encode(self._plain, text)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [(token, text[first:end]) for token, (first, end) in spans]


def _encode(backend: Backend, text: str) -> Encoding:
    with library_errors("the vocabulary cannot encode the text"):  # as of a character without an unknown piece to use
        return backend.encode(text, add_special_tokens=False)
