"""``ask``: questions answered after a few examples, as in the notebook of CPM-LM-TF2."""

from __future__ import annotations

import argparse
from pathlib import Path

from inference.commands.options import add_model, add_options, options_of
from inference.jsonl import RecordError, read_lines
from inference.text_generator import TextGenerator

DESCRIPTION = """\
Puts a few questions with their answers in front of each question, and prints what the model writes behind it, up to the
end of the line. The examples decide what kind of question is understood.
"""
EXAMPLES = ("{command} cpm-savedmodel 中国的首都是哪里？ --temperature 0",)

FEW_SHOTS = (("日本的首都是哪里？", "东京"), ("法国的首都是哪里？", "巴黎"), ("英国的首都是哪里？", "伦敦"))
"""Used when there is no file of examples."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("question", nargs="+", metavar="QUESTION")
    parser.add_argument("--examples", type=Path, metavar="FILE", help="lines of a question, a tab and its answer")
    add_options(parser, "num_return_sequences", presets=False)


def run(args: argparse.Namespace) -> None:
    examples = _read(args.examples) if args.examples else FEW_SHOTS
    generator = TextGenerator.load(args.model, max_batch_size=len(args.question))
    options = {**options_of(args, generator.tokenizer), "num_return_sequences": 1}
    if not {"max_new_tokens", "max_length"} & options.keys():
        options["max_new_tokens"] = 50
    options["truncate"] = ["\n", *options.get("truncate", ())]
    shots = "".join(f"问题：{question}\n答案：{answer}\n" for question, answer in examples)
    prompts = [f"{shots}问题：{question.strip()}\n答案：" for question in args.question]
    for question, answer in zip(args.question, generator.generate(prompts, **options), strict=True):
        print(f"{question.strip()}\t{answer.text.strip()}" if len(prompts) > 1 else answer.text.strip())


def _read(path: Path) -> tuple[tuple[str, str], ...]:
    pairs = []
    for number, line in read_lines(str(path)):
        question, tab, answer = line.partition("\t")
        if not (tab and question.strip() and answer.strip()):
            raise RecordError(f"{path}, line {number}: expected a question, a tab and its answer")
        pairs.append((question.strip(), answer.strip()))
    if not pairs:
        raise RecordError(f"{path}: has no examples: expected lines of a question, a tab and its answer")
    return tuple(pairs)
