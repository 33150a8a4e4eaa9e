"""The command line: ``python -m convert COMMAND``."""

from __future__ import annotations

import functools

from convert import __version__
from convert.formats import rows
from support.command_line import Command, Group, Program

EXIT_CODES = """\
exit codes:
  0    done, the output is complete
  2    unusable input, options or environment: one line on stderr says what, and nothing was written
  3    the converted model does not compute what its source computes
  130  interrupted (Ctrl-C), 143 terminated: nothing was left behind
"""

LOOK_EXIT_CODES = """\
exit codes:
  0    done
  2    unusable input, options or environment, or damaged files: one line on stderr says what
  3    verify: the second model does not compute what the first computes
  130  interrupted (Ctrl-C), 143 terminated
"""

_TO_TF = "convert.commands.to_tf"

_writing = functools.partial(Group, exit_codes=EXIT_CODES, when_stopped="nothing was left behind", hide_gpus=True)
_looking = functools.partial(_writing, exit_codes=LOOK_EXIT_CODES)


def writer_commands() -> tuple[Command, ...]:
    """Make the commands that write checkpoints, from the table of formats."""
    return tuple(
        Command(
            command.name,
            "convert.commands.to_checkpoint",
            command.help,
            {"format": row.name, "layouts": command.layouts},
            command.description,
            command.examples,
        )
        for row in rows.ROWS
        for command in row.commands
    )


GROUPS = (
    _writing(
        "to a TensorFlow SavedModel",
        (
            Command("pytorch-to-tf", _TO_TF, "convert Megatron or DeepSpeed shards (CPM), or any other checkpoint"),
            Command("tf-to-tf", _TO_TF, "convert a TensorFlow checkpoint or SavedModel: the same as to-tf"),
            Command("to-tf", _TO_TF, "convert a checkpoint of any format: the same as pytorch-to-tf"),
        ),
    ),
    _writing("to another checkpoint format", writer_commands()),
    _looking(
        "look and compare",
        (
            Command("inspect", "convert.commands.inspect", "describe a checkpoint or SavedModel"),
            Command("check", "convert.commands.check", "compare files with the SHA-256 hashes in their manifest"),
            Command("verify", "convert.commands.verify", "compare the logits of a model with its source's"),
        ),
    ),
)

PROGRAM = Program(
    prog="python -m convert",
    description="Converts GPT-2 checkpoints: to a TensorFlow SavedModel that samples inside its own graph, to a folder "
    "for transformers, to the formats of UER-py and OpenAI, or to Megatron's shards for any number of ranks.",
    groups=GROUPS,
    examples=(
        "{program} pytorch-to-tf --checkpoint demo/song-ci --tokenizer demo/song-ci/tokenizer --heads 4 "
        "--output out/song-ci-2",
    ),
    exit_codes=EXIT_CODES,
    version=f"gpt2-savedmodel {__version__}",
)
main = PROGRAM.run
