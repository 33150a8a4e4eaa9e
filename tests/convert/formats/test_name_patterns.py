"""Regular expressions of files match what Python's own match, and end."""

from __future__ import annotations

import random
import re

import pytest

from convert.formats.name_patterns import TooComplicatedError, has_whole_match

ATOMS = ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", "c", "(a|b)", "(?:ab|c)", "^", "$", r"\Z", "(a?)", r"[]a]"]
REPEATS = ["", "", "", "", "*", "+", "?", "{2}", "{1,}", "{1,2}", "*?", "+?", "??"]


def random_expression(chance: random.Random, depth: int = 0) -> str:
    parts = []
    for _ in range(chance.randint(1, 4)):
        is_atom = depth > 1 or chance.random() < 0.7
        parts.append(chance.choice(ATOMS) if is_atom else f"({random_expression(chance, depth + 1)})")
        parts.append(chance.choice(REPEATS))
    if chance.random() < 0.2:
        parts += ["|", random_expression(chance, depth + 1)]
    return "".join(parts)


def test_random_expressions_match_what_python_matches() -> None:
    chance = random.Random(3)
    seen = {True: 0, False: 0}
    for _ in range(6000):
        expression = random_expression(chance)
        try:
            compiled = re.compile(expression)
        except re.error:
            continue
        name = "".join(chance.choice("abc.1") for _ in range(chance.randint(0, 5)))
        wanted = compiled.fullmatch(name) is not None
        assert has_whole_match(expression, name) is wanted, (expression, name)
        seen[wanted] += 1
    assert min(seen.values()) > 300


@pytest.mark.parametrize(
    "expression",
    [
        "(?=a)a",
        "(?!b)a",
        "(?i)A",
        r"(a)\1",
        "(?P<x>a)",
        r"\ba",
        "a++",
        "a{,5}",
        "a{1000}",
        "a" * 301,
        r"\x61",
        "(?#x)a",
    ],
)
def test_what_the_matcher_does_not_know_is_refused(expression: str) -> None:
    try:
        re.compile(expression)
    except re.error:
        pytest.skip("no expression of this Python")
    with pytest.raises(TooComplicatedError):
        has_whole_match(expression, "a")


@pytest.mark.parametrize("expression", ["(a", "a)", "[a", "*", "a**", "(?P<1>a)"])
def test_what_is_no_expression_is_pythons_error(expression: str) -> None:
    with pytest.raises(re.error):
        has_whole_match(expression, "a")
