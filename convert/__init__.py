"""Checkpoint files in, checkpoint files out: convert, verify, inspect and check GPT-2 models.

    import convert

    checkpoint = convert.open_checkpoint("CPM-Generate")
    convert.to_savedmodel(checkpoint, "cpm", tokenizer="bpe_3w_new", dtype="auto")
    convert.to_checkpoint(checkpoint, "cpm-hf", format="huggingface", dtype="bfloat16")
    convert.verify("CPM-Generate", "cpm").check()

Nothing here prints: results carry notes, and long work takes a ``progress`` callback. Every error that a user can fix
is a ``UserError``, or a ``TokenizerError``. Importing this package imports neither TensorFlow nor PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.checkpoint import Checkpoint
    from convert.conversion import CheckpointResult, to_checkpoint
    from convert.formats.registry import open_checkpoint
    from convert.inspection import Inspection, inspect
    from convert.output.manifest import IntegrityReport, check
    from convert.savedmodel_conversion import SavedModelResult, to_savedmodel
    from convert.verification.compare import verify
    from convert.verification.report import ParityReport, VerificationError
    from support.errors import CheckpointError, ConvertError, UserError
    from tokenization import TokenizerError

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "convert.checkpoint",
    "CheckpointError": "support.errors",
    "CheckpointResult": "convert.conversion",
    "ConvertError": "support.errors",
    "Inspection": "convert.inspection",
    "IntegrityReport": "convert.output.manifest",
    "ParityReport": "convert.verification.report",
    "SavedModelResult": "convert.savedmodel_conversion",
    "TokenizerError": "tokenization",
    "UserError": "support.errors",
    "VerificationError": "convert.verification.report",
    "check": "convert.output.manifest",
    "inspect": "convert.inspection",
    "open_checkpoint": "convert.formats.registry",
    "to_checkpoint": "convert.conversion",
    "to_savedmodel": "convert.savedmodel_conversion",
    "verify": "convert.verification.compare",
}
"""Where each name lives; its module is imported when the name is first asked for."""

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointResult",
    "ConvertError",
    "Inspection",
    "IntegrityReport",
    "ParityReport",
    "SavedModelResult",
    "TokenizerError",
    "UserError",
    "VerificationError",
    "check",
    "inspect",
    "open_checkpoint",
    "to_checkpoint",
    "to_savedmodel",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
