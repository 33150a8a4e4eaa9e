"""The command line: ``python -m training COMMAND``."""

from __future__ import annotations

from convert import __version__
from support.command_line import Command, Group, Program

EXIT_CODES = """\
exit codes:
  0    done, the output is complete
  2    unusable input, options or environment: one line on stderr says what; nothing was written to the output
  130  interrupted (Ctrl-C), 143 terminated: the same command goes on where it was
"""

LOOK_EXIT_CODES = """\
exit codes:
  0    done, the output is complete
  2    unusable model, options or files: one line on stderr says what; nothing was written
  130  interrupted (Ctrl-C), 143 terminated: nothing was written
"""

GROUPS = (
    Group(
        "fine-tune",
        (
            Command("finetune", "training.commands.finetune", "teach a model the texts in your files"),
            Command("inspect-text", "training.commands.inspect_text", "describe what finetune would train on"),
            Command("workers", "training.commands.workers", "do so on several machines together", has_command=True),
        ),
        exit_codes=EXIT_CODES,
        when_stopped="the same command goes on where it was",
        hide_gpus=True,
    ),
    Group(
        "use a fine-tuned model",
        (Command("augment", "training.commands.augment", "write more texts for the labels of a classifier"),),
        exit_codes=LOOK_EXIT_CODES,
    ),
)

PROGRAM = Program(
    prog="python -m training",
    description="Fine-tunes GPT-2 models of any format on texts, and writes SavedModels that generate such texts.",
    groups=GROUPS,
    examples=(
        "{program} finetune --model out/song-ci --text demo/held-out.jsonl --output out/song-ci-4 --steps 2 --lora 4",
    ),
    exit_codes=EXIT_CODES,
    version=f"gpt2-savedmodel {__version__}",
)
main = PROGRAM.run
