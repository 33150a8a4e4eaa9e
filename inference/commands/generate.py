"""``generate``: prompts in, texts out."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import dataclasses
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from exports.generation_config import GenerationConfig, OptionError
from inference.commands.options import add_model, add_options, echo, options_of, prompt_of, shown
from inference.jsonl import Job, Prompt, jobs_of, json_line, open_records, read_prompts
from inference.text_generator import GeneratedText, TextGenerator
from tokenization import TokenizerError

DESCRIPTION = """\
Continues each prompt and prints it with its continuation, or writes JSON lines. Without a prompt a text is begun, if
the model's tokenizer has a token to start from.
"""
EXAMPLES = ("{command} song-ci-savedmodel 浣溪沙 --number 3 --temperature 0.8",)

Result = tuple[Job, GeneratedText, int | None]
"""What was made for a job, and the seed it was drawn with."""

_BETWEEN = "=" * 20
"""Printed between texts, as gpt-2-simple does."""


_MOST = 1_000_000
"""Texts per prompt, and at once: more is a mistake."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="a text to be continued")
    parser.add_argument(
        "--prompts", metavar="FILE", help="more of them: a line each, or JSON lines (.jsonl); - for stdin"
    )
    parser.add_argument("--number", type=int, default=1, metavar="N", help="texts per prompt (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append the results here, as JSON lines")
    parser.add_argument("--resume", action="store_true", help="leave out what --output has already")
    parser.add_argument("--json", action="store_true", help="print JSON lines: text, tokens, logprobs, why it stopped")
    parser.add_argument("--stream", action="store_true", help="print one text as it comes")
    parser.add_argument("--no-prompt", action="store_true", help="print the continuation without its prompt")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="texts generated at once (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_options(parser, "num_return_sequences")


def run(args: argparse.Namespace) -> None:
    _check(args)
    prompts: list[Prompt] = [(prompt, {}) for prompt in args.prompt] + (
        read_prompts(args.prompts) if args.prompts else []
    )
    jobs = jobs_of(prompts or [("", {})], args.number)
    with open_records(args.output) if args.output else contextlib.nullcontext() as records:
        done = records.done() if records else set()  # without --resume too: nothing is added to somebody's own file
        done = done if args.resume else set()
        left = [job for job in jobs if (job.prompt, job.number) not in done]
        if args.resume and not args.quiet:
            print(f"{len(jobs) - len(left)} of {len(jobs)} results are in {args.output} already", file=sys.stderr)
        if not left:
            return
        generator = TextGenerator.load(args.model, max_batch_size=min(args.batch_size, len(left)))
        options = {**options_of(args, generator.tokenizer), "num_return_sequences": args.number}
        config = generator.resolve(**options)  # what is wrong shows before anything is generated
        if args.stream:
            _encodes(jobs[0].prompt, config, args, generator)
            _stream(generator, jobs[0].prompt, options, args)
            return
        for prompt in dict.fromkeys(job.prompt for job in left):
            _encodes(prompt, config, args, generator)
        results = (_beams if config.beams else _samples)(generator, jobs, done, options, args)
        shows = args.quiet or len(left) < 2 or not sys.stderr.isatty()
        for i, (job, result, seed) in enumerate(tqdm(results, total=len(left), unit="text", disable=shows)):
            if records or args.json:
                record = {"prompt": job.prompt, **job.fields, "number": job.number, "seed": seed}
                record.update({k: v for k, v in dataclasses.asdict(result).items() if k != "prompt" and v is not None})
                record["text"] = shown(result.text, args, generator.tokenizer)
                if records:
                    records.append([record])
                else:
                    print(json_line(record, ascii_only=not _is_utf8(sys.stdout)), end="", flush=True)
            else:
                head = "" if args.no_prompt else echo(job.prompt, args)
                tqdm.write(f"{_BETWEEN + chr(10) if i else ''}{head}{shown(result.text, args, generator.tokenizer)}")


def _encodes(prompt: str, config: GenerationConfig, args: argparse.Namespace, generator: TextGenerator) -> None:
    """A prompt that cannot be encoded, or not be read as a whole, shows before anything is generated, and is named."""
    limit = generator.config.n_positions
    try:
        tokens = prompt_of(prompt, args, generator.tokenizer)
        if isinstance(tokens, str):
            tokens = generator.tokenizer.encode_prompt(tokens)
        if len(tokens) > limit and not config.beams and not args.quiet:
            kept = config.values["window_tokens"] or limit // 2
            print(
                f"note: prompt {prompt[:20]!r}... has {len(tokens)} tokens, the model {limit} positions: of the prompt "
                f"no more than the last {kept} tokens are read (--window-tokens)",
                file=sys.stderr,
            )
    except TokenizerError as error:
        raise TokenizerError(
            f"{error}: prompt {prompt[:20]!a}" if prompt else f"{error}, or --prompts FILE (- is stdin)"
        ) from error


def _is_utf8(stream: Any) -> bool:
    try:
        return codecs.lookup(stream.encoding).name == "utf-8"
    except (AttributeError, TypeError, LookupError):
        return False


def _check(args: argparse.Namespace) -> None:
    for name, value in (("number", args.number), ("batch-size", args.batch_size)):
        if not 1 <= value <= _MOST:
            raise OptionError(f"--{name} is {value}: expected 1 to {_MOST:,}")
    if args.resume and not args.output:
        raise OptionError("--resume needs --output FILE, the results to be completed")
    if args.stream and (args.output or args.json or args.number != 1 or args.prompts or len(args.prompt) > 1):
        raise OptionError("--stream prints one text of one prompt: leave out --output, --json, --number, --prompts "
                          "and other prompts")  # fmt: skip
    if args.output and args.json:
        raise OptionError("--output writes JSON lines to a file, --json prints them: choose one")


def _samples(
    generator: TextGenerator, jobs: Sequence[Job], done: set[tuple[str, int]], options: dict[str, Any],
    args: argparse.Namespace,
) -> Iterator[Result]:  # fmt: skip
    """Each result for itself, drawn with the seed of its number."""
    jobs = [job for job in jobs if (job.prompt, job.number) not in done]
    first = generator.resolve(**options).values["seed"]
    for start in range(0, len(jobs), args.batch_size):
        some = jobs[start : start + args.batch_size]
        prompts = [prompt_of(job.prompt, args, generator.tokenizer) for job in some]
        seeds = [secrets.randbits(63) if first < 0 else (first + job.number) % 2**63 for job in some]
        results = generator.generate(
            prompts, batch_size=args.batch_size, **{**options, "num_return_sequences": 1, "seed": seeds}
        )
        yield from zip(some, results, seeds, strict=True)


def _beams(
    generator: TextGenerator, jobs: Sequence[Job], done: set[tuple[str, int]], options: dict[str, Any],
    args: argparse.Namespace,
) -> Iterator[Result]:  # fmt: skip
    """All results of a prompt together, as beam search finds them."""
    groups = [jobs[start : start + args.number] for start in range(0, len(jobs), args.number)]
    for group in groups:
        if any((job.prompt, job.number) not in done for job in group):
            results = generator.generate([prompt_of(group[0].prompt, args, generator.tokenizer)], **options)
            for job, result in zip(group, results, strict=True):
                if (job.prompt, job.number) not in done:
                    yield job, result, None


def _stream(generator: TextGenerator, prompt: str, options: dict[str, Any], args: argparse.Namespace) -> None:
    parts = generator.stream(prompt_of(prompt, args, generator.tokenizer), **options)
    if not args.no_prompt:
        print(echo(prompt, args), end="", flush=True)
    try:
        for part in parts:
            print(shown(part, args, generator.tokenizer), end="", flush=True)
    finally:  # an error is a line of its own
        print()
