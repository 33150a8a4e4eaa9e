"""Strings that end a text, and what a stream holds back because such a string may begin there."""

from __future__ import annotations

from tokenization import StreamDecoder


class StopStringFilter:
    """A ``StreamDecoder`` whose text ends before the first of some strings.

    It holds back the end of the text so far as long as one of the strings may begin there: what it gives is never
    taken back.

    Attributes:
        stopped: whether one of the strings has come; no token is needed after that.
    """

    def __init__(self, decoder: StreamDecoder, stop_strings: tuple[str, ...]) -> None:
        self._decoder, self._stop_strings, self._held = decoder, stop_strings, ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Return the text that is certain after ``token_id``."""
        return "" if self.stopped else self._release(self._decoder.push(token_id), final=False)

    def finish(self) -> str:
        """Return what was held back."""
        return "" if self.stopped else self._release(self._decoder.finish(), final=True)

    def _release(self, part: str, *, final: bool) -> str:
        text = self._held + part
        uncertain = 0 if final else max((_overlap(text, string) for string in self._stop_strings), default=0)
        certain, stop = len(text) - uncertain, find_stop(text, self._stop_strings)
        if stop is not None and stop <= certain:  # else another of the strings may begin before it
            self.stopped, certain = True, stop
        self._held = text[certain:]
        return text[:certain]


def find_stop(text: str, stop_strings: tuple[str, ...]) -> int | None:
    """Find where the first of ``stop_strings`` begins in ``text``; None where none of them occurs."""
    places = [text.find(string) for string in stop_strings]
    return min((place for place in places if place >= 0), default=None)


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest proper beginning of ``string`` that ``text`` ends with."""
    return next((n for n in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:n])), 0)
