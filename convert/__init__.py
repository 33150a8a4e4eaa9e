"""Checkpoints in, SavedModels and checkpoints out: the formats and the command line."""

__version__ = "0.1.0"
