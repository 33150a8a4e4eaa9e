"""What many tests assert in the same words."""

from __future__ import annotations

import pytest


def assert_one_line_error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Assert that a command has printed nothing but one line on stderr, an error with ``words`` in it; return it."""
    out, err = capsys.readouterr()
    assert_one_line(err, *words)
    assert out == ""
    return err


def assert_one_line(err: str, *words: str) -> None:
    """Assert that ``err``, what a command has printed on stderr, is one line, an error with ``words`` in it."""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err
