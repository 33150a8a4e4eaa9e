"""Text from tokens as they come: the two decoders that the tokenizers share."""

from __future__ import annotations

from collections.abc import Callable, Collection


class PieceByPiece:
    """A ``StreamDecoder`` for a ``decode`` in which the text of several tokens is that of each, joined."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode

    def push(self, token_id: int) -> str:
        return self._decode([token_id])

    def finish(self) -> str:
        return ""


class GrowingText:
    """A ``StreamDecoder`` for any ``decode``: decodes all tokens again at each one and gives what is new.

    Replacement characters at the end are held back: the next token may complete the character. Should ``decode``
    change text that was given already, nothing more is given until it agrees again, or until ``finish``.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], *, held: str = "\ufffd", waits: Collection[int] = ()
    ) -> None:
        """Begin a text.

        Args:
            decode: returns the text of several tokens.
            held: characters that are not certain while they are the last ones.
            waits: tokens after which nothing is certain before another one comes.
        """
        self._decode, self._held, self._waits = decode, held, waits
        self._ids: list[int] = []
        self._given = ""

    def push(self, token_id: int) -> str:
        # Decoded before it is kept: after an id that is refused, the stream goes on as if it had not come.
        text = self._decode([*self._ids, token_id])
        self._ids.append(token_id)
        if token_id in self._waits or not text.startswith(self._given):
            return ""
        part = text[len(self._given) :].rstrip(self._held)
        self._given += part
        return part

    def finish(self) -> str:
        text = self._decode(self._ids)
        agreed = 0
        for ours, theirs in zip(self._given, text, strict=False):
            if ours != theirs:
                break
            agreed += 1
        return text[agreed:]
