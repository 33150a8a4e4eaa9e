"""The command lines of this project: tables of commands, their parsers and their help.

This module needs nothing but Python's standard library, and a command's module is imported only when that command is
run or its own help is asked for. So ``--help`` works where nothing is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from support.errors import UserError
from support.main_guard import main_guard, missing_package


@dataclasses.dataclass(frozen=True)
class Command:
    """A row of a table of commands.

    Attributes:
        name: what is typed.
        module: the module with ``DESCRIPTION``, ``EXAMPLES``, ``add_arguments(parser, **arguments)`` and ``run(args)``.
            In an example ``{command}`` stands for the program and the command, ``{program}`` for the program alone.
        help: one line for the list of commands.
        arguments: what ``add_arguments`` gets besides the parser.
        description, examples: instead of the module's, where several commands share it.
        has_command: its last argument is another command with options of its own, after ``--``.
    """

    name: str
    module: str
    help: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    description: str = ""
    examples: Sequence[str] = ()
    has_command: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """Commands that are listed together and that end alike.

    Attributes:
        title: the heading in the list of commands.
        exit_codes: the end of every command's help.
        when_stopped: what else to say when a signal has stopped a command.
        hide_gpus: set ``CUDA_VISIBLE_DEVICES=-1``. The commands run on the CPU, but TensorFlow would still reserve GPU
            memory.
    """

    title: str
    commands: Sequence[Command]
    exit_codes: str
    when_stopped: str = ""
    hide_gpus: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """A command line of groups of commands.

    Attributes:
        prog, description: for its help.
        examples: whole commands, with ``{program}`` for the program, that the list of commands ends with.
        exit_codes: the last lines of that list.
        version: what ``--version`` prints, if there is such an option.
        has_completion: ``--print-completion`` prints a script for the shell. A shell completes the name of one program,
            not ``python -m``.
    """

    prog: str
    description: str
    groups: Sequence[Group]
    examples: Sequence[str]
    exit_codes: str
    version: str = ""
    has_completion: bool = False

    @property
    def commands(self) -> dict[str, Command]:
        """The commands by their name."""
        return {command.name: command for group in self.groups for command in group.commands}

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Run a command and return its exit code.

        Raises:
            SystemExit: after help, and for options that cannot be parsed.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        if words and words[0] in self.commands:
            return main_guard(lambda: self._run_command(words[0], words[1:]), self._group(words[0]).when_stopped)
        return main_guard(lambda: self._top_parser().parse_top(words))

    def command_parser(self, name: str) -> Parser:
        """Make the parser of one command, with its module's options."""
        return self._command_parser(name)[0]

    def _group(self, name: str) -> Group:
        return next(group for group in self.groups if any(command.name == name for command in group.commands))

    def completion(self, shell: str) -> str:
        """Make the script that teaches ``shell`` this program.

        Raises:
            UserError: the package that writes it is not installed.
        """
        try:
            import shtab
        except ModuleNotFoundError as error:
            raise UserError(missing_package("shtab")) from error
        parser = self._top_parser()
        subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=argparse.ArgumentParser)
        for command in self.commands.values():
            module = importlib.import_module(command.module)
            own = subparsers.add_parser(command.name, help=command.help)
            module.add_arguments(own, **command.arguments)
            for action in own._actions:
                if action.type is Path:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        return str(shtab.complete(parser, shell))

    def _run_command(self, name: str, words: Sequence[str]) -> None:
        set_environment(hide_gpus=self._group(name).hide_gpus)
        parser, module = self._command_parser(name)
        parser.check_spelling(words)
        # Words may stand between and after options: `generate MODEL --seed 1 PROMPT`. Intermixed, those after -- are
        # looked through for options, too.
        parse = parser.parse_args if self.commands[name].has_command else parser.parse_intermixed_args
        args = parse(words)
        check_paths(vars(args).values())
        module.run(args)

    def _command_parser(self, name: str) -> tuple[Parser, ModuleType]:
        command, program = self.commands[name], _as_typed(self.prog)
        module = importlib.import_module(command.module)
        examples = [
            line.replace("{command}", f"{program} {name}").replace("{program}", program)
            for line in command.examples or module.EXAMPLES
        ]
        parser = Parser(
            prog=f"{self.prog} {name}",
            description=command.description or module.DESCRIPTION,
            epilog=_epilog(examples, self._group(name).exit_codes),
        )
        module.add_arguments(parser, **command.arguments)
        return parser, module

    def _top_parser(self) -> _TopParser:
        program = _as_typed(self.prog)
        parser = _TopParser(
            self.groups,
            prog=self.prog,
            usage="%(prog)s COMMAND ...",
            description=self.description,
            epilog=_epilog([line.replace("{program}", program) for line in self.examples], self.exit_codes),
        )
        if self.version:
            parser.add_argument("--version", action="version", version=self.version, help="print the version")
        if self.has_completion:
            parser.add_argument(
                "--print-completion",
                choices=("bash", "zsh", "tcsh"),
                action=_PrintCompletion,
                make=self.completion,
                help="print a script that completes commands and options in this shell",
            )
        return parser


def set_environment(*, hide_gpus: bool) -> None:
    """Set what TensorFlow and Keras look for when they are imported."""
    # TensorFlow's own messages about the machine would drown ours; a user who wants them sets the variable.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if hide_gpus:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    # Keras would read its settings from the home folder, or write them there; neither is wanted here.
    os.environ.update(KERAS_BACKEND="tensorflow", KERAS_HOME=os.path.join(os.devnull, "keras"))


def check_paths(values: Iterable[object]) -> None:
    """Check that every path among ``values`` is UTF-8: TensorFlow takes no other.

    Raises:
        UserError: a path is not UTF-8.
    """
    for path in values:
        if isinstance(path, Path) and any("\ud800" <= letter <= "\udfff" for letter in str(path)):
            raise UserError(f"{str(path)!a}: not UTF-8: rename it")


def utf8_text(word: str) -> str:
    """Read an argument as UTF-8 if it is UTF-8, whatever the locale says; a ``type`` for options that are texts.

    Python has decoded the arguments with the locale's encoding. A Chinese text is then another one, or has surrogates.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        return word


class Parser(argparse.ArgumentParser):
    """A parser with errors of one line, suggestions for misspelt options, and help that wraps to the terminal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Print one line, without the list of all options in front, and exit."""
        self.exit(2, f"error: {self.prog}: {message}; --help lists the options\n")

    def check_spelling(self, words: Sequence[str]) -> None:
        """Name an unknown option: argparse would name the required one that is missing because of it."""
        end = words.index("--") if "--" in words else len(words)
        for word in words[:end]:
            name = word.split("=")[0]
            if name.startswith("--") and " " not in word and name not in self._option_string_actions:
                self.error(f"unrecognized arguments: {word}{_suggestion(name, self._option_string_actions)}")


class _TopParser(Parser):
    """What is parsed without a command; lists the commands in groups, which argparse's sub-parsers cannot."""

    def __init__(self, groups: Sequence[Group], **settings: Any) -> None:
        super().__init__(**settings)
        self.groups = groups

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}; --help lists the commands\n")

    def parse_top(self, words: Sequence[str]) -> NoReturn:
        """Do what words without a command ask for, or name what is wrong with them, and exit."""
        if words and not words[0].startswith("-"):  # the options after it are those of the command that was meant
            self._no_command(words[0])
        self.check_spelling(words)
        _, others = self.parse_known_args(words)  # exits after --help and --version
        if not others:
            self.error("expected a COMMAND")
        self._no_command(others[0])

    def _no_command(self, word: str) -> NoReturn:
        names = [command.name for group in self.groups for command in group.commands]
        close = difflib.get_close_matches(word.lower().replace("_", "-"), names, 1)
        hint = "".join(f"; did you mean {name}?" for name in close)
        self.error(f"{word!r} is no command{hint}")

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, ())
        formatter.add_text(self.description)
        for group in self.groups:
            formatter.start_section(group.title)
            for command in group.commands:
                formatter.add_argument(argparse.Action([], command.name, help=command.help.replace("%", "%%")))
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([action for action in self._actions if action.option_strings])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


class _PrintCompletion(argparse.Action):
    """Prints the completion of the shell that is named, and exits."""

    def __init__(self, *args: Any, make: Callable[[str], str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.make = make

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **settings: Any) -> NoReturn:
        print(self.make(args[1]))
        parser.exit()


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps to the terminal and breaks no word.

    Paragraphs are filled. Lines that begin with two spaces keep their beginning and, unless they begin with a number
    (an exit code), are not wrapped at all: examples are to be pasted.
    """

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size().columns
        super().__init__(prog, max_help_position=24 if columns >= 70 else 8, width=min(columns, 120) - 2)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrap(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for is_verbatim, block in _blocks(text):
            if not is_verbatim:
                lines += _wrap(" ".join(block), width, indent, indent)
                continue
            for line in block:
                code = re.match(r" +\d+ +", line)
                lines += _wrap(line, width, indent, indent + " " * len(code[0])) if code else [indent + line]
        return "\n".join(lines)


def _blocks(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Split a text into paragraphs, False, and lines that are kept as they are, True: indented, empty, or headings."""
    paragraph: list[str] = []
    for line in text.strip("\n").split("\n"):
        is_verbatim = not line.strip() or line.startswith("  ") or (line.endswith(":") and line.count(" ") < 3)
        if is_verbatim and paragraph:
            yield False, paragraph
            paragraph = []
        if is_verbatim:
            yield True, [line]
        else:
            paragraph.append(line)
    if paragraph:
        yield False, paragraph


def _wrap(text: str, width: int, first: str = "", others: str = "") -> list[str]:
    return textwrap.wrap(
        text, max(width, 1), initial_indent=first, subsequent_indent=others,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _epilog(examples: Sequence[str], exit_codes: str) -> str:
    title = "example:" if len(examples) == 1 else "examples:"
    return "\n".join([title, *(f"  {line}" for line in examples), "", exit_codes])


def _as_typed(prog: str) -> str:
    """Give a program as it can be typed here: ``.venv/bin/python -m convert`` in a clone whose .venv is running."""
    name, *others = prog.split(" ")
    running = sys.executable if others else sys.argv[0]
    try:
        path = os.path.relpath(running) if running else ""
    except OSError:  # the folder that the command runs in has been deleted
        path = ""
    typed = path if os.path.basename(path) == name and not path.startswith("..") and not shutil.which(name) else name
    return " ".join([typed, *others])


_OTHER_NAMES = {
    "do-sample": ("temperature 0",),
    "greedy": ("temperature 0",),
    "input": ("checkpoint", "prompts", "text"),
    "length": ("max-new-tokens",),
    "lora": ("adapter",),
    "max-tokens": ("max-new-tokens",),
    "model": ("checkpoint",),
    "n-head": ("heads",),
    "nsamples": ("number",),
    "num-attention-heads": ("heads",),
    "num-heads": ("heads",),
    "num-return-sequences": ("number",),
    "num-samples": ("number",),
    "peft": ("adapter",),
}
"""What other programs call an option: the first of these that a command has is meant."""
_SIMILAR = 0.7
"""How similar to an option a misspelt one is, of 1: greedy and seed are 0.6."""


def _suggestion(name: str, known: Iterable[str]) -> str:
    """Give the options that ``name`` may have been meant for.

    They are what other programs call so, else those that ``name`` begins, else one that is similar: letters that change
    places, or that are missing. A word that shares some letters only would mislead.
    """
    names = [option.removeprefix("--") for option in known if option.startswith("--")]
    word = name.removeprefix("--").lower().replace("_", "-")
    meant = [option for option in _OTHER_NAMES.get(word, ()) if option.split()[0] in names][:1]
    meant = meant or [option for option in names if word and option.startswith(word)][:3]
    meant = [f"--{option}" for option in meant or difflib.get_close_matches(word, names, 1, _SIMILAR)]
    return f"; did you mean {' or '.join(meant)}?" if meant else ""
