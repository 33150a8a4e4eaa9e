"""Fine-tuning: a model of any format and texts in, a SavedModel that writes such texts out.

    import training

    result = training.finetune("CPM-distill", "songs.txt", "out/songs", preset="lyric", epochs=3)
    print(result.summary())

Nothing here prints: results carry notes, and long work takes callbacks. Every error that a user can fix is a
``UserError``, or a ``TokenizerError``. Importing this package imports neither TensorFlow nor PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.errors import UserError
    from tokenization import TokenizerError
    from training.augmentation.augmenting import AugmentationResult, Filters, augment, read_labelled
    from training.augmentation.label_model import GeneratorOfLabels
    from training.finetuning import FinetuneResult, finetune
    from training.setting import SettingError
    from training.settings import Settings
    from training.text_inspection import TextReport, inspect_text

_HOMES = {
    "AugmentationResult": "training.augmentation.augmenting",
    "FinetuneResult": "training.finetuning",
    "Filters": "training.augmentation.augmenting",
    "GeneratorOfLabels": "training.augmentation.label_model",
    "SettingError": "training.setting",
    "Settings": "training.settings",
    "TextReport": "training.text_inspection",
    "TokenizerError": "tokenization",
    "UserError": "support.errors",
    "augment": "training.augmentation.augmenting",
    "finetune": "training.finetuning",
    "inspect_text": "training.text_inspection",
    "read_labelled": "training.augmentation.augmenting",
}
"""Where each name lives; its module is imported when the name is first asked for."""

__all__ = [
    "AugmentationResult",
    "Filters",
    "FinetuneResult",
    "GeneratorOfLabels",
    "SettingError",
    "Settings",
    "TextReport",
    "TokenizerError",
    "UserError",
    "augment",
    "finetune",
    "inspect_text",
    "read_labelled",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the function ``finetune`` has the name of its module, which importing sets here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
