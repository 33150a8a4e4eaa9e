"""What the command lines of this project share: sub-commands, errors of one line, exit codes, signals."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn


@dataclasses.dataclass(frozen=True)
class Program:
    """A command line.

    Attributes:
        prog, description: for its help.
        commands: name -> module with ``HELP``, ``DESCRIPTION``, ``EXAMPLE``, ``add_arguments(parser)``, ``run(args)``.
        exit_codes: the end of every help text.
        errors: exceptions that are the user's to mend; their message is one line. An ``exit_code`` of theirs counts.
        terminated: what is said on SIGTERM.
    """

    prog: str
    description: str
    commands: Mapping[str, ModuleType]
    exit_codes: str
    errors: tuple[type[Exception], ...]
    terminated: str

    def parser(self) -> argparse.ArgumentParser:
        first = next(iter(self.commands.values()))
        top = argparse.ArgumentParser(
            prog=self.prog,
            description=self.description,
            epilog=f"example:\n  {first.EXAMPLE}\n\n{self.exit_codes}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
        for name, module in self.commands.items():
            command = commands.add_parser(
                name,
                help=module.HELP,
                description=module.DESCRIPTION,
                epilog=f"example:\n  {module.EXAMPLE}\n\n{self.exit_codes}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            module.add_arguments(command)
        return top

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Runs a command; returns the exit code."""
        parser = self.parser()
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.error(self._unknown(parser, args.command, unknown))
        # TensorFlow's own messages about the machine would drown ours; a user who wants them sets the variable.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
        # Keras would read its settings from the home folder, or write them there; neither is wanted here.
        os.environ.update(KERAS_BACKEND="tensorflow", KERAS_HOME=os.path.join(os.devnull, "keras"))
        for stream in (sys.stdout, sys.stderr):  # a path may have letters that the terminal has not
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        signal.signal(signal.SIGTERM, self._terminate)
        try:
            for path in vars(args).values():  # TensorFlow cannot be given such a one
                if isinstance(path, Path) and any("\ud800" <= letter <= "\udfff" for letter in str(path)):
                    return _fail(f"{str(path)!a}: not UTF-8: rename it")
            self.commands[args.command].run(args)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except self.errors as error:
            return _fail(str(error), getattr(error, "exit_code", 2))
        return 0

    def _unknown(self, parser: argparse.ArgumentParser, command: str, unknown: Sequence[str]) -> str:
        choices = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        known = choices[command]._option_string_actions
        close = [difflib.get_close_matches(word.split("=")[0], known, 1) for word in unknown if word.startswith("-")]
        hint = "".join(f"; did you mean {match[0]}?" for match in close[:1] if match)
        return f"{command}: unrecognized arguments: {' '.join(unknown)}{hint}"

    def _terminate(self, signum: int, frame: FrameType | None) -> NoReturn:
        """Leaves through the same clean-up as an exception."""
        sys.exit(_fail(self.terminated, 128 + signum))


def _fail(message: str, code: int = 2) -> int:
    print("error:", " ".join(message.split("\n")), file=sys.stderr)
    return code
