"""``ask``: questions answered after a few examples, as in the notebook of CPM-LM-TF2."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from inference.commands.options import (
    add_model,
    add_options,
    add_punctuation,
    given_options,
    load_generator,
    print_notes,
    read_requests,
    wants_chinese_marks,
)
from support.command_line import utf8_text

DESCRIPTION = """\
Puts a few questions with their answers in front of each question, and prints what the model writes after it, up to the
end of the line. The examples decide what kind of question is understood.
"""
EXAMPLES = ("{command} out/song-ci 李白的朝代是什么？ --temperature 0",)

FEW_SHOTS = (("日本的首都是哪里？", "东京"), ("法国的首都是哪里？", "巴黎"), ("英国的首都是哪里？", "伦敦"))
"""Used when there is no file of examples."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("question", nargs="+", type=utf8_text, metavar="QUESTION", help="a question")
    parser.add_argument("--examples", type=Path, metavar="FILE", help="file of lines: a question, a tab and its answer")
    add_punctuation(parser)
    add_options(parser, "num_return_sequences", presets=False)


def run(args: argparse.Namespace) -> None:
    """Read examples and questions, load the model, print the answers."""
    from inference.commands.printer import Printer

    examples = _read(args.examples) if args.examples else FEW_SHOTS
    requests = read_requests(args)
    requests.check_reads_text()
    options = {**given_options(args), "num_return_sequences": 1}
    if not {"max_new_tokens", "max_length"} & options.keys():
        options["max_new_tokens"] = 50
    options["truncate"] = ["\n", *options.get("truncate", ())]
    config = requests.resolve(**options)
    questions = [question.strip() for question in args.question]
    shots = "".join(f"问题：{question}\n答案：{answer}\n" for question, answer in examples)
    prompts = [requests.encode(f"{shots}问题：{question}\n答案：", config) for question in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        print_notes(requests, dataclasses.replace(prompt, text=question, typed=question), config)
    generator = load_generator(args, requests, len(prompts))
    printer = Printer(chinese_marks=wants_chinese_marks(args))
    for question, answer in zip(questions, generator.generate_encoded(prompts, config), strict=True):
        text = "".join(printer.continuation(prompts[0], [answer.text.strip()]))
        print(f"{question}\t{text}" if len(prompts) > 1 else text)


def _read(path: Path) -> tuple[tuple[str, str], ...]:
    from inference.prompt_files import RecordError, read_lines

    pairs = []
    for number, line in read_lines(str(path)):
        question, tab, answer = line.partition("\t")
        if not (tab and question.strip() and answer.strip()):
            raise RecordError(f"{path}, line {number}: expected a question, a tab and its answer")
        pairs.append((question.strip(), answer.strip()))
    if not pairs:
        raise RecordError(f"{path}: has no examples: expected lines of a question, a tab and its answer")
    return tuple(pairs)
