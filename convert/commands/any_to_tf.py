"""``to-tf``: ``pytorch-to-tf`` under the name that says what it takes: a checkpoint of any format."""

from __future__ import annotations

from convert.commands.to_tf import add_arguments, run

__all__ = ["DESCRIPTION", "EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "a checkpoint of any format -> a TensorFlow SavedModel: the same as pytorch-to-tf and tf-to-tf"
DESCRIPTION = """\
Writes one TensorFlow SavedModel that samples inside its own graph. The format of the checkpoint is recognised: shards
of CPM, DeepSpeed or Megatron-LM, a Hugging Face folder, UER-py's .bin, OpenAI's TensorFlow 1 checkpoint, or a
SavedModel of this program. Sizes are read from the tensors; nothing inside the files is run.
"""
EXAMPLE = "python -m convert to-tf --checkpoint gpt2-chinese --output gpt2-chinese-savedmodel"
