"""``to-tf``: ``pytorch-to-tf`` under the name that says what it takes: a checkpoint of any format."""

from __future__ import annotations

from convert.pytorch_to_tf import DESCRIPTION, add_arguments, run

__all__ = ["DESCRIPTION", "EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "a checkpoint of any format -> a TensorFlow SavedModel: the same as pytorch-to-tf and tf-to-tf"
EXAMPLE = "python -m convert to-tf --checkpoint gpt2-chinese --output gpt2-chinese-savedmodel"
