"""``generate``: prompts in, texts out."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exports.generation_config import OptionError
from inference.commands.options import (
    add_model,
    add_options,
    add_punctuation,
    given_options,
    load_generator,
    print_general_notes,
    print_notes,
    read_requests,
    wants_chinese_marks,
)
from support.command_line import utf8_text

if TYPE_CHECKING:
    from inference.commands.printer import Printer
    from inference.jobs import JobResult
    from inference.jsonl import Job, ResultFile
    from inference.prompt_files import PromptLine, PromptValue
    from inference.request import EncodedPrompt, RequestReader, TextConfig

DESCRIPTION = """\
Continues each prompt and prints it with its continuation, or writes JSON lines. Without a prompt a text is begun, if
the model's tokenizer has a token to start from. JSON and --output have the text as the model made it.
"""
EXAMPLES = (
    "{command} out/song-ci 浣溪沙 --number 3 --temperature 0.8",
    "{command} out/song-ci 菩萨蛮 西江月 如梦令 --number 5 --top-p 0.7 --output out/poems.jsonl",
    "{command} out/song-ci 鹧鸪天 --top-p 0.7 --stream",
)

_MAX_NUMBER = 1_000_000
"""Texts per prompt, and at once: more is a mistake."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("prompt", nargs="*", type=utf8_text, metavar="PROMPT", help="a text to be continued")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="file of prompts: one a line, or JSON lines (.jsonl) or an array (.json) of texts, token ids, or objects "
        "that have one as prompt or text; - for stdin",
    )
    parser.add_argument("--number", type=int, default=1, metavar="N", help="texts per prompt (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append the results here, as JSON lines")
    parser.add_argument("--resume", action="store_true", help="skip results already in --output")
    parser.add_argument("--json", action="store_true", help="print JSON lines: text, tokens, logprobs, why it stopped")
    parser.add_argument("--stream", action="store_true", help="print the text as it is generated")
    parser.add_argument("--no-prompt", action="store_true", help="print the continuation without its prompt")
    add_punctuation(parser)
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="texts generated at once (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no notes")
    add_options(parser, "num_return_sequences")


def run(args: argparse.Namespace) -> None:
    """Read options and prompts, load the model, generate, print."""
    from inference.jobs import generate_jobs
    from inference.jsonl import expand_jobs, open_results

    _check(args)
    lines = _read_prompts(args)
    jobs = expand_jobs(lines, args.number)
    with open_results(args.output) if args.output else contextlib.nullcontext() as results:
        if not (pending := _pending(jobs, results, args)):
            return
        requests = read_requests(args)
        config = requests.resolve(**{**given_options(args), "num_return_sequences": args.number})
        places = {line.prompt: line.place for line in reversed(lines)}
        prompts = _encode(pending, requests, config, places, args)
        generator = load_generator(args, requests, min(args.batch_size, len(pending)), quiet=args.quiet)
        if args.stream:
            prompt = prompts[jobs[0].prompt]
            _printer(args).print_stream(prompt, generator.stream_encoded(prompt, config))
            return
        made = generate_jobs(generator, pending, prompts, config, batch_size=args.batch_size)
        _output(made, len(pending), prompts, results, args)


def _read_prompts(args: argparse.Namespace) -> list[PromptLine]:
    from inference.prompt_files import PromptLine, json_note, read_prompts

    lines = [PromptLine(prompt) for prompt in args.prompt]
    if args.prompts:
        found = read_prompts(args.prompts)
        if (note := json_note(args.prompts, found)) is not None and not args.quiet:
            print(f"note: {note}", file=sys.stderr)
        lines += found
    return lines or [PromptLine("")]


def _pending(jobs: list[Job], results: ResultFile | None, args: argparse.Namespace) -> list[Job]:
    """Return the jobs that are not in --output; without --resume all, but nothing is added to somebody's own file."""
    pending = results.pending(jobs) if results else jobs
    if not args.resume:
        return jobs
    if not args.quiet:
        print(f"{len(jobs) - len(pending)} of {len(jobs)} results are in {args.output} already", file=sys.stderr)
    return pending


def _encode(
    jobs: list[Job],
    requests: RequestReader,
    config: TextConfig,
    places: Mapping[PromptValue, str],
    args: argparse.Namespace,
) -> dict[PromptValue, EncodedPrompt]:
    """Encode each prompt once. One that cannot be encoded is named, before anything is generated."""
    from inference.text_generator import check_stream
    from tokenization import TokenizerError

    if args.stream:
        check_stream(config)
    if any(isinstance(job.prompt, str) for job in jobs):
        requests.check_reads_text()
    prompts = {}
    for text in dict.fromkeys(job.prompt for job in jobs):
        try:
            prompts[text] = requests.encode(text, config)
        except TokenizerError as error:
            beginning = text[:20] if isinstance(text, str) else [*text[:8]]
            place = f": prompt {beginning!a}" if text else ", or --prompts FILE (- is stdin)"
            file = f"{places[text]}: " if places[text] else ""
            raise TokenizerError(f"{file}{error}{place}") from error
    if not args.quiet:
        print_general_notes(requests, config)
        for prompt in prompts.values():
            print_notes(requests, prompt, config)
    return prompts


def _output(
    made: Iterable[JobResult],
    number: int,
    prompts: dict[PromptValue, EncodedPrompt],
    results: ResultFile | None,
    args: argparse.Namespace,
) -> None:
    """Print ``number`` results, or append them to --output, each as soon as it is there."""
    from tqdm import tqdm

    from inference.commands.printer import print_record

    printer = _printer(args)
    no_bar = args.quiet or number < 2 or not sys.stderr.isatty()
    for one in tqdm(made, total=number, unit="text", disable=no_bar):
        if results:
            results.append([one.to_record()])
        elif args.json:
            print_record(one.to_record())
        else:
            printer.print_text(prompts[one.job.prompt], one.result.text)


def _printer(args: argparse.Namespace) -> Printer:
    from inference.commands.printer import Printer

    return Printer(show_prompt=not args.no_prompt, chinese_marks=wants_chinese_marks(args))


def _check(args: argparse.Namespace) -> None:
    for name, value in (("number", args.number), ("batch-size", args.batch_size)):
        if not 1 <= value <= _MAX_NUMBER:
            raise OptionError(f"--{name} is {value}: expected 1 to {_MAX_NUMBER:,}")
    if args.resume and not args.output:
        raise OptionError("--resume needs --output FILE, the results to be completed")
    if args.stream and (args.output or args.json or args.number != 1 or args.prompts or len(args.prompt) > 1):
        raise OptionError(
            "--stream prints one text of one prompt: leave out --output, --json, --number, --prompts and other prompts"
        )
    if args.output and args.json:
        raise OptionError("--output writes JSON lines to a file, --json prints them: choose one")
