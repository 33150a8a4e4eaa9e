"""The command line: ``python -m inference COMMAND``."""

from __future__ import annotations

from support.command_line import Command, Group, Program

EXIT_CODES = """\
exit codes:
  0    done
  2    unusable model, options, prompts or files: one line on stderr says what
  130  interrupted (Ctrl-C), 143 terminated: the results in --output are complete, --resume continues
"""

LOOK_EXIT_CODES = """\
exit codes:
  0    done
  2    unusable model, options or files: one line on stderr says what
  130  interrupted (Ctrl-C), 143 terminated
"""

GROUPS = (
    Group("generate text", (Command("generate", "inference.commands.generate", "continue prompts"),), EXIT_CODES),
    Group(
        "talk and measure",
        (
            Command("chat", "inference.commands.chat", "type a text, see it continued"),
            Command("score", "inference.commands.score", "measure the perplexity of a text under a model"),
            Command("ask", "inference.commands.ask", "answer questions after a few examples"),
        ),
        exit_codes=LOOK_EXIT_CODES,
    ),
)

PROGRAM = Program(
    prog="python -m inference",
    description="Generates text with the SavedModels that python -m convert makes.",
    groups=GROUPS,
    examples=("{program} generate out/song-ci 浣溪沙 --number 3 --temperature 0.8",),
    exit_codes=EXIT_CODES,
)
main = PROGRAM.run
