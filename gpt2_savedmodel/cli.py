"""The command line: ``gpt2-savedmodel COMMAND``.

It joins the tables of ``python -m convert``, ``python -m inference`` and ``python -m training``. A console script does
not put the current folder on Python's path, so a file ``convert.py`` there cannot take it over.
"""

from __future__ import annotations

from convert import __version__
from convert.cli import GROUPS as CONVERT
from inference.cli import GROUPS as INFERENCE
from support.command_line import Program
from training.cli import GROUPS as TRAINING

EXIT_CODES = """\
exit codes:
  0    done
  2    unusable input, options or environment: one line on stderr says what
  3    a converted model does not compute what its source computes
  130  interrupted (Ctrl-C), 143 terminated
"""

PROGRAM = Program(
    prog="gpt2-savedmodel",
    description="Converts GPT-2 checkpoints to and from TensorFlow SavedModels, compares and fine-tunes models, and "
    "generates text.",
    groups=(*CONVERT, *INFERENCE, *TRAINING),
    examples=(
        "{program} pytorch-to-tf --checkpoint demo/song-ci --tokenizer demo/song-ci/tokenizer --heads 4 "
        "--output out/song-ci-2",
        "{program} generate out/song-ci 浣溪沙 --number 3 --temperature 0.8",
    ),
    exit_codes=EXIT_CODES,
    version=f"gpt2-savedmodel {__version__}",
    has_completion=True,
)
main = PROGRAM.run
