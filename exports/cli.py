"""The command line: ``python -m exports COMMAND``."""

from __future__ import annotations

from exports import ask_command, chat_command, generate_command
from exports.command_line import Program
from exports.generation_config import OptionError
from exports.loading import ModelError
from exports.records import RecordError
from tokenization import TokenizerError

EXIT_CODES = """\
exit codes:
  0    done
  2    a model, options, prompts or files that cannot be used: one line on stderr says what
  130  interrupted (Ctrl-C), 143 terminated: what --output had is complete, --resume goes on
"""

PROGRAM = Program(
    prog="python -m exports",
    description="Generates text with the SavedModels that python -m convert makes.",
    commands={"generate": generate_command, "chat": chat_command, "ask": ask_command},
    exit_codes=EXIT_CODES,
    errors=(ModelError, OptionError, RecordError, TokenizerError),
    terminated="terminated",
)
parser, main = PROGRAM.parser, PROGRAM.run
