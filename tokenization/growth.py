"""How much longer a ``tokenizer.json`` makes a text: forty steps that write two characters for one fill any memory.

The library applies whatever the file says, and ends the process when memory ends. So the steps are counted before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers

from tokenization.base import TokenizerError

_MOST = 256
"""Characters that one may become: of real files it is about ten, for the name of a line feed."""
_NESTED = ("normalizers", "pretokenizers", "decoders", "processors")
_UNLIKE = "\ue000"
"""A character that no pattern asks for: where one matches there, it matches nothing, in front of any character."""
_LOOKS = re.compile(r"\(\?[=!<]|\\[bBAGzZK]|[$^|*?]")
"""What a pattern may match nothing by, in some place."""
_FACTORS = {"ByteLevel": 4, "Precompiled": 18}
"""Steps that write any character as others: as its bytes in UTF-8, and the longest one of NFKC."""


def check_growth(path: Path, values: Mapping[str, Any]) -> None:
    """Check that no step of a ``tokenizer.json`` makes much more of a text or of tokens.

    Raises:
        TokenizerError: one does.
    """
    text = [*_steps(values.get("normalizer")), *_steps(values.get("pre_tokenizer"))]
    rows = [step.get("single") for step in _steps(values.get("post_processor"))]
    copies = math.prod(max(1, str(row).count("'Sequence'")) for row in rows if isinstance(row, list))
    for what, growth in (
        ("in texts", _growth(text)),
        ("in what it decodes", _growth(list(_steps(values.get("decoder"))))),
        ("around texts", copies),
    ):
        if growth > _MOST:
            most = f"{growth:,}" if growth < 1 << 40 else "2^40 and more"
            raise TokenizerError(
                f"{path}: its steps make up to {most} characters of one character {what}, expected {_MOST} at most: "
                "damaged, or made to fill the memory"
            )


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of one, in their order: those of a ``Sequence`` one by one."""
    if not isinstance(value, dict):
        return
    inner = next((value[name] for name in _NESTED if isinstance(value.get(name), list)), None)
    if inner is None:
        yield value
        return
    for step in inner:
        yield from _steps(step)


def _growth(steps: list[Mapping[str, Any]]) -> int:
    """Return how many characters one becomes at most.

    From the last step to the first: ``of`` has what a character becomes by the steps behind, ``other`` is for those
    that are not in it.
    """
    of: dict[str, int] = {}
    other = 1
    for step in reversed(steps):
        most = max([other, *of.values()])
        if step.get("type") == "Replace":
            made = sum(of.get(character, other) for character in str(step.get("content", "")))
            pattern = step.get("pattern")
            text = pattern.get("String") if isinstance(pattern, dict) else None
            if isinstance(text, str) and text:
                of[text[0]] = max(of.get(text[0], other), made)
            else:
                between = made if _matches_nothing(pattern) else 0
                of = {character: max(count, made) + between for character, count in of.items()}
                other = max(other, made) + between
        elif factor := _FACTORS.get(str(step.get("type"))):
            of, other = {}, most * factor
        else:  # other characters, about as many
            of, other = {}, most
        if most > 1 << 40:
            break
    return max([other, *of.values()])


def _matches_nothing(pattern: Any) -> bool:
    """Whether a pattern may match between two characters, where its content is put in without taking any away."""
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str) or not _LOOKS.search(regex):
        return not isinstance(regex, str) or regex == ""
    if re.search(r"\(\?[=!<]|\\[bBAGzZK]|[$^]", regex):
        return True
    try:
        return bool(normalizers.Replace(Regex(regex), "\0").normalize_str(_UNLIKE) != _UNLIKE)
    except Exception:  # the library says what is wrong with it
        return True
