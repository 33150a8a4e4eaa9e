"""Regular expressions out of files, matched with names in bounded time: Python's ``re`` may try some of them forever.

What can be matched are characters, sets of them, groups, alternatives, repetitions and anchors. The matcher keeps the
set of all places where a match may be, as Thompson's does, so that it never goes back. It has no other parts of
Python's expressions (looking ahead, references to groups, flags): a file that has them is not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

_TOKEN = re.compile(r"\(\?:|\[\^?\]?(?:\\.|[^\]\\])*\]|\\[0-9]+|\\.|\{\d{1,3}(?:,\d{0,3})?\}|.", re.DOTALL)
_REPEATS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_ESCAPED = "dDwWsS"
"""Letters that make a set of characters when they are escaped."""
_MAX_LENGTH, _MAX_STEPS = 300, 10_000
Matcher = Callable[[set[int]], set[int]]
"""Returns the places where a match may end, by those where it may begin."""


class TooComplicatedError(ValueError):
    """An expression has parts that this module does not match, or would take too long."""


def has_whole_match(expression: str, name: str) -> bool:
    """Whether a regular expression matches the whole of a name, as ``re.fullmatch`` says it.

    Raises:
        re.error: it is no regular expression.
        TooComplicatedError: it cannot be tried here.
    """
    if len(expression) > _MAX_LENGTH:
        raise TooComplicatedError(expression)
    try:
        re.compile(expression)
    except (RecursionError, OverflowError) as error:
        raise TooComplicatedError(expression) from error
    return len(name) in _Parser(expression, name).parse()({0})


class _Parser:
    """Makes a matcher of one name out of an expression that ``re`` takes."""

    def __init__(self, expression: str, name: str) -> None:
        self._expression, self._name = expression, name
        self._tokens = _TOKEN.findall(expression)
        self._at, self._steps = 0, 0

    def parse(self) -> Matcher:
        matcher = self._alternatives()
        if self._at != len(self._tokens):
            self._fail()
        return matcher

    def _fail(self) -> NoReturn:
        raise TooComplicatedError(self._expression)

    def _next(self) -> str:
        """Return the token at hand; nothing at the end."""
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _alternatives(self) -> Matcher:
        branches = [self._sequence()]
        while self._next() == "|":
            self._at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else lambda places: set().union(*(match(places) for match in branches))

    def _sequence(self) -> Matcher:
        parts: list[Matcher] = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))

        def match(places: set[int]) -> set[int]:
            for part in parts:
                places = part(places) if places else places
            return places

        return match

    def _atom(self) -> Matcher:
        token = self._next()
        self._at += 1
        if token in ("(", "(?:"):
            if token == "(" and self._next() == "?":
                self._fail()  # looks ahead, has a name or a flag
            inner = self._alternatives()
            self._at += 1  # its end: the expression is one of re's
            return inner
        if token == "^":
            return lambda places: places & {0}
        if token == "$" or token == r"\Z":
            return lambda places: places & {len(self._name)}
        is_set = token[0] == "[" or (token[0] == "\\" and token[1] in _ESCAPED)
        is_literal = (len(token) == 1 and token != "{") or (token[0] == "\\" and not token[1].isalnum())
        if not is_set and not is_literal:
            self._fail()
        one = re.compile(token if is_set or token == "." else re.escape(token[-1]))
        return lambda places: self._characters(one, places)

    def _characters(self, one: re.Pattern[str], places: set[int]) -> set[int]:
        self._steps += len(places)
        if self._steps > _MAX_STEPS:
            self._fail()
        name = self._name
        return {place + 1 for place in places if place < len(name) and one.match(name[place])}

    def _repeated(self, matcher: Matcher) -> Matcher:
        """Apply the repetitions that follow; whether one is greedy makes no difference to a match of the whole name."""
        token = self._next()
        if token in _REPEATS:
            low, high = _REPEATS[token]
        elif len(token) > 2 and token[0] == "{":
            first, comma, last = token[1:-1].partition(",")
            low, high = int(first), int(last) if last else None if comma else int(first)
        else:
            return matcher
        self._at += 1
        if self._next() == "?":
            self._at += 1
        if self._next() in ("+", "*") or self._next()[:1] == "{":
            self._fail()  # possessive
        return lambda places: self._repeat(matcher, places, low, high)

    def _repeat(self, matcher: Matcher, places: set[int], low: int, high: int | None) -> set[int]:
        for _ in range(low):
            self._steps += 1
            places = matcher(places)
        found, newest = set(places), places
        while newest and (high is None or high > low):
            self._steps += 1
            newest = matcher(newest) - found
            found |= newest
            low += 1
        if self._steps > _MAX_STEPS:
            self._fail()
        return found
