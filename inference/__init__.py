"""Text in, text out: generating with a SavedModel of this project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.text_generator import GeneratedText, TextGenerator

__all__ = ["GeneratedText", "TextGenerator"]


def __getattr__(name: str) -> Any:
    """The names above, imported when they are asked for, so that importing this package costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from inference import text_generator

    return getattr(text_generator, name)
