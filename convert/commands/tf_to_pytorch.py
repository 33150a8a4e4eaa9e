"""``tf-to-pytorch``: ``to-huggingface`` under the name that those look for who have a checkpoint of TensorFlow."""

from __future__ import annotations

from convert.commands.to_huggingface import DESCRIPTION, add_arguments, run

__all__ = ["DESCRIPTION", "EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "a TensorFlow checkpoint or SavedModel -> a Hugging Face folder: the same as to-huggingface"
EXAMPLE = "python -m convert tf-to-pytorch --checkpoint checkpoint/run1 --output run1-hf"
