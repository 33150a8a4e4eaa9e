r"""Text in, text out: generating with a SavedModel of this project.

>>> import inference
>>> generator = inference.load("out/song-ci")
>>> print(generator.generate("浣溪沙\n", max_new_tokens=100, seed=1)[0])

Importing this package imports no TensorFlow; ``load`` does.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exports.generation_config import OptionError
    from exports.saved_model_folder import ModelError
    from inference.options import GenerationOptions
    from inference.presets import PRESETS, WINDOWS, Preset
    from inference.results import GeneratedText
    from inference.scoring import Choice, CorpusScore, Score
    from inference.text_generator import TextGenerator
    from support.errors import UserError
    from tokenization import TokenizerError, chinese_punctuation

_HOMES = {
    "Choice": "inference.scoring",
    "CorpusScore": "inference.scoring",
    "GeneratedText": "inference.results",
    "GenerationOptions": "inference.options",
    "ModelError": "exports.saved_model_folder",
    "OptionError": "exports.generation_config",
    "PRESETS": "inference.presets",
    "Preset": "inference.presets",
    "Score": "inference.scoring",
    "TextGenerator": "inference.text_generator",
    "TokenizerError": "tokenization",
    "UserError": "support.errors",
    "WINDOWS": "inference.presets",
    "chinese_punctuation": "tokenization",
}
"""Where each name is imported from when it is asked for."""

__all__ = [
    "PRESETS",
    "WINDOWS",
    "Choice",
    "CorpusScore",
    "GeneratedText",
    "GenerationOptions",
    "ModelError",
    "OptionError",
    "Preset",
    "Score",
    "TextGenerator",
    "TokenizerError",
    "UserError",
    "chinese_punctuation",
    "load",
]


def load(folder: str | Path, *, max_batch_size: int = 8) -> TextGenerator:
    """Load a SavedModel of this project, to generate up to ``max_batch_size`` texts at once.

    Raises:
        UserError: the folder is not one (``ModelError``), or its ``generation_config.json`` cannot be used
            (``OptionError``).
        TokenizerError: its tokenizer cannot be used.
    """
    from inference.text_generator import TextGenerator

    return TextGenerator.load(folder, max_batch_size=max_batch_size)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
