"""What the command lines of this project share: sub-commands, errors of one line, exit codes, signals."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
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
        commands: name -> module with ``HELP``, ``DESCRIPTION``, ``EXAMPLE``, ``add_arguments(parser)``, ``run(args)``,
            and maybe ``WORDS``, the argument that is a list of words, which may then stand behind options too.
        exit_codes: the end of every help text.
        errors: exceptions that are the user's to mend; their message is one line. An ``exit_code`` of theirs counts.
        terminated: what is said on SIGTERM.
        hides_gpus: what it does is no work for one; its memory would be taken all the same.
    """

    prog: str
    description: str
    commands: Mapping[str, ModuleType]
    exit_codes: str
    errors: tuple[type[Exception], ...]
    terminated: str
    hides_gpus: bool = False

    def parser(self) -> argparse.ArgumentParser:
        first = next(iter(self.commands.values()))
        top = Parser(
            prog=self.prog,
            description=self.description,
            epilog=f"example:\n  {first.EXAMPLE}\n\n{self.exit_codes}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
        for name, module in self.commands.items():
            command = commands.add_parser(
                name,
                allow_abbrev=False,
                help=module.HELP,
                description=module.DESCRIPTION,
                epilog=f"example:\n  {module.EXAMPLE}\n\n{self.exit_codes}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            module.add_arguments(command)
        return top

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Runs a command; returns the exit code."""
        if sys.stdout is None:  # closed by whoever started us: what is printed goes nowhere
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the end of the process
        if sys.stderr is None:
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        parser = self.parser()
        self._check_spelling(parser, sys.argv[1:] if argv is None else argv)
        args, unknown = parser.parse_known_args(argv)
        words = getattr(self.commands[args.command], "WORDS", None)
        if words and not any(word.startswith("-") for word in unknown):
            # argparse fills a list of words from those in front of the options and refuses those behind them.
            setattr(args, words, [*getattr(args, words), *unknown])
        elif unknown:
            parser.error(self._unknown(parser, args.command, unknown))
        # TensorFlow's own messages about the machine would drown ours; a user who wants them sets the variable.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if self.hides_gpus:
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
        # Keras would read its settings from the home folder, or write them there; neither is wanted here.
        os.environ.update(KERAS_BACKEND="tensorflow", KERAS_HOME=os.path.join(os.devnull, "keras"))
        for stream in (sys.stdout, sys.stderr):  # a path may have letters that the terminal has not
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, _terminate)
        try:
            for path in vars(args).values():  # TensorFlow cannot be given such a one
                if isinstance(path, Path) and any("\ud800" <= letter <= "\udfff" for letter in str(path)):
                    return _fail(f"{str(path)!a}: not UTF-8: rename it")
            self.commands[args.command].run(args)
            sys.stdout.flush()
        except BaseException as error:
            if (signalled := _signalled(error)) is None:
                return self._failed(error)
            if isinstance(signalled, _Terminated):
                return _fail(self.terminated, int(str(signalled.code)))
            raise signalled from None
        return 0

    def _failed(self, error: BaseException) -> int:
        """The exit code for an exception; one that nobody foresaw is raised again."""
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            _drop_stdout()
            return 128 + signal.SIGPIPE
        if isinstance(error, self.errors):
            return _fail(str(error), getattr(error, "exit_code", 2))
        if isinstance(error, OSError) and error.filename is None and error.errno in _STDOUT:
            _drop_stdout()
            return _fail(f"stdout cannot be written: {error.strerror}")
        raise error

    def _check_spelling(self, parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
        """Names a misspelt option by itself: argparse would name the required one that is missing because of it."""
        if not argv or (command := argv[0]) not in self.commands:
            return
        known = _options(parser, command)
        for word in argv[1 : argv.index("--") if "--" in argv else None]:
            name = word.split("=")[0]
            if name.startswith("--") and name not in known and difflib.get_close_matches(name, known, 1):
                parser.error(self._unknown(parser, command, [word]))

    def _unknown(self, parser: argparse.ArgumentParser, command: str, unknown: Sequence[str]) -> str:
        known = _options(parser, command)
        close = [difflib.get_close_matches(word.split("=")[0], known, 1) for word in unknown if word.startswith("-")]
        hint = "".join(f"; did you mean {match[0]}?" for match in close[:1] if match)
        return f"{command}: unrecognized arguments: {' '.join(unknown)}{hint}"


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, without the list of all options in front."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}; --help shows what there is\n")


class _Terminated(SystemExit):
    """SIGTERM, or SIGHUP of a terminal that closes.

    What is said of it comes when all is cleared, and nothing holds stderr back any more.
    """


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """Leaves through the same clean-up as an exception."""
    raise _Terminated(128 + signum)


def _signalled(error: BaseException | None) -> BaseException | None:
    """The signal that ``error`` is, or that it came up in: TensorFlow's contexts raise errors of their own then."""
    while error is not None and not isinstance(error, (KeyboardInterrupt, _Terminated)):
        error = error.__context__
    return error


def _options(parser: argparse.ArgumentParser, command: str) -> Mapping[str, argparse.Action]:
    """The options of a command, by their spelling."""
    choices = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    options: Mapping[str, argparse.Action] = choices[command]._option_string_actions
    return options


_STDOUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Why printing fails."""


def _drop_stdout() -> None:
    """What is still in its buffer goes nowhere: the interpreter's own attempt at its end would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int = 2) -> int:
    print("error:", " ".join(message.split("\n")), file=sys.stderr)
    return code
