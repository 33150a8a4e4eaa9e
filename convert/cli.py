"""The command line: ``python -m convert COMMAND``."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from convert import check, inspect_command, pytorch_to_tf, verify
from convert.errors import ConvertError
from tf_model.config import ConfigError
from tokenization import TokenizerError

COMMANDS = {"pytorch-to-tf": pytorch_to_tf, "check": check, "verify": verify, "inspect": inspect_command}
"""Command -> module with ``HELP``, ``DESCRIPTION``, ``add_arguments(parser)`` and ``run(args)``."""

EXIT_CODES = """\
exit codes:
  0    done, the output is complete
  2    input, options or surroundings that cannot be used: one line on stderr says what, nothing was written
  3    the converted model does not compute what the source does
  130  interrupted (Ctrl-C), 143 terminated: nothing was left behind
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m convert",
        description="Converts GPT-2 checkpoints to a TensorFlow SavedModel that samples inside its own graph.",
        epilog=f"example:\n  {pytorch_to_tf.EXAMPLE}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=f"example:\n  {module.EXAMPLE}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    args = parser().parse_args(argv)
    # TensorFlow's own messages about the machine would drown ours; a user who wants them sets the variable.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    # Keras would read its settings from the home folder, or write them there; neither is wanted here.
    os.environ.update(KERAS_BACKEND="tensorflow", KERAS_HOME=os.path.join(os.devnull, "keras"))
    for stream in (sys.stdout, sys.stderr):  # a path may have letters that the terminal has not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _check_paths(args)
        COMMANDS[args.command].run(args)
        sys.stdout.flush()
    except (ConvertError, ConfigError, TokenizerError) as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        return error.exit_code if isinstance(error, ConvertError) else 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


def _check_paths(args: argparse.Namespace) -> None:
    """Raises ``ConvertError`` for a path that TensorFlow cannot be given."""
    for path in vars(args).values():
        if isinstance(path, Path) and any("\ud800" <= letter <= "\udfff" for letter in str(path)):
            raise ConvertError(f"{str(path)!a}: not UTF-8: rename it")


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """Leaves through the same clean-up as an exception."""
    print("error: terminated; nothing was left behind", file=sys.stderr)
    sys.exit(128 + signum)
