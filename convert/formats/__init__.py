"""The formats of checkpoints: a file or folder each, and what they have in common."""
