"""The command line: ``python -m convert COMMAND``."""

from __future__ import annotations

from convert.commands import any_to_tf as to_tf
from convert.commands import (
    check,
    inspect,
    reshard,
    tf_to_pytorch,
    tf_to_tf,
    to_huggingface,
    to_megatron,
    to_openai,
    to_uer,
)
from convert.commands import to_tf as pytorch_to_tf
from convert.verification import compare as verify
from support.command_line import Program
from support.errors import UserError
from tokenization import TokenizerError

EXIT_CODES = """\
exit codes:
  0    done, the output is complete
  2    input, options or surroundings that cannot be used: one line on stderr says what, nothing was written
  3    the converted model does not compute what the source does
  130  interrupted (Ctrl-C), 143 terminated: nothing was left behind
"""

PROGRAM = Program(
    prog="python -m convert",
    description="Converts GPT-2 checkpoints: to a TensorFlow SavedModel that samples inside its own graph, to a\n"
    "folder for transformers, to the formats of UER-py and OpenAI, or to Megatron's shards for any number of ranks.",
    commands={
        "pytorch-to-tf": pytorch_to_tf,
        "tf-to-tf": tf_to_tf,
        "to-tf": to_tf,
        "to-huggingface": to_huggingface,
        "tf-to-pytorch": tf_to_pytorch,
        "to-openai": to_openai,
        "to-megatron": to_megatron,
        "to-uer": to_uer,
        "reshard": reshard,
        "check": check,
        "verify": verify,
        "inspect": inspect,
    },
    exit_codes=EXIT_CODES,
    errors=(UserError, TokenizerError),
    terminated="terminated; nothing was left behind",
    hides_gpus=True,
)
parser, main = PROGRAM.parser, PROGRAM.run
