"""Chinese punctuation for readers: CPM's tokenizer makes ``，`` a ``,`` (NFKC), and so its models write ASCII marks."""

from __future__ import annotations

_MARKS = {",": "，", "!": "！", "?": "？", ";": "；", ":": "：", ".": "。"}
_CLOSING = frozenset("\"')]}”’…—·")
"""Marks after which a text is as Chinese as it was before them."""
_RANGES = (
    (0x2047, 0x2047),  # what SentencePiece decodes an unknown character to
    (0x3001, 0x303F),  # punctuation and 〇
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF01, 0xFF20),  # full-width punctuation and digits
    (0x20000, 0x3FFFF),
)


class ChinesePunctuation:
    """Replace ``, . ! ? ; :`` after a Chinese character by ``，。！？；：`` in a text that comes in parts.

    A full stop is replaced only where it stands alone and no Latin letter or digit follows; that is not known before
    the next character, so it is held back until then.
    """

    def __init__(self, before: str = "") -> None:
        """Begin after the text ``before``, which is not given back."""
        self._chinese = False
        self._held = ""
        self.push(before)
        self._held = ""

    def push(self, part: str) -> str:
        """Return the next part of the text."""
        text = self._held + part
        certain = len(text.rstrip("."))
        self._held = text[certain:]
        return self._replace(text[:certain])

    def finish(self) -> str:
        """Return what was held back."""
        text, self._held = self._held, ""
        return self._replace(text)

    def _replace(self, text: str) -> str:
        return "".join(
            [self._mark(character, text[i + 1 : i + 2], text[i - 1 : i]) for i, character in enumerate(text)]
        )

    def _mark(self, character: str, following: str, preceding: str) -> str:
        if character in _MARKS:
            if not self._chinese or (character == "." and not _ends_sentence(following, preceding)):
                return character
            return _MARKS[character]
        if character not in _CLOSING:
            self._chinese = _is_chinese(character)
        return character


def chinese_punctuation(text: str) -> str:
    """Replace ``, . ! ? ; :`` after a Chinese character by ``，。！？；：``; other text stays as it is.

    >>> chinese_punctuation("一曲新词酒一杯,去年天气旧亭台。 3,000 words, all told.")
    '一曲新词酒一杯，去年天气旧亭台。 3,000 words, all told.'
    """
    marks = ChinesePunctuation()
    return marks.push(text) + marks.finish()


def _ends_sentence(following: str, preceding: str) -> bool:
    return "." not in (following, preceding) and not (following.isascii() and following.isalnum())


def _is_chinese(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _RANGES)
