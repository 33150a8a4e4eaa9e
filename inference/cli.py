"""The command line: ``python -m inference COMMAND``."""

from __future__ import annotations

from inference.commands import ask as ask_command
from inference.commands import chat as chat_command
from inference.commands import generate as generate_command
from support.command_line import Program
from support.errors import UserError
from tokenization import TokenizerError

EXIT_CODES = """\
exit codes:
  0    done
  2    a model, options, prompts or files that cannot be used: one line on stderr says what
  130  interrupted (Ctrl-C), 143 terminated: what --output had is complete, --resume goes on
"""

PROGRAM = Program(
    prog="python -m inference",
    description="Generates text with the SavedModels that python -m convert makes.",
    commands={"generate": generate_command, "chat": chat_command, "ask": ask_command},
    exit_codes=EXIT_CODES,
    errors=(UserError, TokenizerError),
    terminated="terminated",
)
parser, main = PROGRAM.parser, PROGRAM.run
