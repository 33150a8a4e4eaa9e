"""``tf-to-tf``: ``pytorch-to-tf`` under the name that those look for who have a checkpoint of TensorFlow."""

from __future__ import annotations

from convert.commands.any_to_tf import DESCRIPTION, add_arguments, run

__all__ = ["DESCRIPTION", "EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "a TensorFlow checkpoint or SavedModel -> a TensorFlow SavedModel: the same as to-tf"
EXAMPLE = "python -m convert tf-to-tf --checkpoint checkpoint/run1 --output run1-savedmodel"
