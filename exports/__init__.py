"""From a model to a SavedModel, and from a SavedModel to text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exports.text_generator import GeneratedText, TextGenerator

__all__ = ["GeneratedText", "TextGenerator"]


def __getattr__(name: str) -> Any:
    """The names above, imported when they are asked for: the converter uses other parts of this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from exports import text_generator

    return getattr(text_generator, name)
